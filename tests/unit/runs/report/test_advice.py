"""What to try next follows from what was seen, and only from that."""

import json
from pathlib import Path

import pytest

from llmft.runs.record import RunRecord
from llmft.runs.report.advice import Seen, advice
from llmft.runs.report.charts import curves, series
from llmft.runs.report.segments import Segment


def entry(value, stderr, n):
    return {"value": value, "stderr": stderr, "n": n, "split": "validation"}


def said(recipe, metrics, events=(), folder=Path("none"), groups=(), **arguments):
    record = {"recipe": recipe, "status": "complete"}
    record["arguments"] = {n: {"value": v, "from": ""} for n, v in arguments.items()}
    run = RunRecord(folder, record, metrics)
    section = advice(Seen(run, events, groups, []))
    return [row for block in section.blocks for row in block.rows]


LADDER = {"metric": "accuracy", "n": 40, "saved": "fine-tuned", "rungs": []}


@pytest.mark.parametrize(
    ("recipe", "metrics", "arguments", "wanted"),
    [
        # A perfect score on few rows is known no better than another.
        ("classify", {"accuracy": entry(1.0, 0.0, 19)}, {}, "0.8318 and 1 (19 rows"),
        ("classify", {"accuracy": entry(1.0, 0.0, 900)}, {}, None),
        ("mlm", {"perplexity": entry(31.0, None, 4)}, {}, "4 tokens: too few to know"),
        ("mlm", {"perplexity": entry(31.0, 8.0, 70)}, {}, "70 tokens: too few"),
        ("mlm", {"perplexity": entry(31.0, 1.0, 7000)}, {}, None),
        # Of somebody's own script, which need not say of how many.
        ("own", {"perplexity": entry(31.0, None, None)}, {}, None),
        ("own", {"accuracy": entry(0.5, 0.1, None)}, {}, "between 0.304 and 0.696"),
    ],
)
def test_what_is_hardly_known_is_to_be_measured_on_more(
    recipe, metrics, arguments, wanted
):
    rows = said(recipe, {"eval": metrics}, **arguments)
    assert len(rows) == (wanted is not None)
    assert not rows or wanted in rows[0][0]


@pytest.mark.parametrize(
    ("part", "trains", "folds"),
    [("eval", True, True), ("eval", False, False), ("test", True, False)],
)
def test_folds_are_advised_where_rows_of_train_were_set_aside(part, trains, folds):
    """They add no row to a test set, and train."""
    metrics = {part: {"accuracy": entry(1.0, 0.0, 19)}}
    ((_, helps),) = said("classify", metrics, do_train=trains)
    assert helps.startswith("more rows to measure on")
    assert ("--k_folds 5" in helps) is folds


@pytest.mark.parametrize(
    ("loss", "calibrate", "wanted"), [(1.2, False, 1), (1.2, True, 0), (0.9, False, 0)]
)
def test_probabilities_that_are_worse_than_guesses(loss, calibrate, wanted):
    ladder = LADDER | {"log_loss": loss, "log_loss_of_guessing": 1.0986}
    ladder["rungs"] = [{"name": "fine-tuned", "value": 0.9, "stderr": 0.0}]
    metrics = {"eval": {"accuracy": entry(0.9, 0.01, 900)}, "ladder": ladder}
    rows = said("classify", metrics, calibrate=calibrate)
    assert len(rows) == wanted
    if wanted:
        assert rows[0] == (
            "log loss 1.2 is above that of guessing, 1.099: so sure it is where it is"
            " wrong",
            "a training with --calibrate true, not with --k_folds",
        )


def test_a_loss_that_rose_by_less_than_is_known_is_not_told():
    for error, wanted in ((0.001, 1), (0.2, 0)):
        metrics = {"eval": {"loss": entry(0.3, error, 99)}}
        events = [{"step": i, "eval_loss": x} for i, x in enumerate((0.2, 0.3), 1)]
        rows = said("mlm", metrics, events, learning_rate=1e-4)
        assert len([row for row in rows if "rose" in row[0]]) == wanted


def test_groups_that_are_clearly_worse_are_advised_on():
    worse = Segment("label", "late", 40, 0.5, 0.1, (0.35, 0.65), 1e-9)
    by_chance = Segment("label", "early", 40, 0.2, 0.1, (0.1, 0.35), 0.03)
    wanted = (
        "weak where label late",
        "more rows like these in train; look at how they are labelled",
    )
    assert said("classify", {}, groups=[worse, by_chance]) == [wanted]
    assert said("classify", {}, groups=[by_chance]) == []


