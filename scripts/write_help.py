"""Keep what ``--help`` of each recipe says as a text, which needs no library.

python scripts/write_help.py        after a change of arguments or defaults
"""

import io
import os
from contextlib import redirect_stdout, suppress
from pathlib import Path

from llmft.process import load_script

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ROOT / "llmft" / "config" / "help"


def said(recipe: Path) -> str:
    """Return what the parser of a recipe says of ``--help``, at 80 columns."""
    os.environ["COLUMNS"] = "80"
    with redirect_stdout(io.StringIO()) as stream, suppress(SystemExit):
        load_script(str(recipe)).main(["--help"])
    # The name of this script stands where a start of the recipe has its own.
    rest = stream.getvalue().partition(" [")[2]
    return f"usage: {recipe.name} [{rest}"


def main() -> None:
    TEXTS.mkdir(exist_ok=True)
    for recipe in sorted((ROOT / "recipes").glob("*.py")):
        (TEXTS / f"{recipe.stem}.txt").write_text(said(recipe), "utf-8")


if __name__ == "__main__":
    main()
