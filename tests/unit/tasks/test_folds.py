"""Cross-validation: what the folds give, and going on after a stop."""

import json
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from scipy.special import log_softmax

from llmft.config.choice import Choice
from llmft.config.fields import (
    ClassificationDataArguments,
    ClassificationModelArguments,
    TrainingArguments,
)
from llmft.config.parse import Arguments
from llmft.console import warn
from llmft.data.read.labels import LabelNames
from llmft.errors import CheckpointError, DataError, EnvironmentFault
from llmft.files import write_json
from llmft.metrics.classes import Regression
from llmft.metrics.folds import together
from llmft.metrics.ladder import Rung
from llmft.runs import listing
from llmft.runs.record import find_runs, read_run
from llmft.tasks.folds import cross_validate
from llmft.tasks.ladder import PROBE, TUNED
from llmft.tasks.prepare import read_splits
from llmft.train.agreement import AlreadyComplete

ROWS, FOLDS = 50, 5
NAMES = LabelNames(("no", "yes"))


class Stopped(Exception):
    """Stands for whatever ends a process."""


class Recipe:
    """Stands for the training: what it says follows from the text alone."""

    def __init__(
        self, tuned=0.7, probe=0.5, stops_in=None, leaves_run=None, stop=Stopped, **more
    ):
        self.stop, self.more = stop, more
        self.leaves_run = leaves_run  # the status that the last training ends with
        self.right = {TUNED: tuned, PROBE: probe}  # share of texts it knows
        self.stops_in, self.calls = stops_in, []

    def __call__(self, args):
        parts = read_splits(args, needs_label=True).parts
        self.calls.append((args, parts))
        if self.stops_in is not None and len(self.calls) > self.stops_in:
            raise self.stop
        if args.fold.place is None:
            if self.leaves_run:
                folder = Path(args.training.output_dir)
                write_json(folder / "run.json", {"status": self.leaves_run})
                (folder / "checkpoints").mkdir()
                for name in self.more.get("leaves", ()):
                    (folder / name).mkdir()
                if self.leaves_run == "running" or self.more.get("fails"):
                    raise Stopped
            ladder = SimpleNamespace(saved=args.fold.keep, labels=NAMES)
            return "the last plan", ladder
        test = parts["test"]
        known = np.array([NAMES.names.index(label) for label in test["label"]])
        rungs = [Rung(n, self.scores(n, test["text"], known), 1.0) for n in self.right]
        if args.fold.place == 0 and args.data.long_text == "auto":
            args.data.long_text = "split"
        choices = [Choice("precision", "bf16", "tried"), Choice("threads", "2", "")]
        choices += [Choice("epochs", "20", ""), Choice("rate", "0.0001", "")]
        ladder = SimpleNamespace(references=known, rungs=rungs)
        return SimpleNamespace(choices=choices), ladder

    def scores(self, name, texts, known):
        found = np.zeros((len(texts), 2))
        for row, (text, label) in enumerate(zip(texts, known, strict=True)):
            number = int(text.split()[-1].rstrip("."))
            right = number % 10 < 10 * self.right[name]
            found[row, label if right else 1 - label] = 1 + number / 100
        return found


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return the folders of two models."""
    root = tmp_path_factory.mktemp("models")
    return [tiny.save(root / kind, kind, "masked-lm") for kind in ("bert", "roberta")]


@pytest.fixture
def asked(tmp_path, models, monkeypatch):
    """Return the arguments of a cross-validation of 50 rows in a folder."""
    monkeypatch.setenv("LLMFT_HOME", str(tmp_path / "home"))
    file = tmp_path / "train.csv"
    texts = [f"{t[:-1]} {i}." for i, t in enumerate(tiny.sentences(ROWS))]
    lines = [f"{text},{'yes' if i % 3 else 'no'}" for i, text in enumerate(texts)]
    file.write_text("\n".join(["text,label", *lines, ""]))

    def asked(model=models[0], **changes):
        data = ClassificationDataArguments(
            train_file=str(file), k_folds=FOLDS, **changes
        )
        folder = str(tmp_path / "run")
        training = TrainingArguments(
            folder, report_to="none", do_train=True, num_threads=1
        )
        model_args = ClassificationModelArguments(str(model))
        return Arguments(model_args, data, training, {}, [])

    return asked


def result(recipe):
    """Return what the last training is told to keep, and of the folds."""
    args, _ = recipe.calls[-1]
    return args.fold.keep, args.fold.results


def predicted(folder):
    return [json.loads(x) for x in (folder / "predictions.jsonl").open()]


def test_the_folds_together(asked, tmp_path):
    recipe = Recipe()
    assert cross_validate(recipe, asked()) == "the last plan"
    keep, results = result(recipe)
    assert keep == TUNED
    folds, last = recipe.calls[:-1], recipe.calls[-1]
    assert [args.fold.place for args, _ in folds] == [*range(FOLDS)]
    texts = [text for _, parts in folds for text in parts["test"]["text"]]
    assert sorted(texts) == sorted(last[1]["train"]["text"])
    # The same, computed by the row.
    labels = dict(zip(*(last[1]["train"][n] for n in ("text", "label")), strict=True))
    known = np.array([NAMES.names.index(labels[text]) for text in texts])
    scores = recipe.scores(TUNED, texts, known)
    right, nll = scores.argmax(1) == known, -log_softmax(scores, 1)
    nll = nll[np.arange(ROWS), known]
    accuracy = results["all"]["metrics"]["accuracy"]
    assert accuracy["value"] == pytest.approx(right.mean()) == 0.7
    assert results["all"]["metrics"]["log_loss"]["value"] == pytest.approx(nll.mean())
    each = [r.mean() for r in right.reshape(FOLDS, -1)]
    assert accuracy["mean"] == pytest.approx(np.mean(each))
    assert accuracy["deviation"] == pytest.approx(np.std(each, ddof=1))
    low, high = accuracy["interval"]
    plain = 1.96 * np.sqrt(0.7 * 0.3 / ROWS)  # of a binomial number
    assert high - low == pytest.approx(2 * 1.5 * plain, rel=0.1)
    assert results["run"]["folds_accuracy"] == accuracy["value"]
    rungs = {r["name"]: r["value"] for r in results["all"]["ladder"]["rungs"]}
    assert rungs == pytest.approx({TUNED: 0.7, PROBE: 0.5})
    # What a row is said to be, as it stands in the file.
    rows = predicted(tmp_path / "run")
    assert [row["text"] for row in rows] == texts
    by_text = {t: i for i, t in enumerate(last[1]["train"]["text"])}
    assert [row["row"] for row in rows] == [by_text[text] for text in texts]
    assert [row["fold"] for row in rows] == [f for f in range(1, 6) for _ in range(10)]
    assert {row["split"] for row in rows} == {"train"}
    assert [row["label"] == row["prediction"] for row in rows] == right.tolist()


def test_the_better_method_on_the_rows_held_out_is_kept(asked, tmp_path):
    recipe = Recipe(tuned=0.5, probe=0.6)
    cross_validate(recipe, asked())
    keep, results = result(recipe)
    assert (keep, results["run"]["folds_accuracy"]) == (PROBE, pytest.approx(0.6))
    hits = [row["label"] == row["prediction"] for row in predicted(tmp_path / "run")]
    assert np.mean(hits) == pytest.approx(0.6)


def test_classes_of_the_rows_held_out_are_shown(asked, tmp_path, capsys):
    """Also one that no fold says of any row."""

    class Never(Recipe):
        def scores(self, name, texts, known):
            return np.tile([0.0, 1.0], (len(texts), 1))

    recipe = Never()
    cross_validate(recipe, asked())
    known = [row["label"] for row in predicted(tmp_path / "run")]
    no, out = known.count("no"), capsys.readouterr().out
    assert re.search(rf"classes, on the rows held out\n.*\n +no +0.000 .* {no}\n", out)
    assert f"never predicted (training rows): 'no' ({no})\n" in out
    assert "most confident mistakes, " in out
    weak = result(recipe)[1]["all"]["weak_classes"]
    assert weak["never_predicted"] == {"no": no}


def test_the_trainings_choose_by_no_validation(asked):
    recipe = Recipe()
    args = asked()
    cross_validate(recipe, args)
    for made, parts in recipe.calls:
        training = made.training
        assert "validation" not in parts
        assert (training.eval_strategy, training.save_strategy) == ("no", "no")
        assert not training.load_best_model_at_end
        assert training.early_stopping_patience is None
    precisions = [made.training.precision for made, _ in recipe.calls]
    assert precisions == ["auto", *["bf16"] * FOLDS]  # as the first fold chose
    assert args.training.precision == "auto"  # what was asked stays as it is
    for made, _ in recipe.calls[1:]:
        training = made.training
        assert (training.num_train_epochs, training.learning_rate) == (20.0, 1e-4)
        assert made.origins["learning_rate"].startswith("auto")
    # As the first fold found, also where the texts of all rows would be too many.
    assert {made.data.long_text for made, _ in recipe.calls[1:]} == {"split"}


@pytest.mark.parametrize("stops_in", [0, 2, 5])
def test_it_goes_on_after_the_last_whole_fold(asked, tmp_path, stops_in):
    whole = Recipe()
    args = asked()
    args.training.output_dir = str(tmp_path / "whole")
    cross_validate(whole, args)
    stopped = Recipe(stops_in=stops_in)
    with pytest.raises(Stopped):
        cross_validate(stopped, asked())
    again = Recipe()
    cross_validate(again, asked())
    places = [made.fold.place for made, _ in again.calls]
    assert places == [*range(stops_in, FOLDS), None]
    assert result(again)[0] == result(whole)[0]
    here, there = (result(r)[1]["all"]["metrics"] for r in (again, whole))
    assert here == there
    assert predicted(tmp_path / "run") == predicted(tmp_path / "whole")


def test_a_stop_in_the_last_training(asked, tmp_path):
    """What it left is taken away, and the folds serve again; what is whole stays."""
    with pytest.raises(Stopped):
        cross_validate(Recipe(leaves_run="running"), asked())
    args, folder = asked(), tmp_path / "run"
    args.training.output_dir = str(folder)
    with pytest.raises(CheckpointError, match="other values of max_seq_length"):
        cross_validate(Recipe(), asked(max_seq_length=64))
    (tmp_path / "train.csv").rename(tmp_path / "away.csv")
    with pytest.raises(DataError, match="no such file"):
        cross_validate(Recipe(), asked())
    (tmp_path / "away.csv").rename(tmp_path / "train.csv")
    assert {path.name for path in folder.iterdir()} == {
        *("folds", "run.json", "checkpoints")
    }
    again = Recipe(leaves_run="complete")
    cross_validate(again, asked())
    assert [made.fold.place for made, _ in again.calls] == [None]
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(EnvironmentFault, match="cross-validation there is complete"):
        cross_validate(Recipe(), asked())
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_kill_while_the_last_model_is_written(asked, tmp_path):
    """Neither that nor a file of the user's keeps the folds from going on."""
    left = [".model.staging-another-host-7-0123abcd", "mine.txt"]
    with pytest.raises(Stopped):
        cross_validate(Recipe(leaves_run="running", leaves=left), asked())
    again = Recipe(leaves_run="complete")
    cross_validate(again, asked())
    assert [made.fold.place for made, _ in again.calls] == [None]
    assert (tmp_path / "run" / "mine.txt").exists()


