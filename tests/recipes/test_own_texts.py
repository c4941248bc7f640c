"""Language modelling of a user's own texts, with flags only."""

from __future__ import annotations

import json
import math
import random
import shlex
from pathlib import Path

import pytest
import recipe_process as process
import tiny
from datasets import Dataset
from transformers import AutoTokenizer, pipeline

from llmft.data.tokens.collate import SeededDataCollatorForLanguageModeling, fix_masks

TOY = (
    *process.QUICK,
    *("--num_train_epochs", 3, "--learning_rate", 5e-3),
    *("--per_device_train_batch_size", 8),
)
TEXTS = [
    text.replace("good", "good 🎬") for text in tiny.sentences(300, words=14, seed=3)
]

# A new masked-LM head knows frequencies already: here the rest of a line tells more.
# Lines differ, since those that are the same stay on one side of a split.
_DRAW = random.Random(3)
REPEATED = [
    " ".join([word] * 12 + _DRAW.choices(tiny.WORDS, k=2)).replace("good", "good 🎬")
    for word in _DRAW.choices(tiny.WORDS, k=300)
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT for the 128 tokens that classify.py takes by itself."""
    folder = tmp_path_factory.mktemp("bert")
    return tiny.save(folder, "bert", "masked-lm", max_position_embeddings=128)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 for the 80 new tokens that generate.py writes by itself."""
    folder = tmp_path_factory.mktemp("gpt2")
    return tiny.save(folder, "gpt2", "causal-lm", max_position_embeddings=128)


def test_mlm_on_a_txt(bert: Path, tmp_path: Path) -> None:
    cwd = tmp_path / "work"
    (tmp_path / "texts.txt").write_text("\n".join(REPEATED), encoding="utf-8")
    said = process.run_well(
        "mlm",
        *("--model_name_or_path", bert, "--train_file", tmp_path / "texts.txt"),
        *("--block_policy", "row"),
        *TOY,
        cwd=cwd,
    )
    run = process.only_run(cwd, "mlm")
    kept = {*process.RUN_FOLDER, "examples.json"}
    assert {p.name for p in run.iterdir()} == kept
    check_learnt(run, "masked_accuracy")
    assert "fill-mask" in said
    fill = pipeline("fill-mask", str(run / "model"), device="cpu")
    assert fill("the old [MASK] loses money")[0]["token_str"] in [*tiny.WORDS, "."]


@pytest.mark.parametrize("masking", ["whole_word", "span"])
def test_mlm_masks_words(bert: Path, tmp_path: Path, masking: str) -> None:
    """Two steps, and an evaluation on the labels of this kind of masks."""
    cwd = tmp_path / "work"
    lines = [text.replace("good", "zorgle") for text in tiny.sentences(60, seed=4)]
    (tmp_path / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    process.run_well(
        *("mlm", "--mlm_masking", masking, "--model_name_or_path", bert),
        *("--train_file", tmp_path / "texts.txt", "--max_steps", 2),
        *("--validation_file", tmp_path / "texts.txt", "--num_examples", 0),
        *("--allow", "leakage", "--logging_steps", 1, *process.QUICK),
        cwd=cwd,
    )
    run = process.only_run(cwd, "mlm")
    record = process.read_json(run / "run.json")
    assert record["status"] == "complete"
    asked = record["arguments"]["mlm_masking"]
    assert asked == {"value": masking, "from": "command line"}
    losses = process.losses(run)
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    ids = [i for line in lines for i in tokenizer(line)["input_ids"]]
    blocks = [ids[i : i + 32] for i in range(0, len(ids) - 31, 32)]
    data = Dataset.from_dict({"input_ids": blocks, "row": range(len(blocks))})
    found = process.read_json(run / "metrics.json")["eval"]["loss"]["n"]
    labels = {}
    for mode in ("token", masking):
        collator = SeededDataCollatorForLanguageModeling(tokenizer, mlm_masking=mode)
        batch = collator(list(fix_masks(data, collator)))
        labels[mode] = int((batch["labels"] != -100).sum())
    assert found == labels[masking] != labels["token"]


def test_settings_of_spans_are_refused_without_spans(bert: Path, tmp_path: Path):
    done = process.run(
        "mlm",
        *("--model_name_or_path", bert, "--train_file", "texts.txt"),
        *("--mlm_masking", "whole_word", "--geometric_p", 0.5),
        cwd=tmp_path / "work",
    )
    assert done.returncode == 2
    expected = "ConfigError: geometric_p without mlm_masking span has no effect"
    assert expected in done.stderr
    assert not list((tmp_path / "work").iterdir())


def check_learnt(run: Path, accuracy: str) -> None:
    """Check that the loss fell, and the numbers that were written down."""
    for path in run.rglob("*.json"):
        process.read_json(path)
    assert process.read_json(run / "run.json")["status"] == "complete"
    losses = process.losses(run)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0] - 0.3
    found = process.read_json(run / "metrics.json")
    before, after = found["before"], found["eval"]
    assert set(after) == {"loss", "perplexity", accuracy}
    assert after["loss"]["value"] < before["loss"]["value"] - 0.3
    assert after["loss"]["n"] == before["loss"]["n"] > 30
    for part in (before, after):
        expected = math.exp(part["loss"]["value"])
        assert part["perplexity"]["value"] == pytest.approx(expected)
        assert part["perplexity"]["stderr"] > 0
    assert min(process.losses(run, "eval_loss")) == after["loss"]["value"]


def test_the_command_after_mlm(bert: Path, tmp_path: Path) -> None:
    """A folder of txt; what is printed last trains a classifier on one's own rows."""
    cwd = tmp_path / "my work"
    for name, texts in {"a": REPEATED[:150], "b/c": REPEATED[150:]}.items():
        path = cwd / "texts" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(texts), encoding="utf-8")
    said = process.run_well(
        "mlm",
        *("--model_name_or_path", bert, "--train_file", "texts"),
        *("--sample_by", "line", "--output_dir", "first run", *TOY),
        *("--block_policy", "row"),
        cwd=cwd,
    )
    check_learnt(cwd / "first run", "masked_accuracy")
    following = said.splitlines()[-1].removeprefix("next").strip()
    words = shlex.split(following)
    assert (cwd / words[1]).samefile(process.RECIPES / "classify.py")
    rows = process.keyword_rows(["yes", "no"], ["good", "bad"], 60)
    lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
    (cwd / "LABELLED.csv").write_text("\n".join(lines))
    process.run_well("classify", *words[2:], "--max_steps", 2, cwd=cwd)
    run = process.only_run(cwd, "classify")
    assert process.read_json(run / "run.json")["status"] == "complete"


