"""Writing the page of a run; matplotlib is loaded for it, and not before."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from llmft.console import logger, warn
from llmft.errors import brief
from llmft.files import write_text
from llmft.runs.record import RunRecord, read_run
from llmft.runs.report.answers import REGRESSION, read_answers
from llmft.runs.report.segments import segments, weak
from llmft.sources import catalog

T = TypeVar("T")
_FOLDER = "MPLCONFIGDIR"


def for_the_page(what: str, make: Callable[[], T]) -> T | None:
    """Return what ``make`` does; a fault there is a warning, and costs no run."""
    try:
        return make()
    except Exception as error:
        warn(f"no {what}: {brief(error)}")
        logger.debug("%s", what, exc_info=True)
        return None


def publish_report(folder: Path, record: dict[str, Any] | None = None) -> None:
    """Write ``report.html`` at the end of a run.

    Args:
        record: what ``run.json`` will say.
    """

    def publish() -> None:
        run = read_run(folder)
        write_page(run if record is None else replace(run, record=record))

    for_the_page("report.html (`llmft report` tries again)", publish)


def weak_segments(folder: Path) -> list[dict[str, Any]]:
    """Return the groups of rows that a run's model is weak at, for ``metrics.json``."""
    parts = read_answers(read_run(folder))
    answers = next(iter(parts.values()), None)
    if answers is None:
        return []
    of = "mean absolute error" if answers.kind == REGRESSION else "mistakes"
    return [{"of": of, **asdict(one)} for one in weak(segments(answers))]


def write_page(run: RunRecord, target: Path | None = None) -> Path:
    """Write the page of a run, by default into its folder; return where it is.

    Raises:
        DataError: a file of the run is damaged.
    """
    with _cache_of_fonts():
        from llmft.runs.report.page import render
    target = target or run.folder / "report.html"
    write_text(target, render(run))
    return target


@contextmanager
def _cache_of_fonts() -> Iterator[None]:
    """Let matplotlib, where it loads in the block, keep its list of fonts with ours.

    By itself it makes folders in the user's home, and says so where it cannot.
    """
    if _FOLDER in os.environ or "matplotlib" in sys.modules:
        yield
        return
    os.environ[_FOLDER] = str(catalog.cache_home() / "fonts")
    try:
        yield
    finally:
        del os.environ[_FOLDER]
