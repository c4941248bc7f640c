#!/usr/bin/env bash
# The one test command: sets up, lints, checks types, runs all tests.
#   scripts/test.sh             scripts/test.sh tests/unit -k config
# With PYTHON=python3.13, in an environment of its own beside .venv.
set -euo pipefail
CDPATH= cd "$(dirname "$0")/.."
[[ "${1:-}" =~ ^(-h|--help)$ ]] && exec sed -n "2,4s/^# *//p" scripts/test.sh

if [ -n "${PYTHON:-}" ]; then
  version="$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
  export VENV="${VENV:-.venv-$version}"
fi
venv="${VENV:-.venv}"
scripts/setup.sh
"$venv"/bin/ruff check .
"$venv"/bin/ruff format --check .
"$venv"/bin/mypy
"$venv"/bin/mypy scripts/*.py
# Tests of a file stay in one process, which makes what they share once.
"$venv"/bin/python -m pytest -n logical --maxprocesses 4 --dist loadscope "$@"
