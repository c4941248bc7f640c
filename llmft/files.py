"""Writing files and folders so that a kill never leaves a half written one."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import re
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from xxhash import xxh3_64

from llmft.errors import EnvironmentFault

# Where tests have a write fail: NAME:ACTION or NAME:ACTION@N, the Nth time that it is
# reached; see ``failpoint``.
_FAILPOINT = re.compile(r"([\w.]+):(\w+)(?:@(\d+))?")
_fails = _FAILPOINT.fullmatch(os.environ.get("LLMFT_FAILPOINT", ""))
_reached = 0
_ours: set[str] = set()  # names that this process writes under
FAILPOINTS = (
    *("save.begin", "save.file.open", "save.file.half", "save.file.close"),
    *("save.manifest.half", "save.manifest.close", "save.fsync"),
    *("save.publish.before", "save.publish.after", "save.dirsync"),
    *("rotate.before", "rotate.mid", "rotate.after"),
)


def set_failpoint(given: str) -> None:
    """Take another one than that of the environment: a process was forked for it."""
    global _fails
    _fails = _FAILPOINT.fullmatch(given)


def failpoint(name: str, path: Path | None = None) -> None:
    """Fail here where the environment says so: nothing at all otherwise.

    Actions: ``kill9``, ``sigterm``, ``sleep`` (a second), ``raise`` (RuntimeError), or
    the name of an error number such as ``enospc``. Where the name ends with ``half``,
    the file ``path``, or the largest one in it, is cut to a half before.
    """
    global _reached
    if _fails is None or _fails[1] != name:
        return
    _reached += 1
    if _reached != int(_fails[3] or 1):
        return
    if path is not None and name.endswith("half"):
        if path.is_dir():
            path = max(path.iterdir(), key=lambda file: file.stat().st_size)
        os.truncate(path, path.stat().st_size // 2)
    action = _fails[2]
    if action == "sleep":
        time.sleep(1)
    elif action in ("kill9", "sigterm"):
        number = signal.SIGTERM if action == "sigterm" else 9  # none on Windows
        os.kill(os.getpid(), number)
    elif action == "raise":
        raise RuntimeError(f"failpoint {name}")
    else:
        number = getattr(errno, action.upper())
        raise OSError(number, os.strerror(number), str(path) if path else None)


def cache_home() -> Path:
    """Return llmft's cache folder: LLMFT_HOME, else one in the user's cache folder.

    Raises:
        EnvironmentFault: there is no home folder to put it in.
    """
    try:
        if chosen := os.environ.get("LLMFT_HOME"):
            return Path(chosen).expanduser().absolute()
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA")
            base = Path(local) if local else Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME", ""))
            if not base.is_absolute():  # unset, or relative, which XDG says to ignore
                base = Path.home() / ".cache"
    except RuntimeError as error:
        raise EnvironmentFault(
            "the user's home folder cannot be determined",
            "a place for downloads",
            "set LLMFT_HOME to a folder",
        ) from error
    return base / "llmft"


def sync(path: Path) -> None:
    """Ask the system to bring a file or a folder's entries to the disk.

    Windows opens no folders, and syncs only what is open for writing.

    Raises OSError where the data of a file did not reach the disk.
    """
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot do this, for folders or at all.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """Return the XXH3 of a file's bytes; of 2 GB 0.4 s less than CRC-32."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, xxh3_64).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def try_lock(descriptor: int) -> bool:
    """Take a lock that the system frees when the last holder dies; False if held."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` through a temporary file and a rename.

    A lone surrogate, as in a file name that is not UTF-8, is written as ``\\udc80``,
    which JSON reads back.
    """
    staging = aside(path)
    try:
        with open(staging, "w", -1, "utf-8", "backslashreplace", "\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(staging, path)
    except OSError as error:
        raise placed(error, path) from None
    finally:
        staging.unlink(missing_ok=True)


def _unique() -> str:
    """Return a name that says which process of which machine is writing."""
    _ours.add(name := f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    return name


def aside(path: Path) -> Path:
    """Return a name beside a path for what is in the making there, or on its way out.

    ``clear_stagings`` takes away what a killed process left under it.
    """
    return path.with_name(f".{path.name}.staging-{_unique()}")


def finite(value: Any) -> Any:
    """Return None for NaN and infinity, which are no JSON, anything else as it is."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any, indent: int | None = None) -> str:
    """Return strict JSON. Raises ValueError on NaN and infinity."""
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``; an empty one where there is none.

    NaN and infinity, which are no JSON, become None.
    """
    try:
        text = path.read_text("utf-8")
        found = json.loads(text, parse_constant=lambda name: None)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as strict, indented JSON; see ``write_text``."""
    write_text(path, to_json(value, indent=2) + "\n")


@contextmanager
def publish_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that becomes it when the block ends.

    Nothing is visible under ``target`` before everything is written and synced. If
    the block raises, or another process published ``target`` first, the staging
    folder is removed; in the second case the other's folder stays, except where
    ``replace`` says that it is an older one. All files get the mode that the umask
    asks for (safetensors writes 0600).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_stagings(target.parent)
    staging = aside(target)
    staging.mkdir()
    older = target.with_name(staging.name.replace(".staging-", ".older-"))
    mask = os.umask(0)
    os.umask(mask)
    # Of what is published only once (downloads, a cache), none fails.
    fails = failpoint if replace else lambda name: None
    try:
        yield staging
        fails("save.fsync")
        for path in sorted(staging.rglob("*")):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
            sync(path)
        sync(staging)
        fails("save.publish.before")
        if replace and target.is_dir():
            os.rename(target, older)
        try:
            os.rename(staging, target)
        except OSError:
            if not target.is_dir():
                raise
        fails("save.publish.after")
        sync(target.parent)
        fails("save.dirsync")
        shutil.rmtree(older, ignore_errors=True)
    except OSError as error:
        raise placed(error, target) from None
    finally:
        if older.is_dir() and not target.exists():  # stopped between the two renames
            os.rename(older, target)
        shutil.rmtree(staging, ignore_errors=True)


def placed(error: OSError, path: Path) -> OSError:
    """Return the error, naming ``path`` where it names none, as of a full disk."""
    if error.errno is not None and error.filename is None:
        error.filename = str(path)
    return error


def clear_stagings(folder: Path) -> None:
    """Take away what processes of this machine left in a folder that were killed.

    What one had moved aside comes back where it put nothing there instead.
    """
    for kind in ("older", "staging"):
        for path in folder.glob(f".*.{kind}-*-*-*"):
            name, _, unique = path.name.rpartition(f".{kind}-")
            host, process, _ = unique.rsplit("-", 2)
            if host != platform.node() or not process.isdecimal():
                continue
            # In a container, one that was killed had the number of this one.
            own = int(process) == os.getpid()
            if unique in _ours or (not own and psutil.pid_exists(int(process))):
                continue
            target = path.with_name(name[1:])
            if kind == "older" and not target.exists():
                with suppress(OSError):  # another process was first
                    os.rename(path, target)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def disk(folder: Path) -> int:
    """Return the bytes of the files in and below a folder; links are not followed."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # a run at work took it away meanwhile
                total += os.lstat(os.path.join(parent, name)).st_size
    return total
