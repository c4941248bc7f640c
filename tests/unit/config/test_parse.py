"""Arguments: one vocabulary, the command line wins, every problem in one message."""

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from llmft.config import facts, fields
from llmft.config.convert import convert, duration
from llmft.config.facts import fields_of
from llmft.config.fields import (
    ClassificationDataArguments,
    GenerationDataArguments,
    GenerationModelArguments,
    MaskedLMDataArguments,
    ModelArguments,
)
from llmft.config.parse import parse
from llmft.config.rules import require_data, require_something_to_do
from llmft.errors import ConfigError, escape
from llmft.metrics import measures, tokens
from llmft.process import run_command
from llmft.tasks import generate

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
MEASURES = {"loss": False, "accuracy": True, "perplexity": False}


@dataclass
class AllData(MaskedLMDataArguments, ClassificationDataArguments):
    """The data arguments of every recipe."""


@pytest.fixture
def read(tmp_path):
    """Parse flags over an ``--args`` file, or over a recipe's default file."""

    def read(*flags, file=None, default=None, check=lambda values: []):
        def write(name, content):
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name).write_text(text, "utf-8")
            return tmp_path / name

        argv = [] if file is None else ["--args", str(write("a.json", file))]
        return parse(
            [*argv, *flags],
            GenerationModelArguments,
            AllData,
            description="What it does.",
            metrics=MEASURES,
            default_file=write("default.json", default) if default else None,
            check=check,
        )

    return read


@pytest.fixture
def problems(read):
    """The problems of a parse, which must fail with exit code 2."""

    def problems(*flags, **files):
        with pytest.raises(ConfigError) as caught:
            read(*flags, **files)
        assert caught.value.exit_code == 2
        assert all(p in str(caught.value) for p in caught.value.problems)
        return list(caught.value.problems)

    return problems


@pytest.mark.parametrize(
    ("flags", "name", "expected"),
    [
        ([], "max_seq_length", 64),
        (["--max_seq_length", "32"], "max_seq_length", 32),
        (["--max-seq-length=32"], "max_seq_length", 32),
        (["--prompt", "--- Chapter-1"], "prompt", ["--- Chapter-1"]),
        (
            ["--prompt", "--max-seq-length of a-b"],
            "prompt",
            ["--max-seq-length of a-b"],
        ),
        (["--no-ladder"], "ladder", False),
        (["--learning-rate", "1e-3"], "learning_rate", 1e-3),
        (["--no_ladder"], "ladder", False),
        (["--no-load-best-model-at-end"], "load_best_model_at_end", False),
        (["--do_train"], "do_train", True),
        (["--do_train", "no"], "do_train", False),
        (["--text_column_name", "my-text"], "text_column_name", "my-text"),
        (["--text_column_name", "None"], "text_column_name", None),
        (["--text_column_name="], "text_column_name", ""),
        (["--prompt", "a b", "c"], "prompt", ["a b", "c"]),
        (["--max_train_samples", "null"], "max_train_samples", None),
        (
            [
                *("--lr_scheduler_type", "cosine_with_restarts"),
                *("--lr_scheduler_kwargs", '{"num_cycles": 2}'),
            ],
            "lr_scheduler_kwargs",
            {"num_cycles": 2},
        ),
        (
            ["--do_train", "--resume_from_checkpoint", "a"],
            "resume_from_checkpoint",
            "a",
        ),
        (
            ["--do_train", "--output_dir", "x", "--resume_from_checkpoint"],
            "resume_from_checkpoint",
            True,
        ),
        (["--resume_from_checkpoint", "false"], "resume_from_checkpoint", False),
        (["--seed", "1", "--seed", "2"], "seed", 2),
        (["--debug"], "debug", []),
    ],
)
def test_the_command_line_wins(read, flags, name, expected):
    file = {"max_seq_length": 64, "max_train_samples": 5, "seed": 9}
    args = read(*flags, file=file)
    parts = (args.model, args.data, args.training)
    assert [getattr(p, name) for p in parts if hasattr(p, name)] == [expected]
    assert args.origins[name].endswith("command line" if flags else "a.json")


