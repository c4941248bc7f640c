"""Writing the page at the end of a run, which it must never cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from llmft.console import logger, warn
from llmft.errors import brief
from llmft.runs.record import read_run


def publish_report(folder: Path, record: dict[str, Any] | None = None) -> None:
    """Write ``report.html``; a fault there is a warning, and costs no run.

    Args:
        record: what ``run.json`` will say.
    """
    try:
        from llmft.runs.report.page import write_report  # matplotlib, at the end only

        run = read_run(folder)
        write_report(run if record is None else replace(run, record=record))
    except Exception as error:
        warn(f"no report.html: {brief(error)}; `llmft report` tries again")
        logger.debug("report.html", exc_info=True)
