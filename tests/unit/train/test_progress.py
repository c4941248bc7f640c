import io
import sys
from types import SimpleNamespace

import pytest
from tqdm.std import tqdm

from llmft.train import progress
from llmft.train.progress import Progress, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_file_a_bar_is_lines_and_none_where_it_is_short(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setitem(sys.modules, "ipykernel", object())  # imported, not running
    with progress_bar(10, "training", "step") as bar:
        bar.update(5)
    assert stream.getvalue() == ""
    monkeypatch.setattr(progress, "_LOG_SECONDS", 1e-9)
    with progress_bar(10, "training", "step") as bar:
        bar.set_postfix({"loss": "1.5"}, refresh=False)
        for _ in range(2):
            bar.update(5)
    lines = stream.getvalue().splitlines()
    assert lines[-1] == "  training: 100% of 10, 00:00, 00:00 left, loss=1.5"
    assert "\r" not in stream.getvalue()
    assert not [line for line in lines if not line.strip()]


def test_in_a_terminal_it_is_one_bar_that_moves(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(10, "training", "step") as bar:
        bar.update(5)
    assert stream.getvalue().startswith("\rtraining:   0%|")
    assert stream.getvalue().count("\n") == 1


def trained(monkeypatch, capsys, evaluations, best=None, history=(), **settings):
    """The lines that evaluations with these logs give."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    args = SimpleNamespace(
        **{"metric_for_best_model": "loss", "greater_is_better": False, **settings}
    )
    state = SimpleNamespace(
        max_steps=9, global_step=3, best_metric=best, log_history=[*history]
    )
    loader = SimpleNamespace(dataset=[1])
    shown = Progress()
    shown.on_train_begin(args, state, None)
    for logs in evaluations:
        shown.on_log(args, state, None, logs=logs, train_dataloader=loader)
    shown.training_bar.close()
    tqdm._instances.clear()
    return capsys.readouterr().out.splitlines()


def test_a_line_an_evaluation_tells_change_and_the_best(monkeypatch, capsys):
    found = [0.5, 0.7, 0.6, 0.8]
    logs = [
        {"eval_loss": 2.0, "eval_accuracy": x, "eval_f1_macro": 0.1, "epoch": i / 2}
        for i, x in enumerate(found)
    ]
    settings = {"metric_for_best_model": "eval_accuracy", "greater_is_better": True}
    assert trained(monkeypatch, capsys, logs, **settings) == [
        "  epoch 0     loss 2, accuracy 0.5",
        "  epoch 0.5   loss 2, accuracy 0.7 (+0.2), the best so far",
        "  epoch 1     loss 2, accuracy 0.6 (-0.1)",
        "  epoch 1.5   loss 2, accuracy 0.8 (+0.2), the best so far",
    ]


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        ({"eval_loss": 1.5}, "  step 3      loss 1.5 (-0.5), the best so far"),
        ({"eval_loss": 1.8}, "  step 3      loss 1.8 (-0.2)"),
        ({"eval_loss": 2.5}, "  step 3      loss 2.5 (+0.5)"),
    ],
)
def test_a_resumed_run_compares_with_what_was_before(monkeypatch, capsys, logs, line):
    before = [{"eval_loss": 1.6}, {"eval_loss": 2.0}]
    shown = trained(monkeypatch, capsys, [logs], best=1.6, history=before)
    assert shown == [line]


def test_other_logs_give_no_line(monkeypatch, capsys):
    logs = [{"loss": 1.0}, {"train_runtime": 3.0}, {}]
    assert trained(monkeypatch, capsys, logs) == []
