"""Finding models and data sets on the model hub, or in its cache without network.

Everything is decided within seconds, before torch or transformers are imported: the
libraries retry for minutes where the hub is not reachable. The settings of
huggingface_hub (``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_HOME``) hold as they are.
"""

from __future__ import annotations

import difflib
import glob
import json
import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub import errors as hf
from huggingface_hub.utils import build_hf_headers, get_session, validate_repo_id

from llmft.errors import ConfigError, EnvironmentFault, brief, nearest

T = TypeVar("T")
_WEIGHTS = (".safetensors", ".bin", ".gguf")
ADAPTER = "adapter_config.json"
_CONNECT = "check network and proxy, or set HF_ENDPOINT to a mirror"
MISSES = (
    *(hf.HTTPError, hf.FileMetadataError, hf.LocalEntryNotFoundError),
    *(ConnectionError, TimeoutError),
)


@dataclass(frozen=True)
class Located:
    """Where a model is, in the terms of ``from_pretrained``."""

    path_or_id: str  # the folder or hub id to load from
    revision: str | None = None  # to pass on with a hub id; None with a folder
    local_files_only: bool = False  # True where nothing must be asked of the hub
    note: str = ""  # something that the user should know
    name: str = ""  # the hub id also where the copy in the cache is used
    commit: str = ""  # on the hub; "" for a folder that is not from there
    merged_into: str = ""  # of an adapter, the name of its base


class Miss(NamedTuple):
    """Why the hub cannot give something, and what would mend that."""

    reason: str
    remedy: str


class Wanted(NamedTuple):
    """What is looked for; ``alternative`` is what the caller says needs no hub."""

    kind: str  # as huggingface_hub's repo_type: model or dataset
    name: str
    revision: str | None
    alternative: str


def patience() -> float:
    """Return the seconds to wait for an answer: 4, or HF_HUB_ETAG_TIMEOUT if set."""
    chosen = "HF_HUB_ETAG_TIMEOUT" in os.environ
    return float(constants.HF_HUB_ETAG_TIMEOUT) if chosen else 4.0


def reachable() -> bool:
    """Return whether the hub gives any HTTP answer in time.

    False at once when ``HF_HUB_OFFLINE`` is set.
    """
    options: Any = {"timeout": patience(), "follow_redirects": False}

    def ask() -> Any:
        return get_session().head(constants.ENDPOINT, **options)

    return not constants.is_offline_mode() and _within(patience(), ask) is not None


def locate_model(
    name: str, revision: str | None = None, alternative: str = "", weights: bool = True
) -> Located:
    """Find the model ``name``: a folder, a hub id, or its copy in the hub cache.

    ``alternative``, what works without a hub, is said if this fails. Without
    ``weights``, it is a tokenizer that is wanted.

    Raises:
        ConfigError: a folder without a model, a revision of a folder, a malformed
            id, an unknown revision.
        EnvironmentFault: neither on the hub nor completely in the cache.
    """
    option = "model_name_or_path" if weights else "tokenizer_name"
    if _is_folder(name):
        return _local(name, option, revision)
    check_id(name, option)
    first, _, rest = name.partition("/")
    if rest and os.path.isdir(first):  # it may be a mistyped path as well
        alternative = ", or ".join(
            filter(None, (f"check the path: {first} holds no {rest}", alternative))
        )
    wanted = Wanted("model", name, revision or None, alternative)
    miss = unreachable()
    if miss is None:
        try:
            if adapter := _adapter(name, revision, weights):
                return adapter
            if commit := _asked_for(name, "config.json", revision).commit_hash:
                return Located(name, revision, name=name, commit=commit)
            miss = Miss(f"{constants.ENDPOINT} answers, but not as a hub", _CONNECT)
        except MISSES as error:
            miss = answered(error, wanted)
    for folder, commit in snapshots(wanted):
        has = any((folder / file).is_file() for file in ("config.json", ADAPTER))
        if has and (not weights or _has_weights(folder)):
            repo_id = cached_id(wanted)
            note = f"{miss.reason}: using the cached copy of {repo_id} ({commit[:7]})"
            return Located(str(folder), None, True, note, repo_id, commit)
    raise nowhere(wanted, miss)


