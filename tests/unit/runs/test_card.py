import os

import pytest
from huggingface_hub import ModelCard

from llmft.runs.card import model_card


def entry(value, stderr, split="test", n=200):
    return {"value": value, "stderr": stderr, "split": split, "n": n}


def record(model, **values):
    values = {"max_seq_length": 64, "learning_rate": 2e-4, "seed": 1, **values}
    sources = {"train": "/home/me/a|b.csv", "test": "../<i>.csv"}
    return {
        "recipe": "classify",
        "model": model,
        "arguments": {n: {"value": v, "from": "default"} for n, v in values.items()},
        "versions": {"llmft": "1", "transformers": "5"},
        "cpu": {"name": "a CPU", "cores": 2},
        "choices": {"precision": {"value": "bf16", "reason": "faster"}},
        "data": {
            split: {"source": name, "rows": 3000, "notes": ["duplicates: 2"]}
            for split, name in sources.items()
        },
    }


@pytest.mark.parametrize(
    ("model", "tag", "base", "license"),
    [
        ({"name": "org/a", "commit": "abc"}, "fill-mask", "org/a", None),
        ({"name": "pypi:all-MiniLM-L6-v2"}, "fill-mask", None, "apache-2.0"),
        ({"name": "pypi:gemma-3-270m"}, "text-generation", None, "gemma"),
        ({"name": "../a: [b"}, "text-generation", None, None),
    ],
)
def test_the_front_matter_is_what_the_hub_reads(model, tag, base, license):
    found = {"eval": {"loss": entry(0.5, 0.01, "validation")}}
    text = model_card("Classes one\ntwo", tag, found, record(model))
    card = ModelCard(text)
    assert (card.data.pipeline_tag, card.data.base_model) == (tag, base)
    assert card.data.license == license
    assert "\n# Classes one\\ntwo\n" in card.text


def test_results_are_a_model_index_with_intervals():
    found = {
        "before": {"loss": entry(9.0, 0.1)},
        "test": {"accuracy": entry(0.8, 0.02), "loss": entry(None, None)},
        "test_without_shared": {"accuracy": entry(0.75, 0.02, n=180)},
        "run": {"steps": 1200, "epochs": 2.5, "train_seconds": 61.2},
    }
    text = model_card("Title", "text-classification", found, record({"name": "m"}))
    results = ModelCard(text).data.eval_results
    assert [(r.metric_type, r.metric_value, r.dataset_split) for r in results] == [
        ("accuracy", 0.8, "test"),
        ("accuracy", 0.75, "test"),
    ]
    assert results[0].dataset_name == "<i>.csv"
    inside = {"n": 200, "interval_95": [0.739144, 0.849549], "part": "test"}
    assert results[0].metric_args == inside
    assert "| test | accuracy | 0.8 | 0.7391 to 0.8495 | 200 |" in text
    assert "| test | loss | not finite | - | 200 |" in text
    assert "| test, without rows that train has, too | accuracy | 0.75 |" in text
    assert "| test, before training | loss | 9 |" in text
    assert "1,200 steps, 2.5 epochs, 61 s of training." in text


def test_the_card_names_no_folder_and_escapes_what_is_markup():
    values = {"output_dir": "/secret/run", "train_file": "/home/me/a|b.csv"}
    names = "/home/me/models/base", "secret/models/base/", "C:\\secret\\base", "base"
    for name in names:
        said = model_card("Title", "fill-mask", {}, record({"name": name}))
        assert "Made from `base` by llmft 1" in said
    model = {"name": "/home/me/models/base"}
    text = model_card("<b>", "fill-mask", {}, record(model, **values))
    assert "/home" not in text
    assert "secret" not in text
    assert "Made from `base` by llmft 1" in text
    assert "| train | a&#124;b.csv | 3,000 | duplicates: 2 |" in text
    assert "| test | &#60;i>.csv | 3,000 |" in text
    assert "\n# &#60;b>\n" in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("/home/me/notes", "/home/me/notes/a.csv"),
        ("/home/me/notes/a.csv", "/home/me/notes/a.csv"),
        ("own/notes/*.csv", "own/notes/a.csv"),
        ("~/notes/a.csv", "~/notes/a.csv"),
    ],
)
def test_what_is_told_of_rows_names_no_folder(given, said, monkeypatch):
    monkeypatch.setenv("HOME", "/home/you")
    said = os.path.expanduser(said)  # as files are opened
    model = record({"name": "m"}, train_file=given)
    model["data"]["train"] |= {"source": given, "notes": [f"1 bad row ({said}:17)"]}
    weak = [{**SEGMENT, "what": "file", "name": said}]
    found = {"weak_segments": [*weak, {**SEGMENT, "what": f"lines of {said}"}]}
    text = model_card(f"Masked LM on {given}", "fill-mask", found, model)
    for folder in ("/home", "own/", "~"):
        assert folder not in text
    assert "1 bad row (" in text
    assert "a.csv:17)" in text
    assert "a.csv: mistakes 0.31 " in text
    # Classes that look like paths are no folders.
    own = {**SEGMENT, "what": "label", "name": "own/notes/x"}
    title = "Text classifier for own/notes/x, b"
    text = model_card(title, "text-classification", {"weak_segments": [own]}, model)
    assert f"# {title}" in text
    assert "rows of label own/notes/x: " in text


