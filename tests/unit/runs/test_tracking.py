"""What TensorBoard and trackio are given beyond Trainer's own."""

import json
import sys
from types import SimpleNamespace

import pytest
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from transformers import TrainerControl, TrainerState
from transformers.integrations import TensorBoardCallback
from unit.runs.test_folder import CHOICES, arguments

from llmft.errors import EnvironmentFault
from llmft.runs.tracking import Tracking, fault_of


def events_of(folder):
    found = EventAccumulator(str(folder / "logs"))
    found.Reload()
    return found


def texts(events, tag):
    (event,) = events.Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def hparams(events):
    """The arguments that the HParams tab shows."""
    found = events.summary_metadata["_hparams_/session_start_info"]
    data = plugin_data_pb2.HParamsPluginData()
    data.ParseFromString(found.plugin_data.content)
    values = data.session_start_info.hparams
    return {n: getattr(v, v.WhichOneof("kind")) for n, v in values.items()}


def row(line, label, guess, probability):
    text = f"line {line} | of\na <b>text"
    found = {"line": line, "text": text, "label": label, "prediction": guess}
    return found | {"probability": probability}


def test_tensorboard_gets_command_plan_hparams_and_mistakes(tmp_path):
    args = arguments(tmp_path / "run", report_to=["tensorboard"], learning_rate=3e-4)
    rows = [row(1, "a", "b", 0.6), row(2, "a", "b", 0.9), row(3, "a", "a", 0.99)]
    rows.append(row(4, None, "a", 0.95))
    with tiny.started_run(args, choices=CHOICES) as run:
        begin = (args.training, TrainerState(), TrainerControl())
        run.callbacks = [c for c in run.callbacks if hasattr(c, "tensorboard")]
        run.callbacks[0].tensorboard.on_train_begin(*begin)
        run.callbacks[0].on_train_begin(*begin)
        run.results["eval"] = {"eval_accuracy": 0.5, "eval_accuracy_stderr": 0.1}
        run.held_out = "validation"
        run.write_predictions(rows)
        examples = {"samples": [{"prompt": "p", "before": ["x"], "after": ["y"]}]}
        (run.folder / "examples.json").write_text(json.dumps(examples))
    events = events_of(run.folder)
    assert texts(events, "command").strip() == run.record["command"]
    assert "| threads | 1 | for the test |" in texts(events, "plan")
    shown = texts(events, "mistakes").splitlines()
    assert [line.split(" | ")[0] for line in shown] == ["| line", "| ---", "| 2", "| 1"]
    assert shown[2].startswith("| 2 | line 2 \\| of\\na <b>text | a | b | 0.9")
    assert "| p | ['x'] | ['y'] |" in texts(events, "samples")
    assert events.Scalars("final/eval_accuracy")[0].value == 0.5
    found = hparams(events)
    assert found["learning_rate"] == pytest.approx(3e-4)
    assert (found["do_train"], found["model_name_or_path"]) == (True, "tiny")
    assert found["report_to"] == "['tensorboard']"
    assert {p.name.split(".")[0] for p in (run.folder / "logs").iterdir()} == {
        "debug",
        "events",
    }


def test_without_tensorboard_nothing_is_written(tmp_path):
    with tiny.started_run(arguments(tmp_path / "run")) as run:
        run.results["eval"] = {"eval_accuracy": 0.5, "eval_accuracy_stderr": 0.1}
    assert [p.name for p in (run.folder / "logs").iterdir()] == ["debug.log"]


def test_what_a_tracker_raises_is_one_line(tmp_path):
    args = arguments(tmp_path / "run", report_to=["tensorboard"])

    def fail(log_dir, purge_step):
        raise ValueError("no account")

    state = (args.training, TrainerState(is_world_process_zero=True), TrainerControl())

    def begin(run):
        (tracker,) = (c for c in run.callbacks if isinstance(c, TensorBoardCallback))
        tracker._SummaryWriter = fail
        tracker.on_train_begin(*state)

    with pytest.raises(EnvironmentFault) as caught, tiny.started_run(args) as run:
        begin(run)
    said = "TensorBoard: no account; set it up, or leave it out of report_to"
    assert str(caught.value) == f"EnvironmentFault: {said}"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], said in record["error"]) == ("failed", True)
    assert fault_of(ValueError("of something else")) is None


def test_trackio_gets_one_run_with_the_last_scalars(tmp_path, monkeypatch):
    logged = []
    trackio = SimpleNamespace(log=logged.append)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    args = SimpleNamespace(report_to=["trackio"], run_name=None)
    record = {"started": "2026-01-02T10:00:00+0000", "legs": []}
    tracking = Tracking(record, args, tmp_path / "the-run", [])
    assert args.run_name == "the-run 2026-01-02T10:00:00"
    state = (args, TrainerState(), TrainerControl())
    tracking.on_log(*state, logs={"loss": 1.0, "epoch": 1.0})
    tracking.on_log(*state, logs={"train_loss": 0.5, "total_flos": 3, "epoch": 1.0})
    assert logged == [{"train_loss": 0.5, "total_flos": 3}]
    resumed = SimpleNamespace(report_to=["trackio"], run_name=None)
    again = {"started": "2026-01-03T10:00:00+0000", "legs": [record]}
    Tracking(again, resumed, tmp_path / "the-run", [])
    assert resumed.run_name == args.run_name
    given = SimpleNamespace(report_to=["wandb"], run_name="mine")
    Tracking({}, given, tmp_path, []).on_log(*state, logs={"train_loss": 0.5})
    assert (given.run_name, len(logged)) == ("mine", 1)