def _asked_for(name: str, file: str, revision: str | None) -> Any:
    url = hf_hub_url(name, file, revision=revision)
    return get_hf_file_metadata(url, timeout=patience())


def _adapter(name: str, revision: str | None, weights: bool) -> Located | None:
    """Return the adapter that a repository holds, fetched; None where it has none."""
    try:
        commit = _asked_for(name, ADAPTER, revision).commit_hash
    except hf.HfHubHTTPError as error:
        if error.response.status_code == 404:  # a mirror may say no more than that
            return None
        raise
    if not commit:  # it answers, but not as a hub
        return None
    kinds = ["*.json", "*.txt", "*.model", "*.jinja", *["*.safetensors"] * weights]
    kinds += ["*LICENSE*", "*NOTICE*", "*TERMS*"]  # which go along with the model
    folder = snapshot_download(name, revision=commit, allow_patterns=kinds)
    return Located(folder, local_files_only=True, name=name, commit=commit)


def _is_folder(name: str) -> bool:
    """Return whether a name stands for a folder, be it there or not."""
    written_as_path = re.search(r"^[.~]|/$|\\|/.*/", name, re.DOTALL)
    is_path = written_as_path or os.path.exists(name) or os.path.isabs(name)
    return "://" not in name and bool(is_path)


def _local(name: str, option: str, revision: str | None) -> Located:
    path = Path(os.path.expanduser(name))
    files = ["config.json", ADAPTER]
    if option == "tokenizer_name":
        files = ["tokenizer_config.json", "tokenizer.json", *files]
    if not path.exists():
        near = nearest(path.name, (beside.name for beside in path.parent.glob("*")))
        found = f"there is no such folder{near}; check the path"
    elif any((path / file).is_file() for file in files):
        if not revision:
            return Located(str(path), local_files_only=True, name=name)
        found = (
            f"a folder, which has no revisions; model_revision is {revision}; leave"
            " it out, or give a hub id"
        )
    elif (path / "model" / "config.json").is_file():
        found = f"a folder without {files[0]}; use {path / 'model'}"
    else:
        found = f"no {files[0]} there; expected a folder that save_pretrained wrote"
    raise ConfigError(f"{option}: {found}", path=name)


def check_id(name: str, option: str) -> None:
    """Raise ConfigError where what ``option`` names is neither a hub id nor a file."""
    try:
        validate_repo_id(name)
    except hf.HFValidationError as error:
        files = "train_file and validation_file name files; "
        raise ConfigError(
            f"{option}: {name!r} is no hub id; expected a name or owner/name;"
            f" {files if option == 'dataset_name' else ''}check the spelling"
        ) from error


def _within(seconds: float, call: Callable[[], T]) -> T | None:
    """Return ``call()``, or None if it raises or is not done after ``seconds``."""
    result: list[T] = []

    def work() -> None:
        with suppress(Exception):
            result.append(call())

    # Finding the address of a host has no timeout of its own: leave it behind.
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(seconds)
    return result[0] if result else None


def unreachable(offline: bool = False) -> Miss | None:
    """Return why nothing can be asked of the hub, or None if it answers."""
    if constants.is_offline_mode() or offline:
        names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
        name = next((n for n in names if os.environ.get(n)), names[0])
        return Miss(f"{name} is set", f"unset {name} to use the network")
    if reachable():
        return None
    return Miss(
        f"{constants.ENDPOINT} does not answer (waited up to {patience():g} s;"
        " HF_HUB_OFFLINE is not set)",
        _CONNECT,
    )