@pytest.mark.parametrize(
    ("flags", "file", "expected"),
    [
        (["--learing_rate", "1"], None, "unknown argument --learing_rate, did you"),
        (["--learing_rate=1"], None, "mean learning_rate?"),
        ([], {"max_seq_lenght": 9}, "unknown key 'max_seq_lenght', did you mean max_s"),
        ([], {"zzz": 9}, "a.json: unknown key 'zzz'"),
        (["word"], None, "unexpected 'word': every argument has a --name"),
        (["--seed", "3", "4"], None, "unexpected '4': every argument has a --name"),
        (["--seed"], None, "argument --seed: expected one argument; see --help"),
        (["--max_seq", "9"], None, "unknown argument --max_seq"),  # no abbreviations
        (["--seed", "1.5"], None, "seed is 1.5, expected a whole number"),
        (["--seed", "1e3"], None, "seed is 1e3, expected a whole number"),
        (["--learning_rate", "x"], None, "learning_rate is x, expected a number"),
        (["--learning_rate", "nan"], None, "learning_rate is nan, expected a finite"),
        ([], '{"weight_decay": Infinity}', "weight_decay is inf, expected a finite"),
        ([], '{"lr_scheduler_kwargs": {"x": [NaN]}}', "expected a finite number"),
        (["--lr_scheduler_kwargs", "{" * 10**5], None, "expected a JSON object"),
        (["--do_train", "maybe"], None, "do_train is maybe, expected true or false"),
        (["--precision", "fp8"], None, "precision is fp8, expected one of auto, fp32,"),
        (["--lr_scheduler_type", "x"], None, "expected one of linear, cosine,"),
        (["--lr_scheduler_kwargs", "{x"], None, "expected a JSON object (Expecting"),
        ([], {"max_seq_length": "8"}, 'max_seq_length is "8", expected a whole number'),
        ([], {"max_seq_length": True}, "max_seq_length is True, expected a whole numb"),
        ([], {"max_seq_length": 8.5}, "max_seq_length is 8.5, expected a whole number"),
        ([], {"seed": None}, "seed is None, expected a whole number"),
        ([], {"learning_rate": "1e-4"}, 'learning_rate is "1e-4", expected a number'),
        ([], {"learning_rate": True}, "learning_rate is True, expected a number"),
        ([], {"do_train": 1}, "do_train is 1, expected true or false"),
        ([], {"do_train": "true"}, 'do_train is "true", expected true or false'),
        ([], {"text_column_name": 5}, "text_column_name is 5, expected text or null"),
        ([], {"prompt": "one"}, 'prompt is "one", expected a list'),
        ([], '{"learning_rate": 1' + "0" * 400 + "}", "expected a finite number"),
        ([], {"prompt": [1]}, "prompt is [1], expected text"),
        ([], {"block_policy": "x"}, 'block_policy is "x", expected one of pack, row'),
    ],
)
def test_a_wrong_name_or_type(problems, flags, file, expected):
    said = problems(*flags, file=file)
    assert len(said) == 1
    assert expected in said[0]
    assert file is None or "a.json: " in said[0]


@pytest.mark.parametrize("encoding", ["klingon", "hex", "undefined", "a\0b", ""])
@pytest.mark.parametrize("delimiter", ["", "::", '"', "\n"])
def test_how_to_read_is_checked_with_the_rest(problems, encoding, delimiter):
    how = {"encoding": encoding, "delimiter": delimiter}
    said = problems("--seed", "x", file=how)
    assert [problem.rpartition("/")[2] for problem in said] == [
        f'a.json: encoding is "{escape(encoding)}", expected auto or an encoding that'
        " Python knows, such as utf-8, cp1252 (the ANSI of western Windows), gb18030,"
        " big5 or shift_jis",
        f'a.json: delimiter is "{escape(delimiter)}", expected one character, or tab',
        "seed is x, expected a whole number",
    ]


def test_a_label_delimiter_is_a_text():
    with pytest.raises(ValueError, match=re.escape("a text, such as '|'")):
        convert("", str | None, fields_of(AllData)["label_delimiter"].facts)


# Every number with a range, by which of -1 and 0 it refuses; all refuse nan and inf.
REFUSES_MINUS_AND_ZERO = """
 lora_r lora_alpha max_new_tokens top_p num_return_sequences max_seq_length
 max_train_samples max_eval_samples preprocessing_num_workers mlm_probability
 geometric_p max_span_length
 per_device_train_batch_size per_device_eval_batch_size num_train_epochs
 learning_rate adam_epsilon gradient_accumulation_steps logging_steps eval_steps
 save_steps eval_accumulation_steps save_total_limit num_threads
 early_stopping_patience dataloader_prefetch_factor torch_empty_cache_steps
 multi_label_threshold k_folds repetition_penalty max_nonfinite_steps""".split()
REFUSES_MINUS = """
 dropout lora_dropout top_k min_new_tokens no_repeat_ngram_size
 validation_split_percentage test_split_percentage num_examples num_mistakes
 warmup_steps weight_decay adam_beta1 adam_beta2 max_grad_norm label_smoothing_factor
 neftune_noise_alpha eval_delay seed data_seed dataloader_num_workers
 early_stopping_threshold max_bad_rows buffer_size stride contrastive_weight
 temperature""".split()
