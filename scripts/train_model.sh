#!/usr/bin/env bash
# Sets up where needed and runs a recipe:
#   scripts/train_model.sh [mlm|classify|generate] [flags of the recipe]
set -euo pipefail
cd "$(dirname "$0")/.."

recipe=mlm
case "${1:-}" in
  mlm | classify | generate) recipe="$1"; shift ;;
  "" | -*) ;;
  *) echo "usage: scripts/train_model.sh [mlm|classify|generate] [flags]" >&2; exit 2 ;;
esac
# Bare, each recipe trains on its embedded default; generate.py alone would only sample.
if [ "$recipe" = generate ] && [ $# -eq 0 ]; then
  set -- --args recipes/generate_cpu.json
fi
scripts/setup.sh
exec .venv/bin/python "recipes/$recipe.py" "$@"
