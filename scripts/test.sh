#!/usr/bin/env bash
# The one test command: sets up, lints, checks types, runs all tests.
#   scripts/test.sh             scripts/test.sh tests/unit -k config
set -euo pipefail
CDPATH= cd "$(dirname "$0")/.."
[[ "${1:-}" =~ ^(-h|--help)$ ]] && exec sed -n "2,3s/^# *//p" scripts/test.sh

scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Tests of a file stay in one process, which makes what they share once.
.venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadscope "$@"
