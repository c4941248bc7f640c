#!/usr/bin/env bash
# The one test command: sets up, lints, checks types, runs all tests.
#   scripts/test.sh             scripts/test.sh tests/unit -k config
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"
