"""Nothing half written is ever seen under its final name."""

import errno
import json
import math
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llmft import files
from llmft.files import (
    clear_stagings,
    publish_folder,
    sync,
    to_json,
    write_json,
    write_text,
)

ROOT = Path(__file__).parents[2]


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def umask():
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


def test_write_json_is_strict_utf8_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "a.json", {"text": "é漢\u2028", "n": [1, 0.1, None]})
    raw = (tmp_path / "a.json").read_bytes()
    assert raw.decode("utf-8") == (
        '{\n  "text": "é漢\u2028",\n  "n": [\n    1,\n    0.1,\n    null\n  ]\n}\n'
    )
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("before", [None, "old"])
def test_nan_is_refused_and_nothing_is_written(tmp_path, value, before):
    if before:
        (tmp_path / "a.json").write_text(before)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": [value]})
    assert names(tmp_path) == (["a.json"] if before else [])
    assert not before or (tmp_path / "a.json").read_text() == before


def test_to_json_is_one_line():
    assert to_json({"a": "x\ny", "b": 1}) == '{"a": "x\\ny", "b": 1}'
    assert json.loads(to_json("\ud83d")) == "\ud83d"


def test_write_text_keeps_line_ends_and_replaces(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("one\r\ntwo\n", "new"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_no_temporary(
    tmp_path, monkeypatch, step
):
    def full(*args):
        raise OSError(errno.ENOSPC, "no space")

    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_publish_folder_shows_nothing_until_it_is_done(tmp_path):
    target = tmp_path / "made" / "model"
    with publish_folder(target) as staging:
        assert names(staging) == []
        assert staging.parent == target.parent  # the rename stays on one file system
        (staging / "a.txt").write_text("a")
        (staging / "sub").mkdir()
        (staging / "sub" / "b.txt").write_text("b")
        assert not target.exists()
    assert (target / "a.txt").read_text() + (target / "sub/b.txt").read_text() == "ab"
    assert names(tmp_path / "made") == ["model"]


def test_publish_folder_where_folders_cannot_be_opened(tmp_path, monkeypatch):
    """As on Windows, which also syncs only what is open for writing."""
    writable = set()

    def opened(path, flags, *args):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        descriptor = real(path, flags, *args)
        if flags & os.O_RDWR:
            writable.add(descriptor)
        return descriptor

    real = os.open
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(files.os, "open", opened)
    monkeypatch.setattr(files.os, "fsync", lambda fd: writable.remove(fd))
    with publish_folder(tmp_path / "model") as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "a.txt").write_text("a")
    monkeypatch.undo()
    assert (tmp_path / "model" / "sub" / "a.txt").read_text() == "a"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_publish_folder_leaves_nothing_on_an_error(tmp_path, error):
    def write_and_fail():
        with publish_folder(tmp_path / "model") as staging:
            (staging / "a.txt").write_text("a")
            raise error

    with pytest.raises(error):
        write_and_fail()
    assert names(tmp_path) == []


def test_what_is_being_replaced_comes_back_when_stopped(tmp_path, monkeypatch):
    """Ctrl-C between the rename of the older folder and that of the new one."""
    target = tmp_path / "model"
    with publish_folder(target) as staging:
        (staging / "a.txt").write_text("older")
    rename = os.rename

    def stopped(source, destination):
        if ".staging-" in str(source):
            raise KeyboardInterrupt
        rename(source, destination)

    monkeypatch.setattr(os, "rename", stopped)
    with (
        pytest.raises(KeyboardInterrupt),
        publish_folder(target, replace=True) as staging,
    ):
        (staging / "a.txt").write_text("newer")
    assert (target / "a.txt").read_text() == "older"
    assert names(tmp_path) == ["model"]


def test_the_loser_of_a_race_keeps_what_the_winner_wrote(tmp_path):
    target = tmp_path / "model"
    with publish_folder(target) as slow:
        (slow / "a.txt").write_text("slow")
        with publish_folder(target) as fast:
            assert fast != slow
            (fast / "a.txt").write_text("fast")
    assert (target / "a.txt").read_text() == "fast"
    assert names(tmp_path) == ["model"]


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "model").write_text("a file")
    with (
        pytest.raises(NotADirectoryError),
        publish_folder(tmp_path / "model") as staging,
    ):
        (staging / "a").write_text("x")
    assert (tmp_path / "model").read_text() == "a file"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("mask", "file_mode", "folder_mode"),
    [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)],
)
def test_modes_follow_the_umask(tmp_path, umask, mask, file_mode, folder_mode):
    umask(mask)
    with publish_folder(tmp_path / "model") as staging:
        (staging / "sub").mkdir(mode=0o700)
        for path in (staging / "a", staging / "sub" / "b"):
            path.write_text("x")
            path.chmod(0o600)  # as safetensors does
    write_text(tmp_path / "text", "x")

    def mode(name):
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    assert {mode("model/a"), mode("model/sub/b"), mode("text")} == {file_mode}
    assert {mode("model"), mode("model/sub")} == {folder_mode}
    assert umask(mask) == mask  # left as it was


