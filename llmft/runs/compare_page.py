"""What a comparison of runs looks like: on a terminal, and as an HTML file."""

from __future__ import annotations

from typing import Any

from llmft import __version__
from llmft.console import cut, table, terminal_columns
from llmft.errors import escape, listed
from llmft.files import to_json
from llmft.runs.compare import change
from llmft.sources.wheels import size_text

_FIRST = 5  # rows where two runs differ, on a terminal
_TITLES = {
    "arguments": "arguments that differ",
    "choices": "choices that differ",
    "data": "data that differ",
    "model": "models that differ",
    "surroundings": "surroundings that differ",
}
_SURE = (
    "a difference is one from {clear:.4g} % sure on: of equally good models, one"
    " comparison in 20 at the most says so; it is of these models, not of other seeds"
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
        [m["part"], m["metric"], *map(_entry, m["values"])] for m in found["metrics"]
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
            *("-" if m[key] is None else f"{m[key]:.4f}" for key in ("a", "b")),
            change(name, m["difference"], m["stderr"]),
            f"{min(m['sure'], 0.999):.1%}",
        ]
        for name, m in pair["metrics"].items()
    ]
    return [*header, "sure"], rows


def pair_lines(pair: dict[str, Any]) -> list[str]:
    """Return what there is to say of two runs beside their metrics."""
    a, b, said = pair["a"], pair["b"], [f"note: {note}" for note in pair["notes"]]
    if rows := pair.get("rows"):
        parts = [f"{rows['both']:,} in both"]
        parts += [f"{rows['only_a']:,} only in {a}"] if rows["only_a"] else []
        parts += [f"{rows['only_b']:,} only in {b}"] if rows["only_b"] else []
        other = rows["other_label_or_none"]
        parts += [f"{other:,} left out, without the same label"] if other else []
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
            lines.append(f"  they differ in {differ['count']:,} rows, {first} of them:")
            for row in differ["rows"][:_FIRST]:
                lines.append(_row(pair, row))
        shown.append("\n".join(lines))
    if any(pair["metrics"] for pair in found["pairs"]):
        shown.append(_SURE.format(clear=100 * found["clear"]))
    return "\n\n".join(shown)


def as_html(found: dict[str, Any]) -> str:
    """Return a comparison as one HTML file: no script, nothing from elsewhere."""
    import jinja2

    jinja = jinja2.Environment(autoescape=True, trim_blocks=True, finalize=escape)
    return jinja.from_string(_PAGE).render(
        title=f"Runs: {', '.join(run['run'] for run in found['runs'])}",
        sections=sections(found),
        pairs=[(p, *pair_table(p), pair_lines(p)) for p in found["pairs"]],
        said=_SURE.format(clear=100 * found["clear"]),
        answer=answer,
        version=__version__,
    )


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


def _entry(entry: dict[str, Any] | None) -> str:
    if entry is None or entry["value"] is None:
        return "-"
    spread = "" if entry.get("stderr") is None else f" +- {entry['stderr']:.2g}"
    return f"{entry['value']:,.4g}{spread}"


def _cost(name: str, value: Any) -> str:
    if value is None:
        return "-"
    return size_text(value) if name.endswith("_bytes") else f"{value:,}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title><style>
body { font: 15px/1.4 system-ui, sans-serif; max-width: 70em; margin: 2em auto;
 padding: 0 1em }
table { border-collapse: collapse; display: block; overflow-x: auto }
h2 { font-size: 1.1em; margin-top: 2em }
td, th { padding: .15em .8em .15em 0; text-align: left; vertical-align: top;
 overflow-wrap: anywhere }
.verdict { border-left: .3em solid #26c; padding-left: .7em; font-weight: bold }
</style></head><body>
<h1>{{ title }}</h1>
{% macro show(header, rows) %}
<table><tr>{% for name in header %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endmacro %}
{% for pair, header, rows, lines in pairs %}
<h2>{{ pair.a }} and {{ pair.b }}</h2>
<p class="verdict">{{ pair.verdict }}</p>
{% if rows %}{{ show(header, rows) }}{% endif %}
{% for line in lines %}<p>{{ line }}</p>
{% endfor %}
{% if pair.differ and pair.differ.count %}
<p>they differ in {{ pair.differ.count }} rows, {{ pair.differ.rows | length }} of them:
</p>
<table><tr><th></th><th>text</th><th>was</th><th>{{ pair.a }}</th><th>{{ pair.b }}</th>
</tr>
{% for row in pair.differ.rows %}
<tr><td>{{ row.place }}</td><td>{{ row.text }}</td><td>{{ answer(row.label) }}</td>
<td>{{ answer(row.a) }}</td><td>{{ answer(row.b) }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% endfor %}
<p>{{ said }}</p>
{% for title, header, rows in sections %}
<h2>{{ title }}</h2>
{{ show(header, rows) }}
{% endfor %}
<p>llmft {{ version }}</p></body></html>
"""
