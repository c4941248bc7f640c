#!/usr/bin/env bash
# Sets up where needed and runs a recipe; files in flags are seen from where you are:
#   scripts/train_model.sh [mlm|classify|generate] [flags of the recipe]
#   scripts/train_model.sh generate --help      the flags
set -euo pipefail
unset CDPATH
root="$(cd "$(dirname "$0")/.." && pwd)"

recipe=mlm
case "${1:-}" in
  -h | --help) exec sed -n '2,4s/^# //p' "$root/scripts/train_model.sh" ;;
  mlm | classify | generate) recipe="$1"; shift ;;
  "" | -*) ;;
  *) echo "usage: scripts/train_model.sh [mlm|classify|generate] [flags]" >&2; exit 2 ;;
esac
# Bare, each recipe trains on its embedded default; generate.py alone would only sample.
if [ "$recipe" = generate ] && [ $# -eq 0 ]; then
  set -- --args "$root/recipes/generate_cpu.json"
fi
"$root/scripts/setup.sh"
# As setup.sh has it: from its folder, unless it is a whole path.
venv="$(cd "$root" && cd "${VENV:-.venv}" && pwd)"
exec "$venv/bin/python" "$root/recipes/$recipe.py" "$@"
