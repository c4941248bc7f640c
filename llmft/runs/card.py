"""The model card: what made a model and what it reached, as the hub reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from llmft.errors import escape, listed
from llmft.metrics.intervals import PROBE, limits, standard_error
from llmft.metrics.predictions import weak_lines
from llmft.runs.record import in_force
from llmft.runs.terminal import UNSHARED
from llmft.sources import catalog

_HYPERPARAMETERS = (
    "learning_rate num_train_epochs max_steps per_device_train_batch_size"
    " gradient_accumulation_steps lr_scheduler_type warmup_steps weight_decay optim"
    " label_smoothing_factor max_grad_norm class_weights contrastive_weight dropout"
    " mlm_probability mlm_masking block_policy max_seq_length long_text lora_r"
    " lora_alpha freeze_backbone freeze_embeddings time_limit seed"
).split()
_SPLITS = ("train", "validation", "test")


def model_card(
    title: str, pipeline_tag: str, metrics: Mapping[str, Any], record: dict[str, Any]
) -> str:
    """Return a model card in Markdown: how the model was made, what it reached.

    It says nothing that the run does not know, and names no folder of the machine.

    Args:
        pipeline_tag: the kind of model, as the hub has it.
        metrics, record: as ``metrics.json`` and ``run.json`` have them.
    """
    values = {name: entry["value"] for name, entry in record["arguments"].items()}
    bare = partial(_without, _folders(values))
    if pipeline_tag != "text-classification":  # else it names classes, and no file
        title = bare(title)
    segments = [  # of a kind that names a file; of a label the name is a class
        {**one, "what": bare(one["what"])}
        | ({"name": bare(one["name"])} if one["what"] == "file" else {})
        for one in metrics.get("weak_segments", [])
    ]
    metrics = {**metrics, "weak_segments": segments}
    record = {**record, "data": bare(record.get("data", {}))}
    data = {split: _of_split(record, split, values) for split in _SPLITS}
    data = {split: found for split, found in data.items() if found}
    parts = [
        f"---\n{_front(title, pipeline_tag, metrics, record, data)}\n---",
        f"# {_text(title, 200)}",
        _origin(record, metrics),
        "## Results\n\n" + _results(metrics),
        _ladder(metrics),
        "## Data\n\n" + _data(data),
        "## Training\n\n" + _training(values, record),
        "## Limits\n\n" + "\n".join(f"- {_text(x)}" for x in _limits(metrics, values)),
        "## Use\n\n```python\nfrom transformers import pipeline\n\n"
        f'model = pipeline("{pipeline_tag}", model="FOLDER_OR_NAME")\n```',
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _folders(values: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Return what finds the folders of the files that a run was given, in any text."""
    found = set()
    for name in (f"{split}_file" for split in _SPLITS):
        given = re.split(r"[*?\[]", str(values.get(name) or ""))[0]
        paths = given, os.path.expanduser(given), os.path.abspath(given)
        found |= {os.path.dirname(path) for path in paths if given}
    folders = sorted(found - {"", "/"}, key=len, reverse=True)
    if not folders:
        return None
    either = "|".join(re.escape(folder) for folder in folders)
    return re.compile(rf"(?<![\w./\\~-])(?:{either})[/\\]")


def _without(folders: re.Pattern[str] | None, value: Any) -> Any:
    """Return a value of JSON whose texts do without these folders."""
    if isinstance(value, dict):
        return {key: _without(folders, x) for key, x in value.items()}
    if isinstance(value, list):
        return [_without(folders, x) for x in value]
    if isinstance(value, str) and folders:
        return folders.sub("", value)
    return value


