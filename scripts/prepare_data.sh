#!/usr/bin/env bash
# Brings the default models and data into the cache, so that everything works offline.
set -euo pipefail
CDPATH= cd "$(dirname "$0")/.."
[[ "${1:-}" =~ ^(-h|--help)$ ]] && exec sed -n "2s/^# *//p" scripts/prepare_data.sh

scripts/setup.sh
venv="${VENV:-.venv}"
"$venv"/bin/llmft assets fetch --all
# Unpacks the GGUF model once.
"$venv"/bin/python recipes/generate.py --prompt "Hello" --max_new_tokens 1 >/dev/null
"$venv"/bin/llmft assets
