"""A start after a kill says how the run before ended."""

import json
import os

import pytest

from llmft.files import try_lock
from llmft.machine.detect import allowed_text
from llmft.runs import leg
from llmft.runs.leg import how_it_ended

GIB = 2**30
ENDED = "the run before ended without a word, as one that was killed does"
LESS = "; the kernel ends what takes more: a smaller --per_device_train_batch_size"


@pytest.mark.parametrize(
    ("status", "plan", "logged", "said"),
    [
        ("running", {"allowed_bytes": 4 * GIB}, [GIB, 7 * GIB // 2], LESS),
        ("running", {"allowed_bytes": 4 * GIB}, [7 * GIB // 2, GIB], ""),
        ("running", {}, [GIB], ""),
        ("running", {"allowed_bytes": 4 * GIB}, [], None),
        ("interrupted", {"allowed_bytes": 4 * GIB}, [4 * GIB], None),
        ("complete", {}, [GIB], None),
    ],
)
def test_what_is_said_of_a_run_that_was_killed(tmp_path, status, plan, logged, said):
    record = {"status": status, "plan": plan}
    (tmp_path / "run.json").write_text(json.dumps(record))
    events = [
        {"step": 10 * i, "leg": 1, "loss": 1.0, "rss_bytes": rss}
        for i, rss in enumerate(logged, 1)
    ]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 99, "rs')
    found = how_it_ended(tmp_path)
    if status != "running":
        assert found == ""
        return
    if not logged:
        assert found == ENDED
        return
    of = "4.0 GiB, as it was when that run began" if plan else allowed_text()[:3]
    held = f"{logged[-1] / GIB:.1f} GiB at step {10 * len(logged)}"
    assert found.startswith(f"{ENDED}: it held {held}, and may hold {of}")
    assert (LESS in found) is (said == LESS)


def test_nothing_is_said_of_what_runs_or_is_no_run(tmp_path):
    assert how_it_ended(tmp_path / "none") == ""
    (tmp_path / "run.json").write_text('{"status": "running"}')
    held = os.open(tmp_path, os.O_RDONLY)
    try:
        assert try_lock(held)
        assert how_it_ended(tmp_path) == ""
    finally:
        os.close(held)
    assert how_it_ended(tmp_path).startswith(ENDED)
    (tmp_path / "run.json").write_text('{"status": 7}')
    assert how_it_ended(tmp_path) == ""
    assert leg._NEAR < 1
