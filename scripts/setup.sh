#!/usr/bin/env bash
# Makes .venv with PyTorch, llmft and its tools; run again, it does only what is missing.
#   scripts/setup.sh            PYTHON=python3.12 scripts/setup.sh
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: $("$python" --version 2>&1) is too old: llmft needs Python 3.11 or newer (PYTHON=... scripts/setup.sh)" >&2
  exit 5
}

# The stamp says what .venv was made from. It is written last, so that an interrupted
# set-up is done again.
stamp=.venv/.llmft-setup
wanted="$(cat pyproject.toml scripts/constraints.txt scripts/setup.sh | cksum) $PWD"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null; then
  exit 0
fi

[ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1 || {
  echo "setup: making .venv"
  "$python" -m venv --clear .venv
}
# PyTorch first and pinned: asked for by another package, pip takes the newest build,
# which on Linux is the CUDA one with several GB.
echo "setup: installing PyTorch"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt \
  ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
echo "setup: installing llmft and its tools"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt -e '.[dev]'
printf '%s' "$wanted" >"$stamp"
echo "setup: done"
