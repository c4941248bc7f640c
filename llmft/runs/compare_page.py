"""What a comparison of runs looks like: on a terminal, and as an HTML file."""

from __future__ import annotations

from typing import Any

from llmft.console import cut, table, terminal_columns
from llmft.errors import counted, escape, listed
from llmft.files import to_json
from llmft.metrics.intervals import percent_sure, standard_error
from llmft.runs.compare import change, decimals
from llmft.sources.wheels import size_text

_FIRST = 5  # rows where two runs differ, on a terminal
_TITLES = {
    "arguments": "arguments that differ",
    "followed": "arguments that differ, though nobody gave them",
    "choices": "choices that differ (-: none was made)",
    "data": "data that differ",
    "model": "models that differ",
    "surroundings": "surroundings that differ",
}
_SURE = (
    "a verdict is of the first metric, and one from {clear:.4g} % sure on: of equally"
    " good models, one comparison in 20 at the most says so; it is of these models, not"
    " of other seeds"
)


def sections(found: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return title, header and rows of each table of a comparison."""
    names = [run["name"] for run in found["runs"]]
    rows = [
        [run["name"], run["run"], run["recipe"], run["status"], run["folder"]]
        for run in found["runs"]
    ]
    tables = [("runs", ["", "run", "recipe", "status", "folder"], rows)]
    for part, title in _TITLES.items():
        rows = [[n, *map(_short, values)] for n, values in found[part].items()]
        tables.append((title, ["", *names], rows))
    rows = [
        [m["part"], m["metric"], *(_entry(m["metric"], x) for x in m["values"])]
        for m in found["metrics"]
    ]
    tables.append(("metrics, with standard errors", ["on", "metric", *names], rows))
    rows = [
        [name.removesuffix("_bytes"), *(_cost(name, v) for v in values)]
        for name, values in found["costs"].items()
    ]
    tables.append(("time and memory", ["", *names], rows))
    return [(title, header, rows) for title, header, rows in tables if rows]


def pair_table(pair: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the metrics of two runs."""
    header = ["metric", pair["a"], pair["b"], f"{pair['b']} against {pair['a']}"]
    rows = [
        [
            name,
            *("-" if m[key] is None else decimals(m[key]) for key in ("a", "b")),
            change(name, m["difference"], m["stderr"]),
            percent_sure(m["sure"]),
        ]
        for name, m in pair["metrics"].items()
    ]
    return [*header, "sure"], rows


def pair_lines(pair: dict[str, Any]) -> list[str]:
    """Return what there is to say of two runs beside their metrics."""
    a, b, said = pair["a"], pair["b"], [f"note: {note}" for note in pair["notes"]]
    if rows := pair.get("rows"):
        other = rows["other_label_or_none"]
        parts = [f"{rows['both'] - other:,} compared"]
        parts += [f"{other:,} in both without the same label"] if other else []
        parts += [f"{rows['only_a']:,} only in {a}"] if rows["only_a"] else []
        parts += [f"{rows['only_b']:,} only in {b}"] if rows["only_b"] else []
        said.append(f"rows: {', '.join(parts)}")
    if right := pair.get("right"):
        said.append(
            f"right: both {right['both']:,}, only {a} {right['only_a']:,},"
            f" only {b} {right['only_b']:,}, neither {right['neither']:,}"
        )
    return said


def as_text(found: dict[str, Any]) -> str:
    """Return a comparison for a terminal."""
    shown = []
    for title, header, rows in sections(found):
        shown.append(f"{title}\n{table(rows, header)}")
    for pair in found["pairs"]:
        lines = [f"{pair['a']} and {pair['b']}: {escape(pair['verdict'])}"]
        header, rows = pair_table(pair)
        lines += [table(rows, header)] if rows else []
        lines += [f"  {escape(line)}" for line in pair_lines(pair)]
        differ = pair.get("differ", {"count": 0})
        if differ["count"]:
            first = min(_FIRST, differ["count"])
            said = f"  they differ in {counted(differ['count'], 'rows')}"
            lines.append(said + (f", {first} of them:" if first > 1 else ":"))
            for row in differ["rows"][:_FIRST]:
                lines.append(_row(pair, row))
        shown.append("\n".join(lines))
    if any(pair["metrics"] for pair in found["pairs"]):
        shown.append(_SURE.format(clear=100 * found["clear"]))
    return "\n\n".join(shown)


def as_html(found: dict[str, Any]) -> str:
    """Return a comparison as one HTML file: no script, nothing from elsewhere."""
    from llmft.runs.report.parts import TEXT, Section, Table, html

    pages, verdicts = list[Section](), list[str]()
    wraps = ["was", "folder", "run", *(run["name"] for run in found["runs"])]
    for pair in found["pairs"]:
        title = f"{pair['a']} and {pair['b']}"
        verdicts.append(f"{title}: {pair['verdict']}")
        header, rows = pair_table(pair)
        page = Section(title, pair_lines(pair))
        page.blocks += [Table("Metrics", header, rows)] if rows else []
        if differ := pair.get("differ", {}).get("rows"):
            header = ["where", "text", "was", pair["a"], pair["b"]]
            rows = [
                [
                    r["place"],
                    r["text"][:TEXT],
                    *(answer(r[key]) for key in ("label", "a", "b")),
                ]
                for r in differ
            ]
            shown = f"{len(differ)} of {pair['differ']['count']:,}"
            page.blocks.append(
                Table("Rows where they differ", header, rows, shown, names=wraps)
            )
        pages.append(page)
    pages += [
        Section(title, [], [Table(title, header, rows, names=wraps)])
        for title, header, rows in sections(found)
    ]
    title = f"Runs: {', '.join(run['run'] for run in found['runs'])}"
    return html(title, verdicts, pages, foot=_SURE.format(clear=100 * found["clear"]))


def answer(value: Any) -> str:
    """Return a label or a prediction in words."""
    if isinstance(value, list):
        return listed(value, 5, str) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _row(pair: dict[str, Any], row: dict[str, Any]) -> str:
    said = ", ".join(
        f"{name} {escape(answer(row[key]), 40)}"
        for name, key in (("was", "label"), (pair["a"], "a"), (pair["b"], "b"))
    )
    text = f"    {escape(row['place'])}: {said}: {escape(row['text'], 100)}"
    return cut(text, terminal_columns())


def _short(value: Any) -> str:
    """Return a value of a table; of a hash, its beginning."""
    if value is None:
        return "-"
    text = value if isinstance(value, str) else to_json(value)
    return text[:12] if len(text) == 64 and text.isalnum() else text


def _entry(name: str, entry: dict[str, Any] | None) -> str:
    if entry is None or entry["value"] is None:
        return "-"
    error = standard_error(name, {"stderr": None, **entry})
    spread = "" if error is None else f" +- {error:.2g}"
    return f"{entry['value']:,.4g}{spread}"


def _cost(name: str, value: Any) -> str:
    if value is None:
        return "-"
    return size_text(value) if name.endswith("_bytes") else f"{value:,}"
