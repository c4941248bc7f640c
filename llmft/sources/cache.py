"""What lies in llmft's cache folder, and taking it away."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmft.errors import ConfigError, nearest
from llmft.sources import catalog

# The folders of the cache, and what each is good for.
PARTS = {
    "assets": "downloaded models and data",
    "unpacked": "models unpacked from downloads",
    "read": "data as read, memory-mapped while training",
    "tokenized": "token ids of data",
    "hardware": "measurements of this machine",
    "metrics": "locks of metrics",
    "fonts": "the list of fonts, of charts",
}


@dataclass(frozen=True)
class Part:
    """A folder of the cache: the paths in it, and the bytes of all its files."""

    name: str
    entries: list[Path]
    size: int


def parts() -> list[Part]:
    """Return the folders of the cache, also those that are not there."""
    found = []
    for name in PARTS:
        folder = catalog.cache_home() / name
        entries = sorted(p for p in folder.glob("*") if not p.name.startswith("."))
        sizes = [p.lstat().st_size for p in folder.rglob("*") if not p.is_dir()]
        found.append(Part(name, entries, sum(sizes)))
    return found


def clear(names: Sequence[str]) -> list[Part]:
    """Take away folders of the cache; return what they held.

    What a running process has mapped stays readable for it, except on Windows.

    Raises:
        ConfigError: a name that is none of ``PARTS``.
    """
    for name in names:
        if name not in PARTS:
            said = f"{', '.join(PARTS)}{nearest(name, PARTS)}"
            raise ConfigError(f"the cache has no {name!r}; it has {said}")
    held = [part for part in parts() if part.name in names]
    for part in held:
        if (folder := catalog.cache_home() / part.name).is_dir():
            shutil.rmtree(folder)
    return held
