"""What lies in llmft's cache folder, and taking it away."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR

from llmft.errors import ConfigError, nearest
from llmft.files import aside, clear_stagings
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
class Entry:
    """A file or folder of the cache: the bytes of its files, and two times of it.

    ``used`` is when it was last read as far as that is known: data mark it, and of
    others the file system does, once a day, unless it is mounted with noatime.
    """

    path: Path
    size: int
    made: float
    used: float

    @classmethod
    def of(cls, path: Path) -> Entry:
        """Return what lies at a path, also where another process takes it away."""
        stats = []
        for one in [path, *path.rglob("*")]:
            with suppress(FileNotFoundError):
                stats.append(one.lstat())
        files = [stat for stat in stats if not S_ISDIR(stat.st_mode)] or stats
        used = [time for f in files for time in (f.st_atime, f.st_mtime)]
        used += [stat.st_mtime for stat in stats]
        made = min((f.st_mtime for f in files), default=0.0)
        return cls(path, sum(f.st_size for f in files), made, max(used, default=0.0))


def parts() -> dict[str, list[Entry]]:
    """Return what is in each folder of the cache, be it there; tidy what is left."""
    found = {}
    for name in PARTS:
        folder = catalog.cache_home() / name
        clear_stagings(folder)
        shown = [path for path in folder.glob("*") if not path.name.startswith(".")]
        found[name] = [Entry.of(path) for path in sorted(shown)]
    return found


def clear(
    names: Sequence[str], older_than: float | None = None
) -> dict[str, list[Entry]]:
    """Take away folders of the cache; return what they held.

    What a running process has mapped stays readable for it, except on Windows; the
    folder it writes to stays, and so do locks.

    Args:
        older_than: only what was not used for so many seconds.

    Raises:
        ConfigError: a name that is none of ``PARTS``.
    """
    for name in names:
        if name not in PARTS:
            said = f"{', '.join(PARTS)}{nearest(name, PARTS)}"
            raise ConfigError(f"the cache has no {name!r}; it has {said}")
    limit = math.inf if older_than is None else time.time() - older_than
    held = {}
    for name, entries in parts().items():
        if name not in names:
            continue
        held[name] = [entry for entry in entries if entry.used < limit]
        folder = catalog.cache_home() / name
        waiting = () if older_than else folder.glob(".*.wheels")  # see wheels.collect
        for path in [*(entry.path for entry in held[name]), *waiting]:
            if path.is_dir() and not path.is_symlink():
                # Under another name first: half of it must not be taken for all.
                shutil.rmtree(path.rename(aside(path)))
            else:
                path.unlink(missing_ok=True)
    return held
