#!/usr/bin/env bash
# Makes .venv with PyTorch, llmft and its tools; run again, it does only what is missing.
#   scripts/setup.sh            PYTHON=python3.12 scripts/setup.sh
# VENV names another folder than .venv, as for a second version of Python.
set -euo pipefail
CDPATH= cd "$(dirname "$0")/.."
[[ "${1:-}" =~ ^(-h|--help)$ ]] && exec sed -n '2,4s/^# *//p' scripts/setup.sh

fail() {
  echo "setup: $1" >&2
  exit 5
}

# The stamp says what the environment was made from. It is written last, so that an
# interrupted set-up is done again.
venv="${VENV:-.venv}"
stamp="$venv/.llmft-setup"
wanted="$(cat pyproject.toml scripts/constraints.txt scripts/setup.sh | cksum) $PWD"
is_ready() {
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && "$venv/bin/python" -c '' 2>/dev/null
}
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
if [ -n "${PYTHON:-}" ] && asked="$(version "$PYTHON")" && there="$(version "$venv/bin/python")"; then
  [ -z "$asked" ] || [ "${there:-$asked}" = "$asked" ] ||
    fail "$venv has Python $there, PYTHON is $asked: remove it, or name another: VENV=.venv-$asked $0"
fi
is_ready && exit 0

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
python="${PYTHON:-}"
if [ -z "$python" ]; then
  for python in python3 python3.14 python3.13 python3.12 python3.11; do
    is_new_enough "$python" && break
  done
fi
is_new_enough "$python" ||
  fail "${PYTHON:-python3} is $("${PYTHON:-python3}" --version 2>&1 || true), llmft needs Python 3.11 or newer: install it, then name it: PYTHON=/path/to/python3.12 $0"

# One set-up at a time. The lock is the script's own file: it goes with the process.
exec 9<scripts/setup.sh
"$python" - <<'LOCK'
import fcntl
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("setup: waiting for another set-up to end", flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError:  # of a network's file system, which locks nothing that is only read
    pass
LOCK
is_ready && exit 0

has_pip() { is_new_enough "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }
# Nothing of a folder that this script did not make is taken away.
if ! has_pip && [ ! -f "$stamp" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
  # Again, without --clear, venv makes what is missing: pip, and bin/activate.
  { is_new_enough "$venv/bin/python" && "$venv/bin/python" -m venv "$venv" >/dev/null 2>&1 && has_pip; } ||
    fail "$venv is there, and no environment with Python 3.11 or newer and pip: remove it, or name another: VENV=.venv-llmft $0"
fi
has_pip || {
  echo "setup: making $venv"
  "$python" -m venv --clear "$venv" ||
    fail "$python cannot make $venv (its message is above); on Debian and Ubuntu it needs the package python3-venv"
  : >"$stamp"  # it is ours, whatever becomes of it
}
install() {
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt "$@" ||
    fail "pip could not install this (its message is above): check the network, or the index and proxy that \`$venv/bin/python -m pip config list\` shows, and run again"
}
# PyTorch first and pinned: asked for by another package, pip takes the newest build,
# which on Linux is the CUDA one with several GB.
echo "setup: installing PyTorch"
install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
echo "setup: installing llmft and its tools"
install -e '.[dev]'
printf '%s' "$wanted" >"$stamp"
echo "setup: done"