def test_what_the_folds_say_is_there_though_the_push_fails(asked, tmp_path):
    with pytest.raises(Stopped):
        cross_validate(Recipe(leaves_run="complete", fails=True), asked())
    assert {row["fold"] for row in predicted(tmp_path / "run")} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("stop", "status", "said"),
    [
        (KeyboardInterrupt, "interrupted", "Ctrl-C"),
        (DataError("no rows"), "failed", "DataError: no rows"),
    ],
)
def test_a_stop_in_the_folds_is_recorded(asked, tmp_path, capsys, stop, status, said):
    with pytest.raises(stop if isinstance(stop, type) else type(stop)):
        cross_validate(Recipe(stops_in=2, stop=stop), asked())
    run = read_run(tmp_path / "run")
    assert (run.status, run.record["error"]) == (status, said)
    assert (run.recipe, run.record["argv"]) == ("classify", [])
    assert Path(run.record["script"]).name == "classify.py"
    assert run.seconds >= 0
    out = capsys.readouterr().out
    assert f"({status})" in out
    goes_on = re.search(r"go on +.*llmft resume \S+run\n", out)
    assert bool(goes_on) == (status == "interrupted")
    assert [run.name for run in find_runs(tmp_path)] == ["run"]  # and no "training"
    # A user may look at it, and tag it, before it goes on.
    listing.tag(tmp_path / "run", ["slow"])
    (tmp_path / "run" / "report.html").touch()
    again = Recipe()
    cross_validate(again, asked())
    assert [made.fold.place for made, _ in again.calls] == [2, 3, 4, None]
    assert listing.notes_of(tmp_path / "run")["tags"] == ["slow"]


