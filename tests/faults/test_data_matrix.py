"""Faulty data and arguments, through a recipe's ``main``: message, exit code, disk.

The cases of one file are those of ``scripts/data_faults.py``; the others are below.
"""

import json
import os

import data_cases
import pytest
import recipe_process as process
import tiny
import torch
from recipe_process import main_of, read_json

from llmft.config import facts, fields
from llmft.model import load as llmft_models
from llmft.process import run_command

CASES = {case.name: case for case in data_cases.CASES}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return data_cases.models(tmp_path_factory.mktemp("models"))


def outcome(recipe, flags, capsys):
    """Run a recipe here; return its code, its output, and the lines of its errors."""
    code = run_command(main_of(recipe), [*map(str, flags)])
    said = capsys.readouterr()
    return code, said.out + said.err, process.problems(said.err)


def left(folder, before):
    """What is new in a folder, the cache aside; it must hold nothing half written."""
    new = [p for p in folder.rglob("*") if p not in before]
    assert not [p for p in new if ".staging-" in p.name]
    cache = folder / "llmft-home"
    return [p for p in new if cache not in [p, *p.parents]]


@pytest.mark.parametrize("name", CASES)
def test_fault(name, models, tmp_path, monkeypatch, capsys):
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    case.write(tmp_path)
    before = {*tmp_path.rglob("*")}
    code, said, errors = outcome(case.recipe, case.command_line(models), capsys)
    assert code == case.code, said
    if case.code:
        (line,) = errors
        assert line.startswith((f"llmft: {case.kind} ", f"llmft: {case.kind}: "))
        assert case.said in line
        assert len(line) <= 400
    else:
        assert case.said in said
    assert not left(tmp_path, before)


@pytest.mark.parametrize(
    "name",
    [
        "D06-gbk",
        "D20-a-label-that-train-has-not",
        "D31-rows-of-the-test-in-train",
        "D34-the-tokenizer-of-another-model",
        "E03-minus-one",
    ],
)
def test_e10_a_real_run_ends_as_the_dry_one(
    name, models, tmp_path, monkeypatch, capsys
):
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    case.write(tmp_path)
    before = {*tmp_path.rglob("*")}
    flags = case.command_line(models)
    dry = outcome(case.recipe, flags, capsys)
    real = outcome(case.recipe, [f for f in flags if f != "--dry_run"], capsys)
    assert real[0] == dry[0] == case.code
    assert real[2] == dry[2]
    assert not left(tmp_path, before)