RANGED = REFUSES_MINUS_AND_ZERO + REFUSES_MINUS


def test_the_table_of_ranges_is_complete():
    classes = (GenerationModelArguments, AllData, fields.TrainingArguments)
    assert set(facts.fields_with("range", *classes)) == set(RANGED)
    assert len(set(RANGED)) == len(RANGED)


@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.parametrize(
    ("value", "refused"),
    [
        (-1, RANGED),
        (0, REFUSES_MINUS_AND_ZERO),
        (float("nan"), RANGED),
        (float("inf"), RANGED),
        (float("-inf"), RANGED),
    ],
)
def test_numbers_out_of_range(problems, value, refused, by_file):
    flags = [] if by_file else [f"--{n}={value}" for n in RANGED]
    file = dict.fromkeys(RANGED, value) if by_file else None
    said = problems(*flags, file=file)
    named = [p.removeprefix("a.json: ") for p in said if f" is {value}, expected " in p]
    assert sorted(p.split(" is ")[0].split()[-1] for p in named) == sorted(refused)


@pytest.mark.parametrize(
    ("name", "value", "span"),
    [
        ("mlm_probability", 1, "(0, 1)"),
        ("geometric_p", 1.01, "(0, 1]"),
        ("max_span_length", 1025, "[1, 1024]"),
        ("dropout", 1.0, "[0, 1)"),
        ("top_p", 1.01, "(0, 1]"),
        ("adam_beta1", 1, "[0, 1)"),
        ("adam_epsilon", 1.5, "(0, 1]"),
        ("learning_rate", 1e38, "(0, 100]"),
        ("seed", 4294967296, "[0, 4294967296)"),
        ("data_seed", 4294967296, "[0, 4294967296)"),
        ("num_threads", 10**9, "[1, 1024]"),
        ("dataloader_num_workers", 10**6, "[0, 1024]"),
        ("validation_split_percentage", 51, "[0, 50]"),
        ("max_seq_length", 7, "[8, inf)"),
        ("label_smoothing_factor", 1, "[0, 1)"),
    ],
)
def test_upper_and_lower_ends(read, problems, name, value, span):
    expected = f"{name} is {value}, expected a number in {span}"
    assert problems(f"--{name}={value}") == [expected]
    inside = {"(0, 1)": 0.99, "(0, 1]": 1, "[0, 50]": 50, "[8, inf)": 8}
    inside |= {"(0, 100]": 100, "[1, 1024]": 1024, "[0, 4294967296)": 4294967295}
    inside = inside.get(span, 0)
    read(f"--{name}={inside}")


@pytest.mark.parametrize(
    "name", ["max_steps", "num_train_epochs", "warmup_steps", "max_new_tokens"]
)
@pytest.mark.parametrize("value", ["3e300", "1" + "0" * 5000])
def test_numbers_that_no_library_takes(problems, name, value):
    (said,) = problems(f"--{name}={value}")
    assert said.startswith(f"{name} is {value[:40]}")
    assert "expected a" in said
    assert len(said) < 160


def test_text_that_is_not_utf8(read, problems):
    """A byte 0xff of a command line; names of files may have it."""
    (said,) = problems("--prompt", "a \udcff b")
    assert said == "prompt is a \\udcff b, expected text in UTF-8"
    (said,) = problems(file='{"prompt": ["\\ud800"]}')
    assert said.endswith("expected text in UTF-8")
    assert read("--train_file", "\udcff.txt").data.train_file == "\udcff.txt"