def test_many_texts_of_unknown_tokens_are_told(tmp_path):
    rows = [{"text": "x", "unknown_tokens": 3 * (i < 5)} for i in range(10)]
    path = tmp_path / "predictions.jsonl"
    for first, wanted in ((0, 1), (3, 1), (4, 0)):  # 5 of 9, 2 of 6, 1 of 5
        lines = [json.dumps(row) + "\n" for row in rows[first:9]]
        path.write_text("".join(lines))
        assert len(said("classify", {}, folder=tmp_path)) == wanted
    # A lower rate would not help the training that did worse than the probe.
    below = {"below": {"value": 0.29, "stderr": 0.1, "sure": 0.99}}
    rungs = [{"name": n, "value": 0.9, "stderr": 0.0} for n in ("probe", "fine-tuned")]
    rungs[1] |= below
    metrics = {"ladder": LADDER | {"saved": "probe", "rungs": rungs}}
    events = [{"step": i, "eval_loss": x} for i, x in enumerate((0.9, 0.5), 1)]
    for first, rate in ((0, 0), (4, 1)):
        lines = [json.dumps(row) + "\n" for row in rows[first:9]]
        path.write_text("".join(lines))
        found = said("classify", metrics, events, folder=tmp_path, learning_rate=1e-4)
        assert len(found) == 1
        assert [helps for _, helps in found].count("a lower --learning_rate") == rate


@pytest.mark.parametrize(
    ("losses", "below", "wanted"),
    [
        ((0.9, 0.7, 0.5), None, "from 0.7, the best before, to 0.5"),
        # It swings: the last one is below the one before, and the best by little.
        ((13.5, 0.65, 0.82, 0.645), None, None),
        ((13.5, 0.65, 0.82, 0.6), None, "from 0.65, the best before, to 0.6"),
        ((0.9, 0.7, 0.5), (0.29, 0.99), "fine-tuned did worse than the linear probe"),
        ((0.9, 0.7, 0.5), (0.1, 0.7), "from 0.7, the best before, to 0.5"),
    ],
)
def test_longer_training_is_advised_only_where_the_loss_fell(losses, below, wanted):
    metrics = {}
    if below is not None:
        by = dict(zip(("value", "sure"), below, strict=True))
        rungs = [
            {"name": "linear probe", "value": 0.93, "stderr": 0.0},
            {"name": "fine-tuned", "value": 0.93 - below[0], "below": by},
        ]
        metrics["ladder"] = LADDER | {"saved": "linear probe", "rungs": rungs}
    events = [{"step": i, "eval_loss": x} for i, x in enumerate(losses, 1)]
    found = said("classify", metrics, events, learning_rate=1e-4)
    assert len(found) == (wanted is not None)
    if wanted:
        seen, helps = found[0]
        assert wanted in seen
        lower = "a lower --learning_rate"
        assert helps == (lower if "worse" in seen else "more --num_train_epochs")


def test_curves_that_are_not_of_what_is_saved_say_so():
    events = [{"step": step, "eval_loss": 1 / step} for step in (1, 2)]
    for saved in ("linear probe", "fine-tuned"):
        told = "".join(curves(events, saved=saved).said)
        assert ("the linear probe, from which it began, is saved" in told) is (
            saved == "linear probe"
        )


def test_a_longer_training_is_no_advice_where_the_probe_is_saved():
    below = {"below": {"value": -0.1, "stderr": 0.01, "sure": 0.999}}
    for saved, longer in (("linear probe", False), ("fine-tuned", True)):
        rungs = [{"name": "TF-IDF", "value": 0.9, "stderr": 0.0} | below]
        rungs += [{"name": saved, "value": 0.8, "stderr": 0.0}]
        ladder = LADDER | {"saved": saved, "rungs": rungs}
        ((_, helps),) = said("classify", {"ladder": ladder})
        assert ("a longer training" in helps) is longer


def test_the_evaluation_of_the_best_checkpoint_is_no_point_of_the_curve():
    """It comes last, with the step of the last one, and would hide what that was."""
    losses = [(1, 0.9), (2, 0.5), (3, 0.7), (3, 0.5)]
    events = [{"step": step, "eval_loss": loss} for step, loss in losses]
    assert series(events, "eval_loss") == ([1.0, 2.0, 3.0], [0.9, 0.5, 0.7])
    ((seen, _),) = said("mlm", {}, events, learning_rate=1e-4)
    assert seen == "the loss on validation rose from 0.5 (evaluation 2) to 0.7"


@pytest.mark.parametrize(
    ("steps", "arguments", "helps"),
    [
        (100, {}, "more --num_train_epochs"),
        (100, {"early_stopping_patience": 3}, "more --num_train_epochs"),
        (100, {"time_limit": "5m"}, "a longer --time_limit (it was 5m)"),
        (
            *(12, {"time_limit": "5m", "early_stopping_patience": 3}),
            "a larger --early_stopping_patience (it was 3), which ended it",
        ),
        (
            *(100, {"load_best_model_at_end": False}),
            "more --num_train_epochs, with --load_best_model_at_end false"
            " --early_stopping_patience none, as it was now",
        ),
    ],
)
def test_what_makes_a_training_longer_is_what_ended_it(steps, arguments, helps):
    record = {"recipe": "classify", "status": "complete", "steps": steps}
    record |= {"plan": {"steps": 100}}
    record["arguments"] = {n: {"value": v, "from": ""} for n, v in arguments.items()}
    events = [{"step": i, "eval_loss": x} for i, x in enumerate((0.9, 0.7, 0.5), 1)]
    (block,) = advice(Seen(RunRecord(Path("none"), record, {}), events, [], [])).blocks
    assert [row[1] for row in block.rows] == [helps]
