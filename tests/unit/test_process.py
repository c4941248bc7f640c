"""The frame around a command: one line a fault, the right exit code, signals."""

import errno
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._utils import ExceptionWrapper

from llmft import console, errors, process
from llmft.console import say
from llmft.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DataFormatError,
    EncodingError,
    EnvironmentFault,
    LabelError,
    LeakageError,
    LengthError,
    LlmftError,
    NonFiniteError,
    SchemaError,
    UnsafeArtifactError,
)
from llmft.process import as_fault, run_command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _loggers_restored():
    loggers = [logging.getLogger(name) for name in console.LIBRARIES]
    before = [(x.level, x.propagate, x.handlers[:]) for x in loggers]
    yield
    for x, (level, propagate, handlers) in zip(loggers, before, strict=True):
        x.level, x.propagate, x.handlers = level, propagate, handlers


CODES = {
    ConfigError: 2,
    DataError: 3,
    EncodingError: 3,
    DataFormatError: 3,
    SchemaError: 3,
    LabelError: 3,
    LengthError: 3,
    LeakageError: 3,
    CheckpointError: 4,
    EnvironmentFault: 5,
    NonFiniteError: 6,
    UnsafeArtifactError: 7,
}


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize("kind", CODES)
def test_exit_code_of_each_kind(kind, capsys):
    assert run_command(raising(kind("said")), []) == CODES[kind] == kind.exit_code
    assert capsys.readouterr() == ("", f"llmft: {kind.__name__}: said\n")


def test_every_kind_has_its_code_in_the_contract():
    kinds = [k for k in vars(errors).values() if isinstance(k, type)]
    assert {k for k in kinds if issubclass(k, LlmftError)} == {LlmftError, *CODES}


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "llmft: interrupted\n"),
        (process.Terminated(), 143, "llmft: terminated\n"),
        (SystemExit(0), 0, ""),
        (SystemExit(3), 3, ""),
        (SystemExit("text"), 1, ""),
        (
            OSError(errno.ENOSPC, "x", "/full/disk"),
            5,
            "llmft: EnvironmentFault /full/disk: No space left on device; free some"
            " space\n",
        ),
        (
            ValueError("a\nb\x1b[1m"),
            1,
            "llmft: InternalError: ValueError: a\\nb\\x1b[1m\n"
            "llmft: run again with --debug for details\n",
        ),
    ],
)
def test_other_ends(error, code, said, capsys):
    assert run_command(raising(error), []) == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("could not create a primitive"),  # oneDNN, under RLIMIT_AS
        OSError(errno.ENOMEM, "x"),
    ],
)
def test_out_of_memory_says_what_to_lower(error, capsys):
    assert run_command(raising(error), []) == 5
    said = capsys.readouterr().err
    held = r"out of memory: the process holds \d+\.\d GiB; lower per_device_train_"
    assert re.match(f"llmft: EnvironmentFault: {held}", said)
    assert said.count("\n") == 1


NETWORK = "check network and proxy"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EDQUOT, "x"), "Disk quota exceeded; free some space"),
        (OSError(errno.EACCES, "x"), "Permission denied; check the permissions"),
        (OSError(errno.EPERM, "x"), "Operation not permitted; check the permissions"),
        (OSError(errno.EROFS, "x"), "Read-only file system; choose a folder that can"),
        (OSError(errno.EMFILE, "x"), "Too many open files; raise the limit of open"),
        (OSError(errno.ENOENT, "x"), "No such file or directory; check the path"),
        (OSError(errno.ECONNREFUSED, "x"), f"Connection refused; {NETWORK}"),
        (socket.gaierror(-2, "Name not known"), f"Name not known; {NETWORK}"),
        (OSError(errno.EIO, "x"), "Input/output error"),  # nothing that would help
        (ValueError("IO: (os error 28)"), "No space left on device; free some space"),
        (RuntimeError("unexpected pos 1 vs 2"), "device; free some space"),
    ],
)
def test_a_system_error_says_what_helps(error, said):
    found = str(as_fault(error, "/run"))
    assert said in found
    assert ("; " in found) == ("; " in said)


FULL = "No space left on device"