def test_all_problems_in_one_message(problems):
    file = {"max_seq_lenght": 9, "seed": "x", "learning_rate": -1}
    said = problems("--foo", "1", "--metric_for_best_model=bleu", file=file)
    assert [p.split(": ", 1)[-1].split(",")[0] for p in said] == [
        "unknown argument --foo",
        "unknown key 'max_seq_lenght'",
        'seed is "x"',
        "learning_rate is -1",
        "metric_for_best_model is bleu",
    ]
    assert str(ConfigError(*said)).startswith("ConfigError: 5 problems: unknown argu")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            "--do_train --eval_strategy no --early_stopping_patience 2",
            "early_stopping_patience needs eval_strategy steps or epoch",
        ),
        (
            "--train_file a.csv --dataset_config_name de --test_split_name x",
            "dataset_config_name is of dataset_name, not of files",
        ),
        (
            "--do_train --eval_strategy no --load_best_model_at_end",
            "load_best_model_at_end needs eval_strategy steps or epoch",
        ),
        (
            "--metric_for_best_model acuracy",
            "metric_for_best_model is acuracy, this task has loss, accuracy, perplexity"
            ", did you mean accuracy?",
        ),
        (
            "--do_train --eval_strategy steps --eval_steps 100 --save_steps 150",
            "save_steps (150) must be a multiple of eval_steps (100) where"
            " load_best_model_at_end is on",
        ),
        (
            "--do_train --eval_strategy steps --eval_steps 10 --save_steps 25",
            "save_steps (25) must be a multiple of eval_steps (10) where"
            " load_best_model_at_end is on",
        ),
        (
            "--do_train --eval_strategy steps --save_strategy epoch",
            "load_best_model_at_end needs the same eval_strategy and save_strategy,"
            " found steps and epoch",
        ),
        (
            "--metric_for_best_model accuracy --greater_is_better false",
            "greater_is_better is False for accuracy",
        ),
        (
            "--dataset_name a --train_file b",
            "dataset_name and train_file exclude each other",
        ),
        (
            "--dataset_name a --validation_file b --test_file c",
            "dataset_name and validation_file, test_file exclude each other",
        ),
        ("--bf16 --precision fp32", "bf16 and precision fp32 exclude each other"),
        (
            "--bf16 false --precision bf16",
            "bf16 false and precision bf16 exclude each other",
        ),
        (
            "--fp16",
            "fp16 needs a GPU and use_cpu false; on a CPU use precision bf16 or auto",
        ),
        (
            "--do_train --do_eval false --eval_strategy epoch",
            "do_eval false and eval_strategy epoch exclude each other",
        ),
        (
            "--do_train --eval_strategy no --save_strategy best",
            "save_strategy best needs eval_strategy steps or epoch",
        ),
        (
            "--do_train --eval_strategy no --eval_on_start",
            "eval_on_start needs eval_strategy steps or epoch",
        ),
        (
            "--resume_from_checkpoint a",
            "resume_from_checkpoint needs do_train; to use a checkpoint as it is, name"
            " it as model_name_or_path",
        ),
        (
            "--do_train --resume_from_checkpoint",
            "resume_from_checkpoint true needs output_dir, the run's folder",
        ),
        ("--time_limit 2m", "time_limit needs do_train"),
        (
            "--do_train --time_limit 2m --max_steps 3",
            "time_limit and max_steps exclude each other",
        ),
        (
            "--do_train --time_limit 2m --num_train_epochs 3",
            "time_limit and num_train_epochs exclude each other",
        ),
        ("--max_steps 0", "max_steps is 0, expected -1 or at least 1"),
        ("--max_steps -2", "max_steps is -2, expected -1 or at least 1"),
        (
            "--push_to_hub --hub_model_id me/x",
            "push_to_hub needs do_train, and hub_model_id, as owner/name",
        ),
    ],
)
def test_settings_that_do_not_fit_together(problems, flags, expected):
    assert problems(*flags.split()) == [expected]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", {"eval_strategy": "no", "save_strategy": "no"}),
        ("", {"load_best_model_at_end": False}),
        ("--do_train", {"eval_strategy": "epoch", "save_strategy": "epoch"}),
        ("--do_train", {"load_best_model_at_end": True, "early_stopping_patience": 3}),
        ("--do_train --do_eval no", {"eval_strategy": "no"}),
        ("--do_train --do_eval no", {"load_best_model_at_end": False}),
        (
            "--do_train --eval_strategy no",
            {"load_best_model_at_end": False, "early_stopping_patience": None},
        ),
        (
            "--do_train --eval_strategy steps --eval_steps 50",
            {"save_strategy": "steps", "save_steps": 50},
        ),
        (
            "--do_train --eval_strategy steps --eval_steps 50 --save_steps 100",
            {"save_strategy": "steps", "save_steps": 100},
        ),
        ("--metric_for_best_model accuracy", {"greater_is_better": True}),
        ("--bf16 false", {"bf16": False, "precision": "fp32"}),
        ("--bf16 false --precision auto", {"bf16": False, "precision": "fp32"}),
        ("--bf16", {"bf16": True, "precision": "bf16"}),
        ("--metric_for_best_model eval_perplexity", {"greater_is_better": False}),
        ("", {"metric_for_best_model": "loss", "greater_is_better": False}),
    ],
)
def test_defaults_that_follow(read, flags, expected):
    args = read(*flags.split())
    assert {n: getattr(args.training, n) for n in expected} == expected


DEFAULT = {
    "dataset_name": "pypi:x",
    "dataset_config_name": "reviews",
    "text_column_name": "old",
    "max_seq_length": 64,
    "do_train": True,
    "do_eval": True,
    "do_predict": True,
}


