"""``llmft runs`` and what follows it on the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmft.config.convert import age
from llmft.console import say, table, warn
from llmft.errors import ConfigError, EnvironmentFault
from llmft.files import write_text
from llmft.runs import clean, listing
from llmft.runs.compare import compare
from llmft.runs.compare_page import as_html, as_text, sections
from llmft.runs.record import OUTPUTS, find_run, find_runs
from llmft.runs.terminal import tool
from llmft.sources.wheels import size_text

USUAL = "list"
_TARGETS = (".html", ".htm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    parser.epilog = f"Without an action: {USUAL}."
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    add = dict[str, Callable[..., Any]]()
    for name, (said, work) in ACTIONS.items():
        action = actions.add_parser(name, help=said, description=said)
        action.set_defaults(run=work)
        add[name] = action.add_argument
    for name in ("list", "clean"):
        said = f"where the runs are (default: {OUTPUTS})"
        add[name]("folder", metavar="FOLDER", nargs="?", help=said)
    for name in ("show", "tag", "note"):
        said = f"its folder, or part of its name in {OUTPUTS}"
        add[name]("name", metavar="RUN", help=said)
    fields, known = ", ".join(listing.HEADER), ", ".join(listing.STATUSES)
    several: dict[str, Any] = {"nargs": "+", "default": [], "action": "extend"}
    add["list"]("--sort", metavar="FIELD", default="started", help=fields)
    add["list"]("--recipe", metavar="NAME", **several, help="only these")
    add["list"]("--status", metavar="STATUS", **several, help=known)
    add["list"]("--tag", metavar="TAG", **several, help="only with all these")
    add["compare"]("names", metavar="RUN", nargs="+", help="a folder, or its name")
    add["compare"]("--html", metavar="FILE.html", help="write it there, too")
    add["tag"]("tags", metavar="TAG", nargs="+")
    add["tag"]("--remove", action="store_true", help="take them away")
    add["note"]("text", metavar="TEXT", help='"" takes it away')
    for kind, said in clean.KINDS.items():
        add["clean"](f"--{kind}", action="store_true", help=said)
    said = "only runs that began longer ago, such as 30d"
    add["clean"]("--older_than", metavar="TIME", help=said)
    add["clean"]("--yes", action="store_true", help="take it away")
    for name in ("list", "show", "compare"):
        said = "one object a line for each run" if name == "list" else "as one object"
        add[name]("--json", action="store_true", help=f"strict JSON, {said}")


def _list(arguments: argparse.Namespace) -> None:
    for status in arguments.status:
        if status not in listing.STATUSES:
            known = ", ".join(listing.STATUSES)
            raise ConfigError(f"status is {status!r}, expected {known}")
    folder = _folder(arguments)
    rows = [listing.row_of(run) for run in find_runs(folder)]
    shown = [
        row
        for row in rows
        if not arguments.recipe or row["recipe"] in arguments.recipe
        if not arguments.status or row["status"] in arguments.status
        if {*arguments.tag} <= {*row["tags"]}
    ]
    shown = listing.order(shown, arguments.sort)
    if arguments.json:
        for row in shown:
            _say_json(row)
    elif not rows:
        say(f"no runs yet in {folder}")
    elif not shown:
        say(f"none of the {len(rows):,} runs in {folder} is like that")
    else:
        say(listing.as_text(shown))


def _show(arguments: argparse.Namespace) -> None:
    run = find_run(arguments.name)
    row = listing.row_of(run)
    row |= {"command": run.record.get("command"), "error": run.record.get("error")}
    row |= {"given": run.given, "metrics": run.metrics}
    if arguments.json:
        _say_json(row)
        return
    given = [[name, json.dumps(v, ensure_ascii=False)] for name, v in run.given.items()]
    parts = [table(given, ["given", ""])] if given else []
    parts += [
        f"{title}\n{table(r, header)}" for title, header, r in sections(compare([run]))
    ]
    for name in ("command", "error", "note"):
        parts += [f"{name}: {row[name]}"] if row[name] else []
    say("\n\n".join(parts))


def _compare(arguments: argparse.Namespace) -> None:
    target = arguments.html
    if target is not None and Path(target).suffix.lower() not in _TARGETS:
        raise ConfigError(f"html is {target!r}, expected a name that ends in .html")
    runs = [find_run(name) for name in arguments.names]
    if len({run.folder.resolve() for run in runs}) < max(len(runs), 2):
        raise ConfigError("`runs compare` needs two runs or more, each named once")
    found = compare(runs)
    if target is not None:
        write_text(Path(target), as_html(found))
    if arguments.json:
        _say_json(found)
        return
    say(as_text(found))
    if target is not None:
        say(f"\nwritten to {target}")


def _tag(arguments: argparse.Namespace) -> None:
    run = find_run(arguments.name)
    tags = listing.tag(run.folder, arguments.tags, arguments.remove)
    say(f"{run.name}: {', '.join(tags) or 'no tags'}")


def _note(arguments: argparse.Namespace) -> None:
    run = find_run(arguments.name)
    listing.set_note(run.folder, arguments.text)
    say(f"{run.name}: {arguments.text or 'no note'}")


def _clean(arguments: argparse.Namespace) -> None:
    named = [kind for kind in clean.KINDS if getattr(arguments, kind)]
    if arguments.yes and not named:
        kinds = ", ".join(f"--{kind}" for kind in clean.KINDS)
        raise ConfigError(f"`runs clean --yes` needs to know what: {kinds}")
    seconds = age(arguments.older_than) or 0.0
    folder = _folder(arguments)
    items = clean.find(folder, named or list(clean.KINDS), seconds)
    if not items:
        say(f"nothing to take away in {folder}")
        return
    rows = [(i.run.name, f"--{i.kind}", size_text(i.size), i.what) for i in items]
    say(table(rows, ["run", "kind", "size", "what"]))
    total = size_text(sum(item.size for item in items))
    if not arguments.yes:
        words = [str(folder), *(f"--{k}" for k in dict.fromkeys(i.kind for i in items))]
        words += ["--older_than", arguments.older_than] if arguments.older_than else []
        command = tool("runs", "clean", *words, "--yes")
        say(f"{total} could be freed: {command}")
        return
    freed = 0
    for item in items:
        try:
            stays = clean.take_away(item)
            freed += item.size
        except (EnvironmentFault, OSError) as fault:  # the others go all the same
            stays = getattr(fault, "found", str(fault))
        if stays:
            warn(f"{item.run.folder}: {stays}")
    say(f"{size_text(freed)} freed")


def _folder(arguments: argparse.Namespace) -> Path:
    """Return the folder that was named. Raises ConfigError where there is none."""
    folder = Path(arguments.folder or OUTPUTS).expanduser()
    if arguments.folder and not folder.is_dir():
        known = ", ".join(ACTIONS)
        said = f"no folder and no action: {arguments.folder}; actions are {known}"
        raise ConfigError(said)
    return folder


def _say_json(value: Any) -> None:
    say(json.dumps(value, allow_nan=False))  # ASCII: nothing of it is escaped again


ACTIONS: dict[str, tuple[str, Callable[[argparse.Namespace], None]]] = {
    "list": ("one line a run", _list),
    "show": ("what a run was asked, and what came of it", _show),
    "compare": ("which of some runs is better, and how sure", _compare),
    "tag": ("give a run tags to find it by", _tag),
    "note": ("keep a sentence with a run", _note),
    "clean": ("say what could be freed, and how", _clean),
}
