"""Small charts as SVG in the colours of the page, by matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from llmft.metrics.intervals import NORMAL, PROBE
from llmft.runs.report.parts import Chart, Section, Table, number

POINTS = 120  # of a curve; of more, means are drawn
_FEW = 12  # points whose numbers stand below a chart
_SIZE = (4.2, 2.4)  # inches
# Colours that matplotlib writes, and what the page has in their place.
_INK, _GRID = "#010101", "#010102"
LINES = ("#010103", "#010104", "#010105")
_VARIABLES = {
    _INK: "currentColor",
    _GRID: "var(--line)",
    **{color: f"var(--c{i})" for i, color in enumerate(LINES, 1)},
}
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.xmargin": 0.02,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "path.simplify": True,
}
# Styles that many parts have, and the classes of the page that say the same.
_CLASSES = {
    r"fill: none; stroke: var\(--line\); stroke-width: 0.6[^\"]*": "kg",
    r"font-size: 9px; *text-anchor: middle; fill: currentColor": "km",
    r"font-size: 9px; *text-anchor: end; fill: currentColor": "ke",
}
_DASHES = ("-", "--", ":")

Line = tuple[Sequence[float], Sequence[float]]
Events = Sequence[dict[str, Any]]
METRICS = (
    *("accuracy", "f1_macro", "f1_micro", "r2", "spearman", "masked_accuracy"),
    "token_accuracy",
)


def thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return a curve of at most ``POINTS`` points, each the mean of its neighbours."""
    x, y = np.asarray(xs, float), np.asarray(ys, float)
    if len(x) <= POINTS:
        return x, y
    ends = np.linspace(0, len(x), POINTS + 1).astype(int)
    sizes = np.diff(ends)
    return np.add.reduceat(x, ends[:-1]) / sizes, np.add.reduceat(y, ends[:-1]) / sizes


def curve(title: str, lines: Mapping[str, Line], x_label: str) -> Chart:
    """Return a chart of lines by name, each x and y."""
    said = "; ".join(f"{name}: {_course(*line)}" for name, line in lines.items())
    label = f"{title}. {said}."
    with mpl.rc_context(_SETTINGS):
        figure, axes = _axes(x_label, "")
        for (name, line), color, dash in zip(
            lines.items(), LINES, _DASHES, strict=False
        ):
            x, y = thinned(*line)
            mark = "o" if len(x) <= _FEW else ""
            axes.plot(x, y, dash, color=color, label=name, marker=mark, markersize=3.5)
        # A curve that hardly moves looks flat: 5 % to both sides at the least.
        low, high = axes.get_ylim()
        middle = (low + high) / 2
        half = max((high - low) / 2, 0.05 * abs(middle))
        axes.set_ylim(middle - half, middle + half)
        if 0 <= low < high and all(max(y) <= 1 for _, y in lines.values()):  # shares
            axes.set_ylim(top=min(middle + half, 1.02))
            bottom, ticks = axes.get_ylim()[0], axes.get_yticks()
            axes.set_yticks(ticks[(bottom <= ticks) & (ticks < 1 + 1e-9)])
        if len(lines) > 1:
            axes.legend(loc="best")
        svg = _svg(figure, label)
    most = max(len(line[0]) for line in lines.values())
    note = f"{most:,} points, drawn as {POINTS} means" if most > POINTS else ""
    rows = [
        (name, number(float(x)), number(float(y)))
        for name, line in lines.items()
        for x, y in _some(*line)
    ]
    numbers = Table(f"{title}: numbers", ["", x_label, title], rows, note)
    return Chart(svg, title, numbers)