@pytest.mark.parametrize(
    ("flags", "source", "steps"),
    [
        ("", ("pypi:x", "reviews", "old"), "train eval predict"),
        ("--train_file t.csv", (None, None, None), "train eval"),
        ("--dataset_name imdb", ("imdb", None, None), "train eval"),
        ("--train_file t --test_file u", (None, None, None), "train eval predict"),
        ("--train_file t --test_split_percentage 5", (None,) * 3, "train eval predict"),
        ("--train_file t --text_column_name new", (None, None, "new"), "train eval"),
        ("--do_predict", ("pypi:x", "reviews", "old"), "predict"),
        ("--do_predict --test_file u", (None, None, None), "predict"),
        ("--do_train --do_eval", ("pypi:x", "reviews", "old"), "train eval"),
        ("--no_do_predict", ("pypi:x", "reviews", "old"), "train eval"),
        ("--do_train false", ("pypi:x", "reviews", "old"), "eval predict"),
        ("--model_name_or_path m --do_predict", (None,) * 3, "predict"),
        ("--model_name_or_path m --do_train false", (None,) * 3, "eval predict"),
        ("--model_name_or_path m", ("pypi:x", "reviews", "old"), "train eval predict"),
        (
            "--model_name_or_path m --do_predict --dataset_name pypi:x",
            ("pypi:x", None, None),
            "predict",
        ),
    ],
)
def test_what_replaces_the_default_file(read, flags, source, steps):
    args = read(*flags.split(), default=DEFAULT)
    data, training = args.data, args.training
    names = (data.dataset_name, data.dataset_config_name, data.text_column_name)
    assert names == source
    on = [s for s in ("train", "eval", "predict") if getattr(training, f"do_{s}")]
    assert " ".join(on) == steps
    assert data.max_seq_length == 64


def test_a_test_that_the_file_sets_aside_is_still_made(read):
    file = {"train_file": "a.csv", "test_split_percentage": 20, "do_train": True}
    args = read("--train_file", "b.csv", file={**file, "do_predict": True})
    assert (args.data.train_file, args.training.do_predict) == ("b.csv", True)


OWN = {
    **{"train_file": "a.csv", "validation_file": "b.csv", "text_column_name": "c"},
    **{"delimiter": ";", "do_train": True, "do_predict": True, "max_seq_length": 64},
}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            "--train_file t.csv",
            "--train_file replaces of {}: validation_file, text_column_name, delimiter,"
            " do_predict",
        ),
        (
            "--dataset_name x --text_column_name d --test_split_name t",
            "--dataset_name replaces of {}: train_file, validation_file, delimiter",
        ),
        ("--validation_file v.csv", None),
        ("--max_seq_length 32", None),
    ],
)
def test_what_a_flag_replaces_of_a_named_file_is_said(
    read, tmp_path, capsys, flags, said
):
    read(*flags.split(), file=OWN)
    note = f"note: {said}\n".format(tmp_path / "a.json") if said else ""
    assert capsys.readouterr().out == note
    read(*flags.split(), default={**OWN, "validation_file": None})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("by_file", [False, True])
def test_a_time_limit_replaces_the_epochs_of_a_file(read, tmp_path, capsys, by_file):
    file = {"do_train": True, "num_train_epochs": 7}
    if by_file:
        args = read(file={**file, "time_limit": "2m"})
    else:
        args = read("--time_limit", "2m", file=file)
    assert args.resolved()["num_train_epochs"] == {
        "value": 3.0,
        "from": "follows: time_limit",
    }
    note = f"note: time_limit replaces num_train_epochs of {tmp_path / 'a.json'}\n"
    assert capsys.readouterr().out == note
    assert read("--do_train", "--time_limit", "9").training.num_train_epochs == 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("90", 90),
        ("5m", 300),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h1m1s", 3661),
        ("0.5h", 1800),
        *(
            (wrong, None)
            for wrong in ("", "0", "-5", "2 d", "30m1h", "m", "1h30", "nan")
        ),
        *((wrong, None) for wrong in ("9" * 400, "1e3", "2M")),
    ],
)
def test_durations(problems, text, seconds):
    if seconds is not None:
        assert duration(text) == seconds
        return
    expected = "expected a time such as 90s, 5m, 2h or 1h30m, or seconds"
    (problem,) = problems("--do_train", f"--time_limit={text}")
    assert problem.startswith("time_limit is ")
    assert problem.endswith(expected)