def test_generate_on_a_jsonl(gpt2: Path, tmp_path: Path) -> None:
    """Documents in jsonl, and the command that is printed last."""
    cwd = tmp_path / "work"
    lines = [json.dumps({"n": i, "content": text}) for i, text in enumerate(TEXTS)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    said = process.run_well(
        "generate",
        *("--do_train", "--do_eval", "--model_name_or_path", gpt2),
        *("--train_file", tmp_path / "texts.jsonl", "--output_dir", "run"),
        *("--prompt", "the old man", "--max_new_tokens", 12, *TOY),
        *("--num_return_sequences", 2),
        cwd=cwd,
    )
    run = cwd / "run"
    assert {p.name for p in cwd.iterdir()} == {"run"}
    kept = {*process.RUN_FOLDER, "examples.json"}
    assert {p.name for p in run.iterdir()} == kept
    check_learnt(run, "token_accuracy")
    assert "before [1] the old man" in said
    assert "after [2]  the old man" in said
    write = pipeline("text-generation", str(run / "model"), device="cpu")
    text = write("the old man", max_new_tokens=4)[0]["generated_text"]
    assert text.startswith("the old man")
    before = process.tree(cwd)
    words = shlex.split(said.splitlines()[-1].removeprefix("next").strip())
    assert (cwd / words[1]).samefile(process.RECIPES / "generate.py")
    said = process.run_well("generate", *words[2:], cwd=cwd)
    assert f"\n{words[words.index('--prompt') + 1]}" in said
    assert process.tree(cwd) == before


def test_generate_on_a_txt(gpt2: Path, tmp_path: Path) -> None:
    """One document of a txt; the last evaluation is on a text set aside."""
    draw = random.Random(5)
    (tmp_path / "book.txt").write_text(" ".join(draw.choices(TEXTS, k=200)), "utf-8")
    (tmp_path / "end.txt").write_text("\n\n".join(TEXTS[-20:]), "utf-8")
    process.run_well(
        "generate",
        *("--do_train", "--do_eval", "--do_predict", "--model_name_or_path", gpt2),
        *("--train_file", tmp_path / "book.txt", "--validation_file"),
        *(tmp_path / "end.txt", "--test_file", tmp_path / "end.txt"),
        *("--sample_by", "document", "--output_dir", "run", *TOY),
        cwd=tmp_path / "work",
    )
    found = process.read_json(tmp_path / "work" / "run" / "metrics.json")
    assert process.values(found["test"]) == process.values(found["eval"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "work" / "run" / "model")
    tokens = len(tokenizer("\n\n".join(TEXTS[-20:]))["input_ids"]) + 1
    blocks = tokens // 32
    assert found["test"]["loss"]["n"] == blocks * 31
