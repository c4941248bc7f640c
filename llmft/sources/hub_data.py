"""Hub data sets, online or from the cache of huggingface_hub."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets import DatasetDict, Features, IterableDatasetDict, Value
from datasets.packaged_modules.csv.csv import Csv
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, HfApi

from llmft import console
from llmft.errors import ConfigError, DataError, brief, listed, nearest, shorten
from llmft.sources import hub

Loaded: TypeAlias = tuple[DatasetDict | IterableDatasetDict, str]

_UNREADABLE = (ValueError, FileNotFoundError, EOFError, RuntimeError, StopIteration)


def load_dataset_dict(
    name: str,
    config_name: str | None = None,
    revision: str | None = None,
    alternative: str = "",
    streaming: bool = False,
) -> Loaded:
    """Load the hub data set ``name`` with all of its splits.

    A one-word name (wikitext) is resolved to the id on the hub, and said. Without
    network the data come from the hub cache.

    With ``streaming`` the splits fetch their rows while they are iterated, but what is
    in a cache is prepared and read there. ``alternative`` is advised where there is no
    hub.

    Returns:
        the splits, and the configuration with the commit.

    Raises:
        ConfigError: a malformed id, an unknown revision, a config name that is
            unknown, or missing where there are several.
        DataError: a data set that has no files that datasets can read.
        EnvironmentFault: neither on the hub nor completely in a cache.
    """
    hub.check_id(name, "dataset_name")
    wanted = hub.Wanted("dataset", name, revision or None, alternative)
    miss = hub.unreachable(offline=datasets.config.HF_HUB_OFFLINE)
    if miss is None:
        try:
            info = HfApi().dataset_info(name, revision=revision, timeout=hub.patience())
            if info.gated:  # anybody may read the info of such a data set, not its data
                HfApi().auth_check(info.id, repo_type="dataset")
        except (*hub.MISSES, ValueError) as error:  # ValueError: what came is not JSON
            miss = hub.answered(error, wanted)
    if miss is not None:
        return _cached_dataset(wanted, config_name, miss)
    if info.id != name:
        console.say(f"dataset {name} is {info.id} on the hub")
    try:
        # The prefix keeps a local folder of this name from being taken instead, and
        # a commit as the revision keeps datasets from asking a second host.
        source = f"hf://datasets/{info.id}"
        found, config = _load(source, config_name, streaming, revision=info.sha)
        return found, f"{config} {info.sha}"
    except (*hub.MISSES, DataError) as error:
        if isinstance(error, DataError) and hub.reachable():
            raise
        miss = hub.Miss(f"the hub failed ({brief(error)})", "try again")
        raise hub.nowhere(wanted, miss) from error


def _load(
    source: str, config_name: str | None, streaming: bool = False, **options: Any
) -> Loaded:
    """Do what ``load_dataset`` does, with errors in llmft's words.

    Returns the splits, and the name of the configuration.
    """
    shown = source.removeprefix("hf://datasets/")
    try:
        builder = datasets.load_dataset_builder(source, config_name, **options)
        if isinstance(builder, Csv) and builder.info.features is None:
            as_text = options | _as_text(builder, shown)
            builder = datasets.load_dataset_builder(source, config_name, **as_text)
        if type(builder).__name__ == "Cache":  # what datasets falls back to unasked
            # Of another revision it may be, with types that llmft does not guess.
            raise ConnectionError("what came were no data files")
        if streaming:
            return builder.as_streaming_dataset(), builder.config.name
        builder.download_and_prepare()
        return builder.as_dataset(), builder.config.name
    except hub.MISSES:
        raise
    except (*_UNREADABLE, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, ValueError):
            with suppress(ValueError):  # it was not about the configuration
                names = datasets.get_dataset_config_names(source, **options)
                _check_config(shown, config_name, names)
        if isinstance(error.__cause__, OSError) and error.__cause__.errno:
            raise error.__cause__ from error  # a full disk, say
        cause = error.__cause__ if "error occurred while gen" in str(error) else None
        said = f"cannot be loaded as a data set: {brief(cause or error)}"
        raise DataError(
            "it has no rows" if isinstance(error, StopIteration) else said,
            "expected data files that datasets can read, and no loading script",
            path=shown,
        ) from error


def _as_text(builder: Any, shown: str) -> dict[str, Any]:
    """Return options by which csv is read as text: else 007 becomes 7, NA nothing."""
    split = next(iter(builder.as_streaming_dataset().values()))
    names = list(next(iter(split)))
    if len(names) == 1 and (other := next((c for c in ";\t|" if c in names[0]), None)):
        raise DataError(
            f"the one column of its csv, {shorten(names[0])}, looks separated by"
            f" {other!r}",
            "expected ',', or `sep` in its card",
            f"download it, and name it with --train_file and --delimiter {other!r}",
            path=shown,
        )
    kinds = Features({name: Value("string") for name in names})
    return {"features": kinds, "keep_default_na": False}


def _cached_dataset(
    wanted: hub.Wanted, config_name: str | None, miss: hub.Miss
) -> Loaded:
    """Load from the hub cache, which has the files that datasets fetched, too.

    Not what datasets prepared of them: its csv has types that llmft does not guess.
    """
    repo_id = hub.cached_id(wanted)
    said = f"{miss.reason}: using the cached copy of dataset {repo_id}"
    for folder, commit in hub.snapshots(wanted):
        with suppress(DataError):  # files that were never fetched
            found, config = _load_snapshot(folder, repo_id, config_name)
            console.say(f"{said} ({commit[:7]})")
            return found, f"{config} {commit}"
    raise hub.nowhere(wanted, miss)


def _load_snapshot(folder: Path, repo_id: str, config_name: str | None) -> Loaded:
    """Load from a snapshot in the hub cache that may hold one configuration only."""
    card, configs = folder / "README.md", MetadataConfigs()
    if card.is_file():
        configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(card).data)
    if configs:
        config_name = config_name or configs.get_default_config_name()
        _check_config(repo_id, config_name, list(configs))
    # Without data_files, datasets looks for those of the first configuration too.
    files = configs.get(config_name, {}).get("data_files")
    return _load(str(folder), config_name, data_files=files)


def _check_config(name: str, config_name: str | None, known: Sequence[str]) -> None:
    if config_name in known or (config_name is None and len(known) < 2):
        return
    has = "several configurations"
    if config_name:
        has = f"no configuration {config_name!r}{nearest(config_name, known)}"
    raise ConfigError(
        f"dataset_config_name: {name} has {has}; expected one of {listed(known)}"
    )