def test_flags_of_lists(read):
    args = read(*"--prompt a --prompt b c --lora_target_modules none".split())
    assert (args.model.prompt, args.model.lora_target_modules) == (
        ["a", "b", "c"],
        None,
    )
    args = read(*"--report_to none --class_weights a=1 --class_weights b=2".split())
    assert (args.training.report_to, args.data.class_weights) == ([], ["a=1", "b=2"])


@pytest.mark.parametrize(
    ("flags", "save", "evaluate"),
    [
        ("--save_steps 20", ("steps", 20), ("steps", 20)),
        ("--eval_steps 5", ("steps", 5), ("steps", 5)),
        ("--save_steps 20 --eval_steps 5", ("steps", 20), ("steps", 5)),
        ("--save_steps 9 --no_load_best_model_at_end", ("steps", 9), ("epoch", None)),
        ("--save_steps 9 --do_eval false", ("steps", 9), ("no", None)),
        ("--eval_strategy epoch", ("epoch", 500), ("epoch", None)),
    ],
)
def test_steps_that_are_given_are_heeded(read, flags, save, evaluate):
    training = read("--do_train", *flags.split()).training
    assert (training.save_strategy, training.save_steps) == save
    assert (training.eval_strategy, training.eval_steps) == evaluate


def test_steps_of_a_file_that_the_user_named_stay(read):
    args = read("--do_predict", file={"do_train": True}, default=DEFAULT)
    assert (args.training.do_train, args.training.do_predict) == (True, True)
    assert args.data.dataset_name is None


@pytest.mark.parametrize(
    ("flags", "file", "size", "finds"),
    [
        (["--per_device_train_batch_size", "auto"], {}, 8, True),
        (["--per_device_train_batch_size", "auto"], 16, 16, True),
        (["--per_device_train_batch_size", "4"], "auto", 4, False),
        ([], "auto", 8, True),
        (["--auto_find_batch_size"], 16, 16, True),
    ],
)
def test_a_batch_size_that_is_found(read, flags, file, size, finds):
    given = {"per_device_train_batch_size": file} if file else {}
    training = read("--do_train", *flags, file=given).training
    assert training.per_device_train_batch_size == size
    assert training.auto_find_batch_size is finds


@pytest.mark.parametrize(
    ("flags", "file", "default", "given"),
    [
        ([], {}, {}, []),
        (["--learning_rate", "auto"], {"learning_rate": 1.0}, {}, []),
        ([], {"learning_rate": "auto"}, {}, []),
        (["--learning_rate", "0.1"], {"learning_rate": "auto"}, {}, ["learning_rate"]),
        ([], {}, {"num_train_epochs": 2}, ["num_train_epochs"]),
        (["--train_file", "x"], {}, {"num_train_epochs": 2}, []),
        (["--model_name_or_path", "x"], {}, {"learning_rate": 2}, []),
        (["--train_file", "x"], {"num_train_epochs": 2}, {}, ["num_train_epochs"]),
    ],
)
def test_what_follows_from_the_data(read, flags, file, default, given):
    """Where none is given, also for data or a model of one's own, it is ``auto``."""
    args = read("--do_train", *flags, file=file or None, default=default)
    names = ("learning_rate", "num_train_epochs")
    assert [name for name in names if name in args.origins] == given


@pytest.mark.parametrize("flag", ["--hub_token", "--hub-token"])
def test_a_secret_is_not_taken(problems, flag):
    said = ["hub_token would be seen by other users of this machine: set HF_TOKEN"]
    assert problems(flag, "hf_secret") == said


def test_resolved_tells_origins(read, tmp_path):
    given = {"do_train": True, "max_seq_length": 64}
    resolved = read("--seed", "7", file=given).resolved()
    assert json.dumps(resolved, allow_nan=False)
    assert resolved["seed"] == {"value": 7, "from": "command line"}
    file = str(tmp_path / "a.json")
    assert resolved["max_seq_length"] == {"value": 64, "from": file}
    assert resolved["learning_rate"] == {"value": 5e-5, "from": "default"}
    assert resolved["eval_strategy"] == {"value": "epoch", "from": "default"}
    follows = "follows: direction of loss"
    assert resolved["greater_is_better"] == {"value": False, "from": follows}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"seed": 1, "seed": 2}', "'seed' stands there twice"),
        ('{"seed": 1,}', "not JSON: line 1 column 1"),
        ("[1]", "not a JSON object of argument names and values"),
        (b'{"a": "\xff"}', "not UTF-8; save it as UTF-8"),
        ('{"lr_scheduler_kwargs": ' + "[" * 10**5, "nested too deeply"),
        ('{"seed": ' + "1" * 5000 + "}", "not JSON: Exceeds the limit"),
        (None, "cannot read it: No such file or directory"),
        ("folder", "cannot read it: Is a directory"),
    ],
)
def test_a_file_that_is_no_arguments(problems, tmp_path, content, expected):
    path = tmp_path / "args.json"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = problems("--args", str(path))
    assert len(said) == 1
    assert said[0].startswith(expected)