def test_what_folds_cannot_do_is_told(asked, capsys):
    args = asked()
    args.origins.update(save_steps="command line", do_eval="classify_cpu.json")
    cross_validate(Recipe(), args)
    assert "warning: save_steps of no use with k_folds: " in capsys.readouterr().err


def test_a_warning_of_each_fold_is_shown_once(asked, capsys):
    class Warning(Recipe):
        def __call__(self, args):
            warn("texts are cut")
            warn(f"fold {args.fold.place}")
            return super().__call__(args)

    cross_validate(Warning(), asked())
    shown = capsys.readouterr()
    assert shown.err.count("texts are cut") == 1
    assert shown.err.count("fold ") == FOLDS + 1
    assert f"warnings   {FOLDS} more, each the same as one above" in shown.out


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"references": [0], "rungs": []}', '{"references": 1}'],
)
def test_a_damaged_fold_is_trained_again(asked, tmp_path, capsys, content):
    with pytest.raises(Stopped):
        cross_validate(Recipe(stops_in=3), asked())
    (tmp_path / "run" / "folds" / "2.json").write_text(content)
    again = Recipe()
    cross_validate(again, asked())
    assert [made.fold.place for made, _ in again.calls] == [1, 3, 4, None]
    assert "2.json is damaged: its fold is trained again" in capsys.readouterr().err