def answered(error: Exception, wanted: Wanted) -> Miss:
    """Return what the hub's ``error`` says; raise if no cached copy may stand in."""
    kind, name = wanted.kind, wanted.name
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    if isinstance(error, hf.RevisionNotFoundError):
        raise ConfigError(
            f"{kind}_revision: {name} has no {wanted.revision!r} on the hub; expected"
            f" a branch, tag or commit; see {page}"
        ) from error
    if isinstance(error, hf.RemoteEntryNotFoundError):
        raise EnvironmentFault(
            f"{name} on the hub has no config.json",
            "expected a model in the format of transformers",
            wanted.alternative,
        ) from error
    if isinstance(error, hf.GatedRepoError):
        remedy = f"accept its licence at {page} and set HF_TOKEN"
        return Miss("it is gated on the hub", remedy)
    if isinstance(error, hf.RepositoryNotFoundError):
        hints = ("check the spelling", "set HF_TOKEN if it is private")
        raise EnvironmentFault(
            f"{kind} {name} was not found on the hub ({constants.ENDPOINT})",
            _nearest(wanted),
            ", or ".join(filter(None, (*hints, wanted.alternative))),
        ) from error
    if isinstance(error, hf.HfHubHTTPError):
        status = error.response.status_code
        remedy = "check HF_TOKEN" if status in (401, 403) else "try again later"
        return Miss(f"{constants.ENDPOINT} answered {status}", remedy)
    return Miss(f"{constants.ENDPOINT} failed ({brief(error)})", _CONNECT)


def _nearest(wanted: Wanted) -> str:
    """Return the ids on the hub that look most like what was asked for."""
    name, base = wanted.name, wanted.name.split("/")[-1]
    query = {"search": re.split(r"[-_.]", base)[0], "sort": "downloads", "limit": 100}

    def search() -> list[str]:
        url = f"{constants.ENDPOINT}/api/{wanted.kind}s"
        answer = get_session().get(
            url, params=query, headers=build_hf_headers(), timeout=patience()
        )
        return [found["id"] for found in answer.json()]

    ids = _within(patience(), search) or []
    bases = {repo_id.split("/")[-1]: repo_id for repo_id in reversed(ids)}
    near = difflib.get_close_matches(name, ids, 3) or [
        bases[match] for match in difflib.get_close_matches(base, bases, 3)
    ]
    return f"nearest there: {', '.join(near)}" if near else ""


def nowhere(wanted: Wanted, miss: Miss) -> EnvironmentFault:
    """Return the error of what is neither on the hub nor in its cache."""
    return EnvironmentFault(
        f"{wanted.kind} {wanted.name}: {miss.reason}, and there is no complete copy"
        f" in the cache {constants.HF_HUB_CACHE}",
        "expected a hub that gives it, or a cached copy",
        ", or ".join(filter(None, (miss.remedy, wanted.alternative))),
    )


def cached_id(wanted: Wanted) -> str:
    """Return the one id in the cache that ``wanted.name`` may stand for, or itself."""
    name, kind, cache = wanted.name, wanted.kind, Path(constants.HF_HUB_CACHE)
    if "/" in name or (cache / f"{kind}s--{name}").is_dir():
        return name
    pattern = f"{kind}s--*--{glob.escape(name)}"
    ids = {"/".join(path.name.split("--")[1:]) for path in cache.glob(pattern)}
    if len(ids) > 1:
        raise ConfigError(
            f"{name} is the name of several {kind}s in the cache; expected one of"
            f" {', '.join(sorted(ids))}"
        )
    return ids.pop() if ids else name


def snapshots(wanted: Wanted) -> list[tuple[Path, str]]:
    """Return folder and commit of each copy in the hub cache, the best one first."""
    repo = Path(constants.HF_HUB_CACHE) / "--".join(
        [f"{wanted.kind}s", *cached_id(wanted).split("/")]
    )
    ref = repo / "refs" / (wanted.revision or "main")
    commit = ref.read_text().strip() if ref.is_file() else wanted.revision
    found = [(path, path.name) for path in repo.glob("snapshots/*")]
    found.sort(key=lambda copy: (copy[1] != commit, -copy[0].stat().st_mtime))
    return [copy for copy in found if copy[1] == commit or wanted.revision is None]


def _has_weights(folder: Path) -> bool:
    """Return whether there are weights, with every shard that an index names."""
    shards: list[str] = []
    for index in folder.glob("*.safetensors.index.json"):
        shards += json.loads(index.read_text("utf-8")).get("weight_map", {}).values()
    there = {path.name for path in folder.iterdir() if path.suffix in _WEIGHTS}
    return bool(there) and there.issuperset(shards)