@pytest.mark.parametrize(
    ("code", "passes"),
    [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)],
)
def test_sync_passes_over_what_a_file_system_cannot_do(
    tmp_path, monkeypatch, code, passes
):
    def failing(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", failing)
    if passes:
        sync(tmp_path)
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            sync(tmp_path)


def test_what_a_killed_process_left_is_taken_away(tmp_path):
    target = tmp_path / "a[1]"
    code = (
        "import os, signal, sys; from pathlib import Path; from llmft import files\n"
        "with files.publish_folder(Path(sys.argv[1])) as staging:\n"
        "    (staging / 'x').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, target], cwd=ROOT, check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a[1].staging-")
    with publish_folder(target) as mine, publish_folder(target):
        assert mine.is_dir()  # that of a process that lives
    assert names(tmp_path) == ["a[1]"]


def test_what_a_killed_process_had_moved_aside_comes_back(tmp_path):
    """Killed between the two renames, its older folder is all that there is."""
    target = tmp_path / "model"
    with publish_folder(target) as staging:
        (staging / "a.txt").write_text("older")
    code = (
        "import os, signal, sys; from pathlib import Path; from llmft import files\n"
        "rename = os.rename\n"
        "def kill(a, b):\n"
        "    rename(a, b); os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.rename = kill\n"
        "with files.publish_folder(Path(sys.argv[1]), replace=True) as staging:\n"
        "    (staging / 'a.txt').write_text('newer')"
    )
    subprocess.run([sys.executable, "-c", code, target], cwd=ROOT, check=False)
    assert not target.exists()
    clear_stagings(tmp_path)
    assert (target / "a.txt").read_text() == "older"
    assert names(tmp_path) == ["model"]


def test_what_one_of_the_same_number_left_is_taken_away(tmp_path):
    """In a container every process that is started again has it."""
    other = f"{platform.node()}-{os.getpid()}-0123abcd"
    (tmp_path / f".data.staging-{other}").mkdir()
    (tmp_path / f".model.older-{other}").mkdir()
    with publish_folder(tmp_path / "mine") as staging:
        clear_stagings(tmp_path)
        assert staging.is_dir()
    assert names(tmp_path) == ["mine", "model"]


def test_a_full_disk_is_named(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No s") as caught, publish_folder(tmp_path / "a"):
        raise full
    assert caught.value.filename == str(tmp_path / "a")


@pytest.mark.parametrize(
    ("given", "reached", "ends"),
    [
        ("", [], "ok 8"),
        ("a.half:raise@2", ["a.half"], "ok 8"),
        ("a.half:raise@2", ["a.half", "b", "a.half"], "failpoint a.half 4"),
        ("b:enospc", ["a.half", "b"], "[Errno 28] No space left on device: 'f' 8"),
        ("b:kill9", ["b"], "-9"),
        ("b:sigterm", ["b"], "-15"),
    ],
)
def test_a_failpoint(given, reached, ends, tmp_path):
    (tmp_path / "f").write_text("8 bytes.")
    program = f"""
from pathlib import Path
from llmft.files import failpoint
path, said = Path("f"), "ok"
try:
    for name in {reached}:
        failpoint(name, path)
except Exception as error:
    said = error
print(said, path.stat().st_size)
"""
    env = {**os.environ, "LLMFT_FAILPOINT": given, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.stdout.strip() or str(done.returncode)) == ends