@pytest.mark.parametrize(
    ("error", "full", "said"),
    [
        (OSError(errno.ENOSPC, "x", "/a b"), "", f" /a b: {FULL}; free some space"),
        (OSError(errno.ENOSPC, "x"), "/run", f" /run: {FULL}; free some space"),
        (OSError(errno.ENOSPC, "x"), "/mine", f" /mine: {FULL}; `llmft cache clear`"),
        (OSError(errno.ENOSPC, "x"), "/tmps", f" /tmps: {FULL}; free some, or name"),
        (OSError(errno.ENOSPC, "x"), "/dev/shm", f" /dev/shm: {FULL}; --dataloader_"),
        (OSError(errno.ENOSPC, "x"), "", f" /run: {FULL}; free some space"),
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1>"),
            "",
            f" /dev/shm: {FULL}; --dataloader_num_workers 0 needs",
        ),
        (
            RuntimeError(
                "Bus error. It is possible that dataloader's workers are out"
                " of shared memory."
            ),
            "",
            f" /dev/shm: {FULL}; --dataloader_num_workers 0 needs",
        ),
    ],
    ids=range(8),
)
@pytest.mark.parametrize("in_worker", [False, True])
def test_a_full_place_is_named(error, full, said, in_worker, monkeypatch):
    """Also of a worker, whose error comes as a text."""
    monkeypatch.setenv("LLMFT_HOME", "/mine")
    monkeypatch.setattr(process.tempfile, "gettempdir", lambda: "/tmps")

    def free(place):
        return SimpleNamespace(free=0 if str(place) == full else 10**9)

    if in_worker:
        wrapped = ExceptionWrapper(
            (type(error), error, None), "in DataLoader worker process 0"
        )
        with pytest.raises(type(error)) as caught:
            wrapped.reraise()
        error = caught.value
    monkeypatch.setattr(process.shutil, "disk_usage", free)
    found = str(as_fault(error, Path("/run")))
    assert found.startswith("EnvironmentFault" + said)


def test_success_and_arguments():
    seen = []
    assert run_command(seen.append, ["--x", "1"]) == 0
    assert seen == [["--x", "1"]]


@pytest.mark.parametrize("error", [ValueError("odd"), DataError("odd")])
def test_traceback_only_with_debug(error, capsys, caplog):
    console.logger.addHandler(caplog.handler)  # stands for debug.log
    run_command(raising(error), [])
    assert "Traceback" not in capsys.readouterr().err
    console.logger.addHandler(caplog.handler)
    code = run_command(raising(error), ["--debug"])
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert "raise error" in said
    assert f"llmft: {'InternalError: ' if code == 1 else ''}" in said


def test_debug_log_holds_what_was_said_and_the_traceback(tmp_path, capsys):
    def main(argv):
        with console.log_to_file(tmp_path / "debug.log"):
            say("hello\x07")
            raise ValueError("odd")

    assert run_command(main, []) == 1
    console.logger.error("after the run")
    log = (tmp_path / "debug.log").read_text("utf-8")
    assert r"DEBUG llmft: hello\x07" in log
    assert "Traceback (most recent call last)" in log
    assert "after the run" not in log
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("end", [None, DataError("x"), KeyboardInterrupt()])
def test_the_signal_handler_is_restored(end):
    def ours(signum, frame):
        pytest.fail("must not be called")

    def main(argv):
        assert signal.getsignal(signal.SIGTERM) is not ours
        if end is not None:
            raise end

    before = signal.signal(signal.SIGTERM, ours)
    try:
        run_command(main, [])
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 143, "cleaned up\nllmft: terminated\n"),
        (signal.SIGINT, 130, "cleaned up\nllmft: interrupted\n"),
    ],
)
def test_a_real_signal(number, code, said):
    program = """
import sys, time
from llmft.process import as_fault, run_command
def main(argv):
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        print("cleaned up", file=sys.stderr)
sys.exit(run_command(main, []))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout.readline() == "ready\n"
        time.sleep(0.05)
        running.send_signal(number)
        assert running.wait(10) == code
        assert running.stderr.read() == said


def test_a_crash_says_where_python_was(tmp_path):
    """And nothing is left changed; a run that is no command has it in its log."""
    program = """
import ctypes, faulthandler, pathlib, sys
from llmft.console import crashes_to
from llmft.process import run_command
def crash(argv=()):
    ctypes.string_at(0)
run_command(lambda argv: print(faulthandler.is_enabled()), [])
print(faulthandler.is_enabled(), flush=True)
def run(argv=()):  # as a command has it, with its own log
    with crashes_to(pathlib.Path(sys.argv[1])):
        if sys.argv[2] == "within":
            crash()
    if sys.argv[2] == "after":
        crash()
