"""Workers of pytest-xdist have to collect the same tests, each for itself."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_names_of_tests_hold_no_clock_no_hash_and_no_path(tmp_path):
    """Collected by two processes a second apart, with other hashes and folders."""
    pytest = [sys.executable, "-m", "pytest", "--collect-only", "-q", str(TESTS)]
    running = []
    for seed in ("1", "2"):
        home = tmp_path / seed
        home.mkdir()
        env = {**os.environ, "PYTHONHASHSEED": seed, "TMPDIR": str(home)}
        options = ["-p", "no:cacheprovider", "-p", "no:xdist"]
        running.append(
            subprocess.Popen(
                [*pytest, *options], cwd=TESTS.parent, env=env, stdout=subprocess.PIPE
            )
        )
        time.sleep(1.1)  # the clock in what gzip writes counts seconds
    found = []
    for process in running:
        said = process.communicate()[0].decode()
        assert process.returncode == 0, said
        found.append([line for line in said.splitlines() if "::" in line])
    first, second = found
    assert len(first) > 1000
    assert not [a for a, b in zip(first, second, strict=True) if a != b]
    places = (str(TESTS.parent), str(tmp_path), tempfile.gettempdir())
    assert not [name for name in first if any(place in name for place in places)]
