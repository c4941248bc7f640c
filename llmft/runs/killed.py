"""What is known of a run whose process ended without a word."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from llmft.errors import ConfigError, DataError
from llmft.machine.detect import allowed_bytes, allowed_text, gib
from llmft.runs.record import KILLED, read_run

_NEAR = 0.8  # of what may be held: a log has no peaks


def how_it_ended(folder: Path) -> str:
    """Return what to say of the run in a folder, where it was killed; else "".

    That is with SIGKILL, as the kernel does where memory runs out, or in a crash.
    """
    try:
        run = read_run(folder)
        if run.status != KILLED:
            return ""
        events = run.events()
    except (ConfigError, DataError):
        return ""
    said = "the run before ended without a word, as one that was killed does"
    known = [event for event in events if event.get("rss_bytes")]
    if not known:
        return said
    held, step = known[-1]["rss_bytes"], known[-1]["step"]
    limit, named = allowed_bytes(), allowed_text()
    with suppress(KeyError, TypeError, ValueError):
        limit = int(run.record["plan"]["allowed_bytes"]) or limit
        named = f"{gib(limit)}, as it was when that run began"
    said += f": it held {gib(held)} at step {step:,}, and may hold {named}"
    if held >= _NEAR * limit:
        said += (
            "; the kernel ends what takes more: a smaller --per_device_train_batch_size"
            " with more --gradient_accumulation_steps takes less"
        )
    return said
