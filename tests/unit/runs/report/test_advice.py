"""What to try next follows from what was seen, and only from that."""

import pytest

from llmft.runs.record import RunRecord
from llmft.runs.report.advice import Seen, advice


def entry(value, stderr, n):
    return {"value": value, "stderr": stderr, "n": n, "split": "validation"}


def said(recipe, metrics, **arguments):
    record = {"recipe": recipe, "status": "complete"}
    record["arguments"] = {n: {"value": v, "from": ""} for n, v in arguments.items()}
    run = RunRecord(None, record, metrics)
    section = advice(Seen(run, [], [], []))
    return [row for block in section.blocks for row in block.rows]


LADDER = {"metric": "accuracy", "n": 40, "saved": "fine-tuned", "rungs": []}


@pytest.mark.parametrize(
    ("recipe", "metrics", "arguments", "wanted"),
    [
        # A perfect score on few rows is known no better than another.
        ("classify", {"accuracy": entry(1.0, 0.0, 19)}, {}, "± 8.4 points only (19"),
        ("classify", {"accuracy": entry(1.0, 0.0, 900)}, {}, None),
        ("mlm", {"perplexity": entry(31.0, None, 4)}, {}, "4 tokens: too few to know"),
        ("mlm", {"perplexity": entry(31.0, 8.0, 70)}, {}, "70 tokens: too few"),
        ("mlm", {"perplexity": entry(31.0, 1.0, 7000)}, {}, None),
    ],
)
def test_what_is_hardly_known_is_to_be_measured_on_more(
    recipe, metrics, arguments, wanted
):
    rows = said(recipe, {"eval": metrics}, **arguments)
    assert len(rows) == (wanted is not None)
    assert not rows or wanted in rows[0][0]


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
            "--calibrate true, without --k_folds",
        )