if len(sys.argv) == 1:
    run_command(crash, [])
run_command(run, [])
with crashes_to(pathlib.Path(sys.argv[1])):
    crash()
"""
    log = tmp_path / "debug.log"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONFAULTHANDLER"}
    for more in ([], *([str(log), where] for where in ("alone", "within", "after"))):
        log.unlink(missing_ok=True)
        command = [sys.executable, "-c", program, *more]
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.returncode == -signal.SIGSEGV
        assert done.stdout == "True\nFalse\n"
        to_log = bool(more) and more[1] != "after"
        said = log.read_text() if to_log else done.stderr
        assert "Fatal Python error: Segmentation fault" in said
        assert ", line 6 in crash" in said
        assert not (done.stderr if to_log else more and log.read_text())


class _Deaf:
    """An object in whose end Python ignores every exception."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_a_signal_that_gets_lost_is_remembered(capsys):
    """And what fails because of it does not hide it, nor do others' tracebacks."""
    seen = []

    def main(argv):
        _Deaf()
        seen.append(process.stopped_by())
        raise RuntimeError("DataLoader worker is killed by signal: Terminated.")

    hooks = sys.unraisablehook, sys.excepthook, signal.getsignal(signal.SIGCHLD)
    assert run_command(main, []) == process.TERMINATED
    assert seen == [process.Terminated]
    assert capsys.readouterr().err == "llmft: terminated\n"
    now = sys.unraisablehook, sys.excepthook, signal.getsignal(signal.SIGCHLD)
    assert now == hooks
    assert process.stopped_by() is None


def test_a_fork_that_gets_the_signal_ends_at_once(capfd):
    def main(argv):
        child = os.fork()
        if not child:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            finally:
                os._exit(1)
        seen.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    seen = []
    assert run_command(main, []) == 0
    assert seen == [143]
    assert capfd.readouterr().err == ""


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_a_full_standard_output_ends_a_command_but_not_a_run(tmp_path):
    program = """
import sys
from pathlib import Path
from llmft.console import log_to_file, say
from llmft.process import as_fault, run_command
def main(argv):
    if not argv:
        say("lost")
    with log_to_file(Path(argv[0])):
        say("first")
        say("second")
sys.exit(run_command(main, sys.argv[1:]))
"""
    log = tmp_path / "debug.log"

    def run(*flags):
        with FULL.open("w") as full:
            return subprocess.run(
                [sys.executable, "-c", program, *flags],
                cwd=ROOT,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
            )

    cause = "standard output cannot be written: No space left on device; "
    done = run()
    assert done.returncode == 5
    assert done.stderr == f"llmft: EnvironmentFault: {cause}send it elsewhere\n"
    done = run(str(log))
    assert done.returncode == 0
    assert done.stderr == (
        f"llmft: warning: {cause}the run goes on, the rest is in its logs/debug.log\n"
    )
    assert [line.split(": ", 1)[1] for line in log.read_text().splitlines()] == [
        "first",
        f"{cause}the run goes on, the rest is in its logs/debug.log",
        "second",
    ]


@pytest.mark.parametrize("broken", ["reader has gone", "disk full", "closed"])
def test_a_broken_standard_error_ends_nothing(broken, tmp_path):
    program = """
import sys
from tqdm import tqdm
from pathlib import Path
from llmft.console import log_to_file, say
from llmft.process import as_fault, run_command
from llmft.errors import DataError
def main(argv):
    with log_to_file(Path(argv[0])):
        for _ in tqdm(range(3), mininterval=0):
            pass
        say("went on")
        raise DataError("bad")
sys.exit(run_command(main, sys.argv[1:]))
"""
    log = tmp_path / "debug.log"
    command = [sys.executable, "-c", program, str(log)]
    stderr = None
    if broken == "closed":
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    elif broken == "disk full":
        if not FULL.exists():
            pytest.skip("no /dev/full here")
        stderr = os.open(FULL, os.O_WRONLY)
    else:
        read, stderr = os.pipe()
        os.close(read)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr)
    if stderr is not None:
        os.close(stderr)
        assert log.read_text().count("standard error cannot be written: ") == 1
    assert (done.returncode, done.stdout) == (3, b"went on\n")