def test_what_fails_before_a_fold_may_be_mended(asked, tmp_path):
    with pytest.raises(Stopped):
        cross_validate(Recipe(stops_in=0), asked())
    cross_validate(Recipe(), asked(max_seq_length=64))


def test_a_dry_run_looks_at_the_folds_and_writes_nothing(asked, tmp_path, capsys):
    class Planned(Recipe):
        def __call__(self, args):
            assert args.fold.place is None
            return SimpleNamespace(seconds={"training": 60.0}), None

    args = asked()
    args.training.dry_run = True
    cross_validate(Planned(), args)
    assert "5 trainings on part of the rows come before" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    args = asked()
    args.training.dry_run, args.data.k_folds = True, 60
    with pytest.raises(DataError, match="too few for k_folds 60"):
        cross_validate(Planned(), args)


def test_folds_of_other_arguments_are_refused(asked, tmp_path, models):
    with pytest.raises(Stopped):
        cross_validate(Recipe(stops_in=2), asked())
    with pytest.raises(CheckpointError, match="other values of max_seq_length"):
        cross_validate(Recipe(), asked(max_seq_length=64))
    with pytest.raises(CheckpointError, match=r"values of model_name_or_path, \w+"):
        cross_validate(Recipe(), asked(models[1]))
    file = tmp_path / "train.csv"
    file.write_text(file.read_text() + "one more 99.,no\n")
    with pytest.raises(CheckpointError, match="other values of train data"):
        cross_validate(Recipe(), asked())


@pytest.mark.parametrize(
    ("metrics", "model", "ends"),
    [
        ({"k_folds": {}}, True, AlreadyComplete),
        ({"k_folds": {}}, False, None),  # the model is made again
        ({}, True, EnvironmentFault),  # of a run without folds
    ],
)
def test_what_auto_makes_of_a_complete_run(asked, tmp_path, metrics, model, ends):
    cross_validate(Recipe(leaves_run="complete"), asked())
    folder = tmp_path / "run"
    write_json(folder / "metrics.json", metrics)
    if model:
        (folder / "model").mkdir()
        write_json(folder / "model" / "config.json", {"a": 1})
    args, again = asked(), Recipe(leaves_run="complete")
    args.training.resume_from_checkpoint = "auto"
    with pytest.raises(ends) if ends else nullcontext():
        cross_validate(again, args)
    assert [made.fold.place for made, _ in again.calls] == ([] if ends else [None])


def test_the_time_that_is_left_is_told_after_each_fold(asked, capsys):
    cross_validate(Recipe(), asked())
    said = [x for x in capsys.readouterr().out.splitlines() if x.startswith("  fold ")]
    assert len(said) == FOLDS
    wanted = r"  fold \d of 5: 10 rows held out, \d+ s, about .+ left in all"
    assert all(re.fullmatch(wanted, line) for line in said)


def test_the_errors_of_the_ladder_are_those_of_the_folds(asked):
    recipe = Recipe()
    cross_validate(recipe, asked())
    found = result(recipe)[1]
    rungs = {rung["name"]: rung for rung in found["all"]["ladder"]["rungs"]}
    error = found["run"]["folds_accuracy_stderr"]
    assert rungs[TUNED]["stderr"] == pytest.approx(error, rel=0.05)
    assert error == pytest.approx(1.5 * np.sqrt(0.7 * 0.3 / ROWS), rel=0.1)


def test_a_fold_whose_numbers_are_all_the_same_has_no_r2_of_its_own():
    found = [
        {
            "references": labels,
            "rungs": [rung(TUNED, scores), rung(PROBE, scores)],
            "seconds": 1.0,
        }
        for labels, scores in (([5, 5, 5], [4, 5, 6]), ([1, 3, 5], [1, 2, 5]))
    ]
    result = together(found, Regression(), "r2")["all"]["metrics"]
    json.dumps(result, allow_nan=False)
    assert (result["r2"]["mean"], result["r2"]["deviation"]) == (None, None)
    assert 0 < result["r2"]["value"] < 1
    assert result["mae"]["mean"] == pytest.approx((2 / 3 + 1 / 3) / 2)


def rung(name, scores):
    return {"name": name, "scores": [[x] for x in scores], "seconds": 1.0}
