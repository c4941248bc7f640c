"""What trackers get beyond what Trainer gives them.

TensorBoard: the command and the plan as text when the training begins; arguments and
final metrics (HParams), mistakes and examples at the end. trackio: the last scalars of
the training, which its callback leaves out. All of them: one run of one name.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from llmft.errors import EnvironmentFault, brief, escape
from llmft.files import read_object
from llmft.runs.record import rows_of

_MISTAKES = 20
_LAST = (  # that TrackioCallback drops
    *("train_runtime", "train_samples_per_second", "train_steps_per_second"),
    *("train_loss", "total_flos"),
)


class Tracking(TrainerCallback):
    """Gives trackers what the record of a run has for them.

    Args:
        record: what ``run.json`` holds.
        args: the arguments of the run. Its folder and time become its ``run_name``,
            unless it has one: trackio would take what is logged after the training for
            another run, and two runs of one name for one.
        folder: of the run.
        others: the callbacks before this one.
    """

    def __init__(
        self,
        record: Mapping[str, Any],
        args: Any,
        folder: Path,
        others: Sequence[TrainerCallback],
    ) -> None:
        self.record, self.folder = record, folder
        self.trackio = "trackio" in args.report_to
        found = [c for c in others if isinstance(c, TensorBoardCallback)]
        self.tensorboard: Any = found[0] if found else None
        legs = [*record.get("legs", []), record]  # a run that is resumed keeps its name
        name = f"{folder.name} {legs[0].get('started', '')[:19]}"
        args.run_name = args.run_name or name

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Give TensorBoard the command and the plan."""
        if self.tensorboard:
            writer = self.tensorboard.tb_writer
            writer.add_text("command", f"    {self.record['command']}")
            choices = self.record.get("choices", {})
            plan = [(name, c["value"], c["reason"]) for name, c in choices.items()]
            writer.add_text("plan", _markdown(["choice", "value", "reason"], plan))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any
    ) -> None:
        """Give trackio what its own callback leaves out."""
        last = {n: logs[n] for n in _LAST if n in (logs or {})}
        if self.trackio and last:
            import trackio

            trackio.log(last)  # by the names that wandb and mlflow have for them

    def finish(self, measured: Mapping[str, Mapping[str, Any]]) -> None:
        """Give TensorBoard what stands at the end.

        Args:
            measured: metrics by part, as in ``metrics.json``.
        """
        if not self.tensorboard:
            return
        writer = self.tensorboard.tb_writer or SummaryWriter(str(self.folder / "logs"))
        arguments = {n: a["value"] for n, a in self.record["arguments"].items()}
        metrics = {
            f"final/{part}_{name}": entry["value"]
            for part, found in measured.items()
            for name, entry in found.items()
            if entry["value"] is not None
        }
        plain = {n: _plain(x) for n, x in arguments.items() if x is not None}
        writer.add_hparams(plain, metrics, run_name=".")  # no folder of its own
        if mistakes := _mistakes(self.folder):
            header = ["line", "text", "label", "prediction", "probability"]
            writer.add_text("mistakes", _markdown(header, mistakes))
        for name, rows in read_object(self.folder / "examples.json").items():
            cells = [[*row.values()] for row in rows]
            writer.add_text(name, _markdown([*rows[0]], cells) if rows else "none")
        writer.close()
        self.tensorboard.tb_writer = None


def fault_of(error: BaseException) -> EnvironmentFault | None:
    """Return what a tracker raised, such as one without an account, as a fault."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") == TensorBoardCallback.__module__:
            tracker = type(frame.f_locals.get("self")).__name__
            said = f"{tracker.removesuffix('Callback')}: {brief(error).rstrip('.')}"
            return EnvironmentFault(
                said, hint="set it up, or leave it out of report_to"
            )
    return None


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _mistakes(folder: Path) -> list[list[Any]]:
    """Return the mistakes a classifier was surest of: line, text, what it said."""
    wrong = [
        row
        for row in rows_of(folder / "predictions.jsonl")
        if row["label"] is not None and "probability" in row
        if row["label"] != row["prediction"]
    ]
    wrong.sort(key=lambda row: -row["probability"])
    names = ("line", "text", "label", "prediction", "probability")
    return [[row.get(name) for name in names] for row in wrong[:_MISTAKES]]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table for TensorBoard, which shows no HTML of it."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[escape(c, 500).replace("|", "\\|") for c in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
