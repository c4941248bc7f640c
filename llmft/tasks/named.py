"""The model that a user names for predictions: of a run, a folder, hub id or asset."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from llmft.config.fields import ModelArguments
from llmft.config.task import Task
from llmft.errors import ConfigError, EnvironmentFault, nearest
from llmft.model.load import locate
from llmft.model.pretrained import from_pretrained
from llmft.runs.record import OUTPUTS, RunRecord, find_run, find_runs
from llmft.sources import catalog
from llmft.sources.hub import ADAPTER, Located
from llmft.tasks import classify, generate, mlm

_OF_TASK = (
    (classify.TASK, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    (mlm.TASK, MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    (generate.TASK, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
)


class Named(NamedTuple):
    """A model with a trained head: where it is, what it does, and of which run."""

    located: Located
    task: Task
    args: ModelArguments
    run: RunRecord | None

    def recorded(self, name: str) -> Any:
        """Return an argument of the run, None where there is no run or no such."""
        return self.run.arguments.get(name) if self.run else None


def find_model(name: str) -> Named:
    """Find a model with a trained head.

    Args:
        name: a run, as ``find_run`` takes it; a folder of a model, as a checkpoint is
            one; a hub id; or an asset.

    Raises:
        ConfigError: there is none, it has no trained head, or several runs are meant.
        EnvironmentFault, UnsafeArtifactError: see ``locate``.
    """
    run = _run_of(name)
    args = _arguments(name, run)
    try:
        located = locate(args, classify.TASK.embedded_model)
    except EnvironmentFault as error:
        if run is None and not Path(name).exists():
            error.hint += f"; and no run in {OUTPUTS} has that in its name"
            error.args = (str(error),)
        raise
    return Named(located, _task_of(located), args, run)


def _run_of(name: str) -> RunRecord | None:
    path = Path(name).expanduser()
    if not path.exists():
        beside = path.parent if path.parent != Path() else path / "no folder"
        if runs := [run.parent.name for run in beside.glob("*/run.json")]:
            said = f"no run and no model there{nearest(path.name, runs)}"
            raise ConfigError(f"{said}; `llmft runs` lists the runs", path=name)
        meant = any(name in run.name for run in find_runs(Path(OUTPUTS)))
        return find_run(name) if meant and not catalog.is_asset(name) else None
    try:
        return find_run(str(path))
    except ConfigError:
        if not _is_model(path):
            said = "no run and no model: there is no run.json and no config.json"
            raise ConfigError(said, path=name) from None
        return None


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", ADAPTER))


def _arguments(name: str, run: RunRecord | None) -> ModelArguments:
    """Return which model it is: the folder itself, else what the run made or used."""
    path = Path(name).expanduser()
    if run is None or _is_model(path):
        return ModelArguments(model_name_or_path=name)
    if (run.folder / "model").is_dir():
        return ModelArguments(model_name_or_path=str(run.folder / "model"))
    if run.arguments.get("do_train"):
        raise ConfigError(f"this run saved no model: it is {run.status}", path=name)
    names = ("model_name_or_path", "model_revision", "tokenizer_name")
    given: dict[str, Any] = {n: run.arguments.get(n) for n in names}
    return ModelArguments(**given)


def _task_of(located: Located) -> Task:
    """Return what a model does, by the class that its config names."""
    config = from_pretrained(AutoConfig, located)
    made = config.architectures or []
    made = [made] if isinstance(made, str) else made
    for task, names in _OF_TASK:
        if {*made} & {*names.values()}:
            return task
    what = f"it is a {made[0]}" if made else "its config.json names no class"
    raise ConfigError(
        f"this model has no trained head: {what}; expected a classifier, a masked or a"
        " causal language model; train one with the recipes",
        path=located.name,
    )