def test_help(read, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    default = {"do_train": True, "max_seq_length": 99}
    assert run_command(lambda argv: read(*argv, default=default), ["--help_all"]) == 0
    said = capsys.readouterr().out
    assert "What it does." in said
    places = [said.index(f"\n{title}") for title in ("Model:", "Data:", "Training:")]
    rest = "\nEverything else of transformers.TrainingArguments:"
    places.append(said.index(rest))
    assert places == sorted(places)
    entries = [" ".join(e.split()) for e in said.split("\n  --")[1:]]
    shown = {"--" + entry.split()[0]: entry for entry in entries}
    assert "(default: 99)" in shown["--max_seq_length"]
    assert "(default: True)" in shown["--do_train"]
    assert "(default: auto)" in shown["--learning_rate"]
    assert "(default: 1.0)" in shown["--max_grad_norm"]
    assert shown["--attn_implementation"].endswith("One of eager, sdpa.")
    order = list(shown)
    assert order.index("--dropout") < order.index("--train_file")
    assert order.index("--train_file") < order.index("--do_train")
    assert order.index("--dry_run") < order.index("--adam_beta1")


def test_help_shows_what_people_need_and_help_all_the_rest(read, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    said = {}
    for asked in ("--help", "--help_all", "--help-all"):
        with pytest.raises(SystemExit):
            read(asked)
        said[asked] = capsys.readouterr().out
    assert said["--help_all"] == said["--help-all"]
    some, every = (
        [entry.split()[0] for entry in said[asked].split("\n  --")[1:]]
        for asked in ("--help", "--help_all")
    )
    assert {*some} < {*every}
    assert len(some) < 50 < 100 < len(every)
    assert f"all {len(every) - 2} arguments" in said["--help"]  # but --args, itself
    assert {"train_file", "time_limit"} < {*some}
    assert "adam_beta1" not in some


@pytest.mark.parametrize("asked", ["--help", "--help_all"])
def test_help_is_readable_at_80_columns(read, capsys, monkeypatch, asked):
    monkeypatch.setenv("COLUMNS", "80")
    command = "python recipes/mlm.py --train_file " + "x" * 60
    description = f"What it does. {'word ' * 20}\n\n{command}\npython recipes/x.py\n"
    with pytest.raises(SystemExit):
        parse([asked], ModelArguments, AllData, description=description, metrics={})
    said = capsys.readouterr().out
    lines = said.splitlines()
    start = lines.index(command)
    assert lines[2].startswith("What it does. word word")
    assert lines[start - 1 : start + 3] == ["", command, "python recipes/x.py", ""]
    assert lines[start + 3] == "options:"
    assert [line for line in lines if len(line) > 80] == [command]
    assert "deepspeed" not in said


def test_the_checks_of_the_recipes(problems, read):
    def check(values):
        return require_data(values) + require_something_to_do(values)

    assert problems(check=check) == [
        "no data: give --dataset_name or --train_file",
        "nothing to do: give --do_train, --do_eval or --do_predict; in a JSON file, add"
        ' "do_train": true',
    ]
    assert problems("--do_train", "--test_file", "t", check=check) == [
        "test_file is of --do_predict: add it",
        "do_train needs --dataset_name or --train_file",
    ]
    for step, file in (("predict", "test"), ("eval", "validation"), ("train", "train")):
        found = problems(f"--do_{step}", check=check)
        assert found[0] == f"no data: give --dataset_name or --{file}_file"
    missing = problems(
        "--model_name_or_path=", "--do_eval", "--train_file=t", check=check
    )
    assert missing == ["model_name_or_path is missing: a folder, hub id or pypi:NAME"]
    read("--do_predict", "--test_file", "t", check=check)


def test_data_that_no_step_would_use():
    names = "dataset_name train_file validation_file test_file do_train do_eval"
    values = dict.fromkeys([*names.split(), "do_predict"])
    values |= {
        "min_new_tokens": 0,
        "max_new_tokens": 5,
        "prompt_file": None,
        "output_file": None,
        "prompt": ["Once"],
    }
    values |= {"lora_r": None, "lora_alpha": None, "lora_save": "merged"}
    values |= {"do_sample": True, "temperature": 1.0, "num_return_sequences": 1}
    assert generate.check({**values, "train_file": "a.txt"}) == [
        "train_file is used by --do_train, --do_eval or --do_predict only"
    ]
    assert generate.check(values) == []
    for greedy, off in (
        ("do_sample", "do_sample off"),
        ("temperature", "temperature 0"),
    ):
        assert generate.check({**values, greedy: 0, "num_return_sequences": 2}) == [
            f"num_return_sequences is 2 with {off}: the texts would be the same; use 1,"
            " or sample"
        ]
        assert generate.check({**values, greedy: 0}) == []
    assert generate.check({**values, "lora_alpha": 4}) == [
        "lora_alpha without lora_r has no effect"
    ]
    assert generate.check({**values, "lora_r": 4}) == [
        "lora_r is of training: add --do_train"
    ]
    assert generate.check({**values, "chat_template_path": "a.jinja"}) == [
        "chat_template_path needs --apply_chat_template, or data"
    ]


TASKS = {
    "mlm": (ModelArguments, MaskedLMDataArguments, tokens.MASKED_LM),
    "classify": (ModelArguments, ClassificationDataArguments, measures.CLASSES),
    "generate": (
        GenerationModelArguments,
        GenerationDataArguments,
        tokens.CAUSAL_LM,
    ),
}
SHIPPED = sorted(RECIPES.rglob("*.json"))


def task_of(path):
    own = path.parent.name == "custom_dataset"
    return "classify" if own else path.stem.split("_")[0]


def test_recipes_are_shipped():
    assert len(SHIPPED) >= 7
    assert {task_of(path) for path in SHIPPED} == TASKS.keys()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_is_valid(path):
    model, data, measures = TASKS[task_of(path)]
    args = parse(
        ["--args", str(path)],
        model,
        data,
        description="",
        metrics=measures,
        check=lambda values: require_data(values) + require_something_to_do(values),
    )
    resolved = args.resolved()
    for name, value in json.loads(path.read_text()).items():
        assert resolved[name] == {"value": value, "from": str(path)}


@pytest.mark.parametrize("data", [MaskedLMDataArguments, ClassificationDataArguments])
def test_a_minimal_file_of_ones_own(data, tmp_path):
    """What has no default is the model, the data and what to do."""

    def read(**values):
        (tmp_path / "own.json").write_text(json.dumps(values))
        return parse(
            ["--args", str(tmp_path / "own.json")],
            ModelArguments,
            data,
            description="What it does.",
            metrics=MEASURES,
            check=lambda v: require_data(v) + require_something_to_do(v),
        )

    own = {"model_name_or_path": "folder", "train_file": "notes.txt"}
    with pytest.raises(ConfigError, match=r'nothing to do: .*, add "do_train": true$'):
        read(**own)
    args = read(**own, do_train=True)
    assert (args.training.do_train, args.training.do_predict) == (True, False)
    assert args.training.do_eval  # follows from eval_strategy, in transformers
    assert args.training.eval_strategy == "epoch"
    assert args.training.load_best_model_at_end


def test_a_recipe_has_defaults_of_its_own(capsys, monkeypatch):
    """A partial: its keywords are defaults, shown by --help, and given they are not."""
    monkeypatch.setenv("COLUMNS", "300")

    class Own(fields.TrainingArguments):
        """A class of its own, too."""

    own = partial(Own, seed=7, save_total_limit=1)

    def read(*argv):
        return parse(
            list(argv), ModelArguments, AllData, own, description="", metrics=MEASURES
        )

    args = read("--save_total_limit", "5")
    assert (args.training.seed, args.training.save_total_limit) == (7, 5)
    assert type(args.training) is Own
    assert args.resolved()["seed"] == {"value": 7, "from": "default"}
    assert args.command == ["--save_total_limit", "5"]
    with pytest.raises(SystemExit):
        read("--help")
    assert "(default: 7)" in capsys.readouterr().out


def test_epochs_of_a_flag_win_over_steps_of_the_file(read, tmp_path, capsys):
    file, epochs = {"do_train": True, "max_steps": 500}, ("--num_train_epochs", "3")
    args = read(*epochs, file=file)
    assert (args.training.max_steps, args.training.num_train_epochs) == (-1, 3)
    said = f"note: --num_train_epochs replaces of {tmp_path / 'a.json'}: max_steps"
    assert said in capsys.readouterr().out
    assert read(*epochs, "--max_steps", "2", file=file).training.max_steps == 2


def test_nothing_saved_in_training_is_asked_for_alone(read):
    training = read("--do_train", "--save_strategy", "no").training
    assert training.save_strategy == "no"
    assert training.load_best_model_at_end is False
    assert training.early_stopping_patience is None
    assert training.eval_strategy == "epoch"