def _front(
    title: str,
    tag: str,
    metrics: Mapping[str, Any],
    record: dict[str, Any],
    data: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the metadata, with the results as a model-index."""
    source = record.get("model", {})
    found = [
        EvalResult(
            task_type=tag,
            dataset_type=str(data[m["split"]]["source"]),
            dataset_name=str(data[m["split"]]["source"]),
            dataset_split=m["split"],
            metric_type=name,
            metric_value=m["value"],
            metric_name=name,
            metric_args={"n": m["n"], "interval_95": _interval(name, m), "part": part},
        )
        for part, name, m in _measured(metrics)
        if m["value"] is not None and m["split"] in data and part != "before"
    ]
    front = ModelCardData(
        model_name=escape(title, 200) if found else None,
        eval_results=found or None,
        library_name="transformers",
        pipeline_tag=tag,
        tags=["llmft", "cpu"],
        license=_license(source.get("name")),
        # Only a name of the hub means something there; those have a commit.
        base_model=source.get("name") if "commit" in source else None,
        datasets=sorted({d["source"] for d in data.values() if d["on_hub"]}) or None,
    )
    return front.to_yaml()


def _license(name: Any) -> str | None:
    """Return the licence of an embedded model, as the hub writes it."""
    if not name or not catalog.is_asset(name):
        return None
    asset = catalog.get(name)
    # What stands behind it in brackets is of the package.
    return "gemma" if asset.terms else asset.license.partition(" (")[0].lower()


def _origin(record: dict[str, Any], metrics: Mapping[str, Any]) -> str:
    source = record.get("model", {})
    base = str(source.get("name", ""))
    if not catalog.is_asset(base) and "commit" not in source:  # a folder
        base = re.split(r"[/\\]", base.rstrip("/\\"))[-1]
    speed = metrics.get("run", {})
    said = f"Made from `{_text(base)}` by llmft {record['versions']['llmft']}"
    said += f" (transformers {record['versions']['transformers']})"
    said += (
        f" on a CPU: {_text(record['cpu']['name'])}, cores: {record['cpu']['cores']}"
    )
    if "steps" in speed:
        said += f"; {speed['steps']:,} steps"
        if speed.get("epochs"):
            said += f", {speed['epochs']:.3g} epochs"
        said += f", {speed['train_seconds']:,.0f} s of training"
    return said + "."


def _measured(metrics: Mapping[str, Any]) -> Iterable[tuple[str, str, dict[str, Any]]]:
    """Yield part, name and entry of each metric that was measured on a split."""
    for part, entries in metrics.items():
        if part.removesuffix(UNSHARED) in ("before", "folds", "eval", "test"):
            for name, entry in entries.items():
                yield part, name, entry


def _interval(name: str, entry: Mapping[str, Any]) -> list[float] | None:
    if entry["value"] is None or standard_error(name, entry) is None:
        return None
    return [round(limit, 6) for limit in limits(name, entry)]


def _results(metrics: Mapping[str, Any]) -> str:
    names = {"before": "{}, before training", "folds": "rows held out of {}"}
    rows = []
    for part, name, entry in _measured(metrics):
        plain = part.removesuffix(UNSHARED)
        on = names.get(plain, "{}").format(entry["split"])
        on += ", without rows that train has, too" if part != plain else ""
        between = _interval(name, entry)
        shown = "-" if between is None else f"{between[0]:.4g} to {between[1]:.4g}"
        rows.append((on, name, _number(entry["value"]), shown, f"{entry['n'] or 0:,}"))
    return _table(("on", "metric", "value", "95 % interval", "n"), rows)


def _ladder(metrics: Mapping[str, Any]) -> str:
    ladder = metrics.get("ladder")
    if not ladder:
        return ""
    rows = []
    for rung in ladder["rungs"]:
        below = rung.get("below")
        above = "this model" if rung["name"] == ladder["saved"] else "-"
        if below:
            above = f"{below['value']:+.4f} +- {_number(below['stderr'])}"
        rows.append((rung["name"], _number(rung["value"]), above))
    header = ("method", ladder["metric"], "this model is above it by")
    said = f"On the same {ladder['n']:,} texts, with standard errors of a paired test:"
    return f"## Beside simpler methods\n\n{said}\n\n{_table(header, rows)}"


def _of_split(
    record: dict[str, Any], split: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what is known of a split's data; of files, the name without folders."""
    found = dict(record.get("data", {}).get(split, {}))
    if not found:
        return {}
    name = values.get("dataset_name")
    from_file = bool(values.get(f"{split}_file") or not name)
    if from_file:
        found["source"] = Path(str(found["source"])).name
    found["on_hub"] = not from_file and not catalog.is_asset(str(name))
    if found["on_hub"]:
        found["source"] = name
    return found


def _data(data: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for split, found in data.items():
        notes = listed(found.get("notes", []), 5, str)
        count = "-" if found.get("rows") is None else f"{found['rows']:,}"
        rows.append((split, found["source"], count, notes or "-"))
    return _table(("split", "source", "rows", "how it was read"), rows)


def _training(values: Mapping[str, Any], record: dict[str, Any]) -> str:
    chosen = record.get("choices", {})
    rows = [
        (name, chosen[name]["value"])
        for name in ("precision", "attention")
        if name in chosen
    ]
    unset: tuple[Any, ...] = (None, False, [], ["none"], -1)
    values = in_force(values)
    known = {name: values.get(name) for name in _HYPERPARAMETERS}
    rows += [(name, value) for name, value in known.items() if value not in unset]
    return _table(("what", "value"), rows)


def _limits(metrics: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    found = []
    test, validation = metrics.get("test"), metrics.get("eval")
    rungs = metrics.get("ladder", {}).get("rungs", [])
    chose = values.get("load_best_model_at_end") or "calibration" in metrics
    chose = chose or values.get("early_stopping_patience")
    chose = chose or any(rung["name"] == PROBE for rung in rungs)
    if not test and validation and chose:
        found.append(
            "There was no test set: validation also chose what is saved, so that its"
            " figures are likely to be somewhat high."
        )
    if not test and not validation:
        found.append("Nothing was measured on rows that the model had not seen.")
    length = values.get("max_seq_length")
    cut = values.get("long_text") == "truncate"
    found.append(
        f"Examples had at most {length} tokens"
        + ("; of longer texts the rest was not read." if cut else ".")
    )
    for split, count in metrics.get("shared_with_train", {}).items():
        found.append(f"{count:,} rows of {split} are in the training data, too.")
    if weak := metrics.get("weak_classes"):
        lines = weak_lines(weak).splitlines()[:-1]  # without what helps in training
        found += [f"{line[2:3].upper()}{line[3:]}." for line in lines]
    for one in metrics.get("weak_segments", []):
        low, high = one["limits"]
        found.append(
            f"It is weaker on rows of {one['what']} {one['name']}: {one['of']}"
            f" {one['value']:.3g} ({low:.3g} to {high:.3g}, n {one['n']:,}), elsewhere"
            f" {one['rest']:.3g}."
        )
    error = (test or validation or {}).get("calibration_error")
    if error and error["value"] is not None:
        found.append(
            f"Its probabilities are off by {error['value']:.3f} on average (expected"
            " calibration error)."
        )
    return found


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_text, line))} |" for line in lines)


def _text(value: Any, limit: int | None = None) -> str:
    """Return a value for Markdown: on one line, without what would be markup."""
    shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    shown = escape(shown, limit).replace("&", "&amp;")
    for sign in "<|[]`*":
        shown = shown.replace(sign, f"&#{ord(sign)};")
    return shown


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