def test_an_interrupt_while_python_ends_is_no_traceback():
    program = """
import atexit, os, signal, sys
from llmft.process import as_fault, run_command
atexit.register(os.kill, os.getpid(), signal.SIGINT)
code = run_command(lambda argv: print("done"), [])
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_command_outside_the_main_thread(capsys):
    """Signals are the main thread's: its handlers stay, exit codes are the same."""
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    codes = []

    def command(main):
        codes.append(run_command(main, []))
        now = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
        codes.append(now == handlers)

    for main in (lambda argv: None, raising(DataError("bad"))):
        thread = threading.Thread(target=command, args=[main])
        thread.start()
        thread.join()
    assert codes == [0, True, 3, True]
    assert capsys.readouterr().err == "llmft: DataError: bad\n"


# A recipe in small: what it imports has a logger on the terminal, as transformers has.
SCRIPT = """
import sys
from llmft.process import run_script
if __name__ == "__main__":
    sys.exit(run_script(__file__, sys.argv[1:]))
import json
import logging, multiprocessing, os
logging.getLogger("transformers").addHandler(logging.StreamHandler())
class Row:
    def __init__(self):
        self.place = __file__
def place(row):
    return row.place, os.environ.get("GOMP_SPINCOUNT")
def main(argv):
    logging.getLogger("transformers").warning("noise")
    for method in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(pool.map(place, [Row()]))
    names = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"
    print(json.dumps([argv, {n: os.environ.get(n) for n in names}]))
"""


def script_process(folder, text, *flags, **settings):
    """Start a script of this text; the tests' own settings of threads do not count."""
    script = folder / "script.py"
    script.write_text(text)
    kept = {k: v for k, v in os.environ.items() if k not in process.WAITING_VARIABLES}
    return subprocess.Popen(
        [sys.executable, str(script), *flags],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_script_is_imported_inside_the_frame(tmp_path):
    """Workers of every kind find what the script defines, and wait as it does."""
    running = script_process(tmp_path, SCRIPT, "--flag", "x")
    said, noise = running.communicate(timeout=60)
    assert (running.returncode, noise) == (0, "")
    *places, last = said.splitlines()
    found = [(str(tmp_path / "script.py"), process.spinning()["GOMP_SPINCOUNT"])]
    assert {*places} == {str(found)}
    variables = {"OMP_WAIT_POLICY": None, **process.spinning()}
    assert json.loads(last) == [["--flag", "x"], variables]


SEEN = """
import json, os, sys
from llmft import process
if "torch" in sys.argv:
    import torch
process.limit_spinning()
found = {n: os.environ.get(n) for n in process.WAITING_VARIABLES}
slow = {"torch", "transformers", "datasets", "numpy"} & {*sys.modules}
print(json.dumps([{n: v for n, v in found.items() if v}, sorted(slow - {*sys.argv})]))
"""


@pytest.mark.parametrize(
    ("given", "set_after"),
    [
        ({}, process.spinning()),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"KMP_BLOCKTIME": "200"}, {"KMP_BLOCKTIME": "200"}),
    ],
)
def test_how_threads_wait_is_set_before_torch_unless_the_user_did(
    given, set_after, tmp_path
):
    running = script_process(tmp_path, SEEN, **given)
    assert json.loads(running.communicate(timeout=60)[0]) == [set_after, []]


@pytest.mark.parametrize(
    ("cpuinfo", "rounds"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\n", "1000"),
        ("processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\n", "3000"),
        ("processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd\n", "3000"),
        (None, "3000"),  # not Linux
    ],
)
def test_how_long_threads_spin_goes_by_the_processor(cpuinfo, rounds, tmp_path):
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    assert process.spinning(path)["GOMP_SPINCOUNT"] == rounds


def test_nothing_is_set_where_it_would_be_too_late(monkeypatch):
    for name in process.WAITING_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    process.limit_spinning()  # torch is here
    assert not os.environ.keys() & {*process.WAITING_VARIABLES}


@pytest.mark.parametrize(
    "meanwhile",
    ["time.sleep(30)", "try:\n    time.sleep(30)\nexcept BaseException:\n    pass"],
)
def test_ctrl_c_while_a_script_is_imported(meanwhile, tmp_path):
    """Also where an import swallows it."""
    slow = f"import json, time\nprint('ready', flush=True)\n{meanwhile}\n"
    with script_process(tmp_path, SCRIPT.replace("import json", slow, 1)) as running:
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(10) == 130
        assert running.stderr.read() == "llmft: interrupted\n"
        assert running.stdout.read() == ""