def test_what_validation_did_not_choose_is_not_said_to_be_chosen():
    found = {"eval": {"accuracy": entry(0.8, 0.02, "validation")}}
    assert "also chose" not in model_card(
        "T", "fill-mask", found, record({"name": "m"})
    )
    best = record({"name": "m"}, load_best_model_at_end=True)
    assert "also chose" in model_card("T", "fill-mask", found, best)
    probe = [{"name": "linear probe", "value": 0.7, "stderr": 0.03}]
    found["ladder"] = {**LADDER, "rungs": probe + LADDER["rungs"]}
    assert "also chose" in model_card("T", "fill-mask", found, record({"name": "m"}))


LADDER = {
    "metric": "accuracy",
    "n": 200,
    "saved": "fine-tuned",
    "rungs": [
        {
            "name": "TF-IDF",
            "value": 0.7,
            "stderr": 0.03,
            "below": {"value": 0.1, "stderr": 0.02},
        },
        {"name": "fine-tuned", "value": 0.8, "stderr": 0.02},
    ],
}
SEGMENT = {
    "of": "mistakes",
    "what": "length in words",
    "name": "20 to 40",
    "n": 120,
    "value": 0.31,
    "rest": 0.12,
    "limits": (0.25, 0.37),
    "chance": 0.0001,
}
WEAK = {
    "never_predicted": {"Rare": 3},
    "few_training_rows": {"Rare": 3},
    "what_helps": ["more rows of them"],
}


@pytest.mark.parametrize(
    ("metrics", "values", "lines"),
    [
        (
            {"ladder": LADDER},
            {},
            ["| TF-IDF | 0.7 | +0.1000 +- 0.02 |", "| fine-tuned | 0.8 | this model |"],
        ),
        (
            {"weak_classes": WEAK, "shared_with_train": {"test": 7}},
            {"long_text": "truncate"},
            [
                "- Never predicted (training rows): 'Rare' (3).",
                "- Fewer than 5 training rows: 'Rare' (3).",
                "- 7 rows of test are in the training data, too.",
                "- Examples had at most 64 tokens; of longer texts the rest was not",
            ],
        ),
        (
            {"eval": {"calibration_error": entry(0.1234, 0.01, "validation")}},
            {"early_stopping_patience": 3},  # says when the last weights are taken
            [
                "- There was no test set: validation also chose what is saved",
                "- Its probabilities are off by 0.123 on average",
                "- Examples had at most 64 tokens.",
            ],
        ),
        (
            {"weak_segments": [SEGMENT]},
            {},
            [
                "- It is weaker on rows of length in words 20 to 40: mistakes 0.31"
                " (0.25 to 0.37, n 120), elsewhere 0.12."
            ],
        ),
        ({}, {}, ["- Nothing was measured on rows that the model had not seen."]),
        (
            {},
            {"num_train_epochs": 3.0, "max_steps": -1},
            ["| num_train_epochs | 3.0 |"],
        ),
        ({}, {"class_weights": ["a/c=2", "b=1"]}, ["| class_weights | a/c=2, b=1 |"]),
        ({"test": {"f1_micro": entry(1.0, 0.0)}}, {}, ["| f1_micro | 1 | - | 200 |"]),
        ({}, {}, ["| precision | bf16 |", "| learning_rate | 0.0002 |"]),
    ],
)
def test_what_the_run_knows_stands_in_the_card(metrics, values, lines):
    said = record({"name": "m"}, **values)
    text = model_card("Title", "text-classification", metrics, said)
    assert [line for line in lines if line not in text] == []


def test_hostile_labels_are_no_markup():
    weak = {**WEAK, "never_predicted": {"![x](http://e/p.png)": 3, "`a`": 1}}
    title = "<script>\u202e" + "x" * 999
    found = {"weak_classes": weak, "test": {"loss": entry(0.5, 0.01)}}
    text = model_card(title, "fill-mask", found, record({"name": "m"}))
    card = ModelCard(text)
    assert "![x]" not in text
    assert "\u202e" not in text
    assert 200 <= len(card.data.model_name) < 210
    assert "<script>" not in card.text


def test_what_the_run_does_not_know_does_not_stand_there():
    said = record({"name": "m"}, max_steps=5, num_train_epochs=3.0)
    text = model_card("Title", "fill-mask", {}, said)
    for absent in (
        "num_train_epochs",
        "calibration",
        "simpler methods",
        "lora",
        "None",
    ):
        assert absent not in text