NUMBERS = {
    name: str(argument.type)
    for name, argument in facts.fields_of(
        *(fields.ClassificationModelArguments,),
        *(fields.ClassificationDataArguments, fields.TrainingArguments),
    ).items()
    if argument.facts.get("range")
}
WHOLE = [name for name, kind in NUMBERS.items() if "float" not in kind]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("-1", NUMBERS),
        ("NaN", NUMBERS),
        ("Infinity", NUMBERS),
        ("1e400", NUMBERS),
        ('"8"', NUMBERS),
        ("true", NUMBERS),
        ("1.5", WHOLE),
    ],
)
def test_e03_every_number_of_the_schema(value, names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ", ".join(f'"{name}": {value}' for name in names)
    (tmp_path / "args.json").write_text(f'{{"train_file": "a.csv", {given}}}')
    flags = ["--args", "args.json", "--do_train", "--model_name_or_path", "model"]
    code, _, (line,) = outcome("classify", flags, capsys)
    assert code == 2
    assert len(names) > 15
    assert line.startswith(f"llmft: ConfigError: {len(names)} problems: ")
    assert [name for name in names if f"{name} is " not in line] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["args.json"]


def train(model, *flags):
    """Flags of a short training of texts.txt or texts.csv."""
    return [
        *process.QUICK,
        *("--model_name_or_path", model, "--do_train", "--max_steps", 2),
        *("--eval_strategy", "no", "--output_dir", "run", *flags),
    ]


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{text}\n" for text in tiny.sentences(600)))
    return path


def test_d36_a_batch_that_nothing_is_masked_in(models, texts, tmp_path, capsys):
    """One token of each block is masked all the same: the loss is a number."""
    flags = train(models["mlm"], "--train_file", texts, "--mlm_probability", 1e-9)
    code, said, _ = outcome("mlm", [*flags, "--logging_steps", 1], capsys)
    assert code == 0, said
    assert len(process.losses(tmp_path / "run")) == 2
    assert all(1 < loss < 15 for loss in process.losses(tmp_path / "run"))


def test_d37_a_file_that_changes_during_the_run(models, texts, tmp_path):
    """The next time that a stream opens it."""
    flags = train(models["mlm"], "--streaming", "--train_file", texts)
    flags += ["--max_steps", 10**6, "--logging_steps", 1]
    with process.start("mlm", *flags, cwd=tmp_path) as running:
        log = tmp_path / "run" / "metrics.jsonl"
        process.wait_until(lambda: log.exists() and log.stat().st_size, "a step")
        with open(texts, "a") as stream:
            stream.write("more\n")
        _, err = running.communicate(timeout=120)
    (line,) = process.problems(err.decode())
    assert running.returncode == 3
    assert line.startswith(f"llmft: DataError {texts}: the file changed since the run")
    assert line.endswith("; start again")
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed"


def test_d37_a_file_that_was_read_may_change(models, texts, tmp_path, capsys):
    """Without streaming, a run has a copy of its own; its record tells of which."""
    flags = train(models["mlm"], "--train_file", texts)
    assert outcome("mlm", flags, capsys)[0] == 0
    first = read_json(tmp_path / "run" / "run.json")["data"]["train"]["sha256"]
    texts.write_text(texts.read_text() + "one more\n")
    code, said, errors = outcome(
        *("mlm", [*flags, "--resume_from_checkpoint", "true", "--max_steps", 4]), capsys
    )
    assert code == 4, said
    assert "data" in errors[0]
    assert read_json(tmp_path / "run" / "run.json")["data"]["train"]["sha256"] == first


def test_d38_a_file_rewritten_with_the_same_time(models, texts, capsys):
    def tokens():
        said = outcome("mlm", flags, capsys)[1]
        return [line for line in said.splitlines() if " tokens in " in line]

    stat = texts.stat()
    flags = train(models["mlm"], "--train_file", texts, "--dry_run")
    first = tokens()
    content = texts.read_text()
    texts.write_text(content.replace(" ", "x", 99))  # as many characters
    os.utime(texts, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert texts.stat().st_mtime_ns == stat.st_mtime_ns
    second = tokens()
    texts.write_text(content)
    assert first != second
    assert first == tokens()


def test_e06_flag_over_file_over_default(models, texts, tmp_path, capsys):
    values = {"seed": 5, "learning_rate": 1e-3, "train_file": "texts.txt"}
    (tmp_path / "args.json").write_text(json.dumps(values))
    flags = train(models["mlm"], "--args", "args.json", "--learning_rate", 2e-3)
    code, said, _ = outcome("mlm", flags, capsys)
    assert code == 0, said
    found = read_json(tmp_path / "run" / "run.json")["arguments"]
    assert found["learning_rate"] == {"value": 2e-3, "from": "command line"}
    assert found["seed"] == {"value": 5, "from": "args.json"}
    assert found["weight_decay"] == {"value": 0.01, "from": "default"}


def test_e08_a_loss_that_is_not_finite(models, texts, tmp_path, capsys):
    flags = train(models["mlm"], "--train_file", texts, "--max_steps", 50)
    flags += ["--optim", "sgd", "--learning_rate", 100, "--max_grad_norm", 0]
    code, said, errors = outcome("mlm", [*flags, "--save_steps", 1], capsys)
    assert code == 6, said
    (line,) = errors
    assert line.startswith("llmft: NonFiniteError: ")
    for part in ("in step ", "learning rate ", "gradient norm ", "examples "):
        assert part in line
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed"


def test_e09_a_gradient_that_is_not_finite(
    models, texts, tmp_path, capsys, monkeypatch
):
    """Before the optimizer takes it: the weights on disk are those before the step."""
    load = llmft_models.load_model

    def spoiled(*args, **options):
        model = load(*args, **options)
        weight = model.get_input_embeddings().weight
        calls = []

        def third_is_nan(gradient):
            calls.append(1)  # the first of all is that of the try before the run
            return gradient * torch.nan if len(calls) == 4 else gradient

        weight.register_hook(third_is_nan)
        return model

    monkeypatch.setattr(llmft_models, "load_model", spoiled)
    flags = train(models["mlm"], "--train_file", texts, "--max_steps", 5)
    flags += ["--save_strategy", "steps", "--save_steps", 1]
    flags += ["--fast_path", "off"]  # its backward passes would be counted, too
    code, said, errors = outcome("mlm", flags, capsys)
    assert code == 6, said
    assert "the gradient is nan in step 3" in errors[0]
    points = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert points == ["checkpoint-1", "checkpoint-2"]