def points(
    title: str, x: Any, y: Any, labels: tuple[str, str], said: str, numbers: Table
) -> Chart:
    """Return a chart of single points, and of the line where both are the same."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    with mpl.rc_context(_SETTINGS):
        figure, axes = _axes(*labels)
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axes.plot(ends, ends, "--", color=_INK, linewidth=0.8)
        axes.plot(x, y, "o", color=LINES[0], alpha=0.35, markersize=3, mew=0)
        svg = _svg(figure, f"{title}. {said}")
    return Chart(svg, title, numbers)


def calibration(
    title: str, stated: Any, found: Any, sizes: Any, said: str, numbers: Table
) -> Chart:
    """Return how often rows were right, by what their probability said."""
    stated, found, sizes = (np.asarray(v, float) for v in (stated, found, sizes))
    error = NORMAL * np.sqrt(np.clip(found * (1 - found), 0.01, None) / sizes)
    with mpl.rc_context(_SETTINGS):
        figure, axes = _axes("probability that was stated", "share that was right")
        axes.plot([0, 1], [0, 1], "--", color=_INK, linewidth=0.8)
        axes.vlines(
            stated,
            np.clip(found - error, 0, 1),
            np.clip(found + error, 0, 1),
            color=LINES[0],
            linewidth=1,
        )
        axes.plot(stated, found, "o-", color=LINES[0], markersize=4)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        svg = _svg(figure, f"{title}. {said}")
    return Chart(svg, title, numbers)


def bars(title: str, names: Sequence[str], values: Any, label: str) -> Chart:
    """Return bars side by side, as of a histogram."""
    values = [float(v) for v in values]
    top = names[int(np.argmax(values))]
    said = f"{len(names)} bars, the highest at {top}: {number(max(values))}"
    with mpl.rc_context(_SETTINGS):
        figure, axes = _axes("", label)
        axes.bar(range(len(names)), values, color=LINES[0], width=0.8)
        axes.grid(visible=False, axis="x")
        step = -(-len(names) // 6)
        axes.set_xticks(range(0, len(names), step), names[::step])
        svg = _svg(figure, f"{title}. {said}.")
    rows = [(name, number(v)) for name, v in zip(names, values, strict=True)]
    return Chart(svg, title, Table(f"{title}: numbers", ["", label], rows))


def heat(
    title: str, places: Any, shares: Any, size: int, said: str, numbers: Table
) -> Chart:
    """Return cells of a large matrix that are not empty, the darker the more.

    Args:
        places: (cells, 2), row and column. shares: of each cell, 0 to 1.
    """
    places, shares = np.asarray(places), np.asarray(shares, float)
    with mpl.rc_context(_SETTINGS):
        figure, axes = _axes("class that was said", "class as labelled", (4.4, 4.2))
        axes.grid(visible=False)
        wrong = places[:, 0] != places[:, 1]
        side = max(1.6, 230 / size)
        for which, color in ((~wrong, LINES[0]), (wrong, LINES[1])):
            for low, high, alpha in ((0, 0.1, 0.5), (0.1, 0.3, 0.7), (0.3, 1.1, 1.0)):
                row, column = places[which & (shares >= low) & (shares < high)].T
                axes.plot(
                    *(column, row),
                    *("s",),
                    color=color,
                    alpha=alpha,
                    markersize=side,
                    mew=0,
                )
        axes.set_xlim(-1, size)
        axes.set_ylim(size, -1)
        svg = _svg(figure, f"{title}. {said}")
    return Chart(svg, title, numbers)


def _short(value: float, _: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _axes(x_label: str, y_label: str, size: Any = _SIZE) -> tuple[Figure, Any]:
    figure = Figure(figsize=size)
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    # Fixed margins: a layout engine draws everything three times.
    left, bottom = (0.74 if y_label else 0.64) / size[0], 0.42 / size[1]
    axes = figure.add_axes((left, bottom, 0.97 - left, 0.95 - bottom))
    axes.patch.set_visible(False)
    axes.xaxis.set_major_formatter(_short)
    axes.yaxis.set_major_formatter(_short)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _some(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """Return up to ``_FEW`` points of a curve, with both ends."""
    places = np.linspace(0, len(xs) - 1, min(len(xs), _FEW)).round().astype(int)
    return [(xs[i], ys[i]) for i in places]


def _course(xs: Sequence[float], ys: Sequence[float]) -> str:
    first, last = number(float(ys[0])), number(float(ys[-1]))
    least, most = number(float(min(ys))), number(float(max(ys)))
    return f"from {first} to {last}, lowest {least}, highest {most}"


def _svg(figure: Figure, label: str) -> Markup:
    """Return the drawing as a part of a page: no head, no ids that another has."""
    mpl.rcParams["svg.hashsalt"] = label  # ids that no other chart has
    stream = io.StringIO()
    figure.savefig(stream, format="svg")
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = text.replace("xlink:href", "href")
    ids = {*re.findall(r'(?:href="|url\()#([^")]+)', text)}
    text = re.sub(r'\sid="([^"]*)"', lambda m: m[0] if m[1] in ids else "", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*;?|transform=\"rotate\(-0 [^\"]*\"", "", text)
    for style, name in _CLASSES.items():
        text = re.sub(rf'(clip-path="[^"]*" )?style="{style}"', f'class="{name}"', text)
    # Not in what is read.
    text = re.sub(r"(\d\.\d\d)\d+(?=[^<>]*>)", r"\1", text)
    text = re.sub(r"(?<=[>\"])\s+(?=[</])|\s+(?=\")", "", text)
    text = re.sub(r"<g/>|<defs></defs>", "", text)
    text = re.sub(r"(<g[^>]*)>((?:<use [^>]*/>){2,})", _styled_once, text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    _, _, inner = text.partition(">")
    head = f'<svg class="chart" role="img" aria-label="{escape(label)}" {box[0]}>'
    return Markup(head + inner)


def _styled_once(found: re.Match[str]) -> str:
    """Say what marks look like once for all of them, where it is the same."""
    styles = set(re.findall(r'style="[^"]*"', found[2]))
    if len(styles) != 1 or "style=" in found[1]:
        return found[0]
    marks = re.sub(r'\s*style="[^"]*"', "", found[2])
    return f"{found[1]} {styles.pop()}>{marks}"


def curves(events: Events, contrast: bool = False, saved: str = "") -> Section:
    """Return what was logged while it trained, by step.

    Args:
        contrast: whether the loss of training has that of contrast in it.
        saved: the method whose model is saved, as the ladder names it.
    """
    train = "train, with contrast" if contrast else "train"
    found = Section("Curves")
    known = [n for n in METRICS if any(f"eval_{n}" in e for e in events)][:3]
    groups: list[tuple[str, dict[str, Line], float]] = [
        ("loss", _of(events, {"loss": train, "eval_loss": "validation"}), 1),
        ("metrics, on validation", _of(events, {f"eval_{n}": n for n in known}), 1),
        ("learning rate", _of(events, {"learning_rate": "learning rate"}), 1),
        ("gradient norm", _of(events, {"grad_norm": "gradient norm"}), 1),
        ("samples/s", _of(events, {"samples_per_second": "samples/s"}), 1),
        ("memory, GiB", _of(events, {"rss_bytes": "resident"}), 2**30),
    ]
    for title, lines, unit in groups:
        if lines:
            scaled = {n: (x, [v / unit for v in y]) for n, (x, y) in lines.items()}
            found.blocks.append(curve(title, scaled, "step"))
    if not found:
        return found
    if saved == PROBE:
        found.said.append(
            f"They are of the training; the {PROBE}, from which it began, is saved."
        )
    several = {event.get("leg") for event in events}
    if len(several) > 1:
        found.said.append(
            f"The run was resumed: {len(several)} legs, of each step the last one."
        )
    return found


def series(events: Events, name: str) -> Line:
    """Return steps and values of what was logged under a name.

    Of a step the last, but for evaluations: behind that of the last step comes one of
    the best checkpoint, which is of another.
    """
    there: dict[float, float] = {}
    for event in events:
        if event.get(name) is not None and "step" in event:
            step = float(event["step"])
            if step not in there or not name.startswith("eval_"):
                there[step] = float(event[name])
    return list(there), list(there.values())


def _of(events: Events, names: dict[str, str]) -> dict[str, Line]:
    lines = {shown: series(events, name) for name, shown in names.items()}
    return {shown: line for shown, line in lines.items() if len(line[0]) > 1}
