"""``llmft inspect``: the batch of a step that was not finite, as the run kept it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from llmft.console import table
from llmft.errors import DataError, brief, escape
from llmft.files import read_object
from llmft.runs.record import RunRecord
from llmft.train.kept import BATCH, FOLDER, MODEL, TENSORS, kept, place_of

_ROWS, _TOKENS = 16, 64  # that are shown
_CHARACTERS = 100


def inspected(run: RunRecord) -> str:
    """Return what is known of the newest batch that a run kept.

    Raises DataError where it is damaged.
    """
    folders = kept(run.folder)
    if not folders:
        return _without(run)
    folder = folders[0]
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise DataError(f"it cannot be read: {brief(error)}", path=folder) from error
    found = read_object(folder / BATCH)
    if not found.get("rows"):
        raise DataError("no record of a batch", path=folder / BATCH)
    parts = [_head(run, found), _rows(found), _module(found), _tokens(found, tensors)]
    others = ", ".join(f"{FOLDER}/{path.name}" for path in folders[1:])
    where = f"kept in {folder}" + (f"; there are {others}, too" if others else "")
    if (model := folder.parent / MODEL).is_dir():
        where += f"\nthe weights before it: {model}, for --model_name_or_path"
    return "\n\n".join([*filter(None, parts), where])


def _without(run: RunRecord) -> str:
    """Return what is known of a run that has kept no batch."""
    said = f"{run.name}: no batch is kept"
    if skipped := run.record.get("skipped_steps"):
        said += f"; steps that were skipped, not finite: {skipped:,}"
    if error := run.record.get("error"):
        said += f"; it ended with {escape(error)}"
    if run.status == "complete":
        said += "; every step was finite: its report.html says what to try next"
    return said


def _head(run: RunRecord, found: dict[str, Any]) -> str:
    said = (
        f"{run.name}: the {found['what']} of step {found['step']} is {found['value']}"
    )
    if found["parts"] > 1:
        said += f", in batch {found['part'] + 1} of {found['parts']}"
    said += f"; learning rate {found['learning_rate']:.3g}"
    if found["last_norm"] is not None:
        said += f", gradient norm {found['last_norm']:.3g} in the step before"
    return said


def _rows(found: dict[str, Any]) -> str:
    """Return a table of the rows, those at fault first."""
    alone = found["alone"]
    order = sorted(range(len(found["rows"])), key=lambda i: (i not in alone, i))
    cells = []
    for i in order[:_ROWS]:
        row = found["rows"][i]
        loss = row["loss"] if isinstance(row["loss"], str) else f"{row['loss']:.4g}"
        text = row["text"]
        text = text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + "..."
        cells.append((i, _place(row), loss, "yes" if i in alone else "", text))
    shown = table(cells, ["row", "place", "part of the loss", "at fault", "text"])
    if len(order) > _ROWS:
        shown += f"\n  and {len(order) - _ROWS} more rows"
    if not alone and len(order) > 1:
        shown += "\n  no single row is at fault"
    return shown


def _place(row: dict[str, Any]) -> str:
    known = place_of(row)
    return known or ", ".join(f"example {i}" for i in row["examples"]) or "-"


def _module(found: dict[str, Any]) -> str:
    """Return what is known of the first module whose output was not finite."""
    lines = []
    for name, said in (("forward", "output"), ("backward", "gradient")):
        if first := found[name]:
            what = f"first module whose {said} was not finite"
            lines += [f"{what}: {first['module']} ({first['kind']})"]
            lines += [table(list(_stats(first)), _HEADER)]
            if first.get("gets"):
                lines += ["  it gets numbers that are not finite already"]
            if tokens := first.get("tokens"):
                lines += [f"  its weights of these are not finite: {', '.join(tokens)}"]
    if not lines:
        of = {"gradient": "that of the weights, of steps that are too large"}
        what = of.get(found["what"], "the loss itself")
        lines = [f"every module gave finite numbers: it is {what}"]
    if found.get("features"):
        lines += ["features that the frozen encoder gave for the batch are not finite"]
    for name in ("weights", "gradients"):
        if found[name]:
            lines += [f"{name} that are not finite: {', '.join(found[name])}"]
    return "\n".join(lines)


_HEADER = ["", "shape", "type", "least", "most", "not finite", "of"]


def _stats(first: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    named = [("input", entry) for entry in first.get("inputs", [])]
    named += [("output", entry) for entry in first.get("outputs", [])]
    named += [("gradient", first["gradient"])] if "gradient" in first else []
    named += [(entry["name"], entry) for entry in first["weights"]]
    for name, entry in named:
        limits = [f"{entry[n]:.4g}" if n in entry else "-" for n in ("min", "max")]
        shape = " x ".join(map(str, entry["shape"])) or "one"
        yield name, shape, entry["dtype"], *limits, entry["not_finite"], entry["values"]


def _tokens(found: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    """Return tokens, ids, mask and labels of the first row at fault.

    "" where they are not known: the ids are those of features then.
    """
    row = (found["alone"] or [0])[0]
    of_row = {n: x[row] for n, x in tensors.items() if n != "rng_state" and x.ndim}
    ids, tokens = of_row.get("input_ids"), found["rows"][row]["tokens"]
    if ids is None or ids.ndim != 1 or not tokens:
        return ""
    along = [n for n, x in of_row.items() if x.shape == ids.shape and n != "input_ids"]
    along.sort()
    cells = [
        (i, token, int(ids[i]), *(of_row[n][i].item() for n in along))
        for i, token in enumerate(tokens[:_TOKENS])
    ]
    shown = f"row {row}\n" + table(cells, ["", "token", "input_ids", *along])
    if len(tokens) > _TOKENS:
        shown += f"\n  and {len(tokens) - _TOKENS} more tokens"
    for name, values in of_row.items():
        if values.shape != ids.shape:
            shown += f"\n  {name}: {np.array2string(values, threshold=20)}"
    return shown
