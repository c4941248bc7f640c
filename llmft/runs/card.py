"""The model card: what made a model and what it reached, as the hub reads it."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCardData

from llmft.errors import escape


def model_card(
    title: str, pipeline_tag: str, measured: dict[str, Any], record: dict[str, Any]
) -> str:
    """Return a model card in Markdown: how the model was made, what it reached.

    Args:
        pipeline_tag: the kind of model, as the hub has it.
        measured, record: as ``metrics.json`` and ``run.json`` have them.
    """
    arguments = record["arguments"]
    given = {
        name: entry["value"]
        for name, entry in arguments.items()
        if not entry["from"].startswith(("default", "follows"))
    }
    rows = [
        f"| {part} | {name} | {_number(m['value'])} | {_number(m['stderr'])}"
        f" | {m['n']} |"
        for part, metrics in measured.items()
        for name, m in metrics.items()
    ]
    source = record.get("model", {})
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=["llmft", "cpu"],
        # Only a name of the hub means something there; those have a commit.
        base_model=source.get("name") if "commit" in source else None,
    )
    lines = [
        "---",
        front.to_yaml(),
        "---",
        "",
        f"# {escape(title, 200)}",
        "",
        f"Made by llmft {record['versions']['llmft']} on {record['cpu']['name']}.",
        "",
        "| on | metric | value | standard error | n |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "| argument | value |",
        "|---|---|",
        *(f"| {n} | {escape(v).replace('|', '&#124;')} |" for n, v in given.items()),
        "",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"
