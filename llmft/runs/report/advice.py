"""What to try next: only what follows from what was seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmft.config.facts import FAR_TOO_HIGH
from llmft.errors import counted, escape
from llmft.metrics.intervals import CLEAR, PROBE, clearly, limits, worse_than_saved
from llmft.runs.record import RunRecord
from llmft.runs.report.charts import Events, series
from llmft.runs.report.label_errors import STRONG, Suspect
from llmft.runs.report.parts import (
    Section,
    Table,
    listed_words,
    number,
)
from llmft.runs.report.segments import Segment, weak

_FALL = 0.02  # of the validation loss, from one evaluation to the next
_RISE = 0.05
_ALL = 0.9  # of the steps of a plan; that of a time limit is a guess
_OFF = 0.05  # calibration error that is worth mending
_CALIBRATE = "a training with --calibrate true, not with --k_folds"
_VAGUE = 0.1  # standard error of a perplexity, of its value
_MANY = 0.2  # of the texts, with unknown tokens: a few have an emoji
_WIDE = 0.03  # half an interval of a share


@dataclass(frozen=True)
class Seen:
    """What advice follows from."""

    run: RunRecord
    events: Events
    groups: Sequence[Segment]
    doubted: Sequence[Suspect]


def advice(seen: Seen) -> Section:
    """Return what was seen, and what may help."""
    section, rows = Section("What to try next"), list[tuple[str, str]]()
    if seen.run.status != "complete":
        return section
    for rule in (
        _time,
        _language,
        _unknown,
        _curve,
        _ladder,
        _classes,
        _data,
        _calibration,
        _certainty,
    ):
        rows += rule(seen)
    if rows:
        header = ["what was seen", "what may help"]
        section.blocks.append(Table("From what was seen", header, rows))
    else:
        section.said.append("What was measured points to none of the usual remedies.")
    return section


def _time(seen: Seen) -> Iterator[tuple[str, str]]:
    limit = seen.run.arguments.get("time_limit")
    passes = seen.run.metrics.get("run", {}).get("epochs")
    if limit and passes is not None and passes < 1:
        yield (
            f"the time was enough for {number(passes)} of a pass over train",
            f"a longer --time_limit (it was {limit})",
        )


def _language(seen: Seen) -> Iterator[tuple[str, str]]:
    _, name, entry = seen.run.headline() or ("", "", {})
    before = seen.run.metrics.get("before", {}).get(name, {}).get("value")
    if name not in ("perplexity", "loss") or before is None:
        return
    if before - entry["value"] <= CLEAR * (entry["stderr"] or 0.0):
        yield (
            f"{name} was {number(before)} before training and is"
            f" {number(entry['value'])}: hardly another",
            "more text to learn from: some thousand words teach a model little;"
            " or more --num_train_epochs",
        )


def _curve(seen: Seen) -> Iterator[tuple[str, str]]:
    _, losses = series(seen.events, "eval_loss")
    if len(losses) < 2:
        return
    best, before = min(losses), min(losses[:-1])
    error = seen.run.metrics.get("eval", {}).get("loss", {}).get("stderr") or 0.0
    ladder, rate = ladder_of(seen.run), seen.run.arguments.get("learning_rate")
    if isinstance(rate, float) and rate > FAR_TOO_HIGH:
        said = f"a learning rate of {rate:g} is far above what models of text take"
        yield said, "--learning_rate of 1e-5 to 1e-3, or auto"
    elif worse := worse_than_saved(ladder) if ladder else []:
        names = listed_words([escape(name, 60) for name in worse])
        said = (
            f"{names} did worse than the {escape(ladder['saved'], 60)}, which is saved"
        )
        if _texts_with_unknown(seen)[0] <= _MANY:  # else another model, as said above
            yield said, "a lower --learning_rate"
    elif losses[-1] == best and before - best > _FALL * abs(before):
        said = f"from {number(before)}, the best before, to {number(best)} at the end"
        yield f"the loss on validation was still falling, {said}", _longer(seen)
    elif losses[-1] - best > max(_RISE * best, CLEAR * error):
        at = losses.index(best) + 1
        kept = seen.run.arguments.get("load_best_model_at_end")
        if not kept:
            yield (
                f"the loss on validation rose from {number(best)} (evaluation {at}) to"
                f" {number(losses[-1])}",
                "fewer --num_train_epochs, or --load_best_model_at_end true; where"
                " accuracy went on rising, it may stay",
            )


def _longer(seen: Seen) -> str:
    """Return what makes a training longer, by what ended this one."""
    record, given = seen.run.record, seen.run.arguments
    patience, limit = given.get("early_stopping_patience"), given.get("time_limit")
    planned = record.get("plan", {}).get("steps") or 0
    if patience and record.get("steps", planned) < _ALL * planned:
        return f"a larger --early_stopping_patience (it was {patience}), which ended it"
    if limit:
        return f"a longer --time_limit (it was {limit})"
    if (steps := given.get("max_steps") or -1) > 0:
        return f"a larger --max_steps (it was {steps})"
    more = "more --num_train_epochs"
    if given.get("load_best_model_at_end") is False and not patience:
        more += ", with --load_best_model_at_end false --early_stopping_patience none"
        more += ", as it was now"
    return more


def _texts_with_unknown(seen: Seen) -> tuple[float, list[int]]:
    """Return the share of texts that have unknown tokens, and how many each has."""
    counts = [row.get("unknown_tokens") or 0 for row in seen.run.predictions()]
    return sum(count > 0 for count in counts) / max(len(counts), 1), counts


def _unknown(seen: Seen) -> Iterator[tuple[str, str]]:
    share, counts = _texts_with_unknown(seen)
    if share > _MANY:
        texts = sum(count > 0 for count in counts)
        yield (
            f"{texts:,} of {len(counts):,} texts have tokens that are unknown to this"
            f" model, {sum(counts):,} in all, which it cannot tell apart",
            "a model whose vocabulary was made for this language, or pypi:gemma-3-270m",
        )


def ladder_of(run: RunRecord) -> dict[str, Any]:
    """Return the ladder of a classifier, with folds that of the rows held out."""
    metrics = run.metrics
    return metrics.get("ladder") or metrics.get("k_folds", {}).get("ladder") or {}


def _ladder(seen: Seen) -> Iterator[tuple[str, str]]:
    if not (ladder := ladder_of(seen.run)):
        return
    names = [rung["name"] for rung in ladder["rungs"]]
    above, alike = list[str](), list[str]()
    for rung in ladder["rungs"][: names.index(ladder["saved"])]:
        told = clearly(rung["below"])
        if told <= 0:
            (above if told else alike).append(escape(rung["name"], 60))
    if above:
        longer = "" if ladder["saved"] == PROBE else "a longer training, "
        yield (
            f"{listed_words(above)} reached more than the model",
            f"mended labels or more rows, {longer}a model made for this language and"
            " subject; or the simpler method itself, which llmft does not"
            " save (scikit-learn has it)",
        )
    if alike:
        yield (
            f"no clear difference to {listed_words(alike)}",
            "the simpler method costs less; more rows may show a difference",
        )


def _classes(seen: Seen) -> Iterator[tuple[str, str]]:
    metrics = seen.run.metrics
    folds = metrics.get("k_folds", {}).get("weak_classes")
    found = metrics.get("weak_classes") or folds or {}
    for name, what in (
        ("never_predicted", "never predicted"),
        ("few_training_rows", "with few training rows"),
    ):
        if classes := list(found.get(name) or {}):
            first = listed_words([escape(c, 40) for c in classes[:5]])
            more = f" and {len(classes) - 5} more" if len(classes) > 5 else ""
            yield f"classes {what}: {first}{more}", "; ".join(found["what_helps"])
    if clear := weak(seen.groups):
        shown = [f"{s.what} {escape(s.name, 40)}" for s in clear[:3]]
        yield (
            f"weak where {listed_words(shown)}",
            "more rows like these in train; look at how they are labelled",
        )


def _data(seen: Seen) -> Iterator[tuple[str, str]]:
    strong = sum(suspect.chance < STRONG for suspect in seen.doubted)
    if strong:
        yield (
            f"{counted(strong, 'rows')} whose label has a chance below {STRONG} by all"
            " methods together",
            "look under Probable label errors, and mend what is wrong",
        )
    lengths = seen.run.record.get("lengths") or {}
    most, arguments = seen.run.arguments.get("max_seq_length"), seen.run.arguments
    long = lengths.get("as long as the longest", 0)
    cut = arguments.get("long_text") == "truncate" and lengths.get("longest") == most
    if seen.run.recipe == "classify" and cut and long > 0.1 * lengths["examples"]:
        share = long / lengths["examples"]
        yield (
            f"{share:.0%} of the examples of train fill max_seq_length {most}: texts"
            " are cut",
            "a larger --max_seq_length, or --long_text split",
        )


def _calibration(seen: Seen) -> Iterator[tuple[str, str]]:
    found = seen.run.headline()
    entry = seen.run.metrics.get(found[0], {}).get("calibration_error") if found else {}
    if seen.run.arguments.get("calibrate"):
        return
    ladder = seen.run.metrics.get("ladder", {})
    loss, guessing = (ladder.get(f"log_loss{of}") for of in ("", "_of_guessing"))
    if loss is not None and guessing is not None and loss > guessing:
        yield (
            f"log loss {number(loss)} is above that of guessing, {number(guessing)}: so"
            " sure it is where it is wrong",
            _CALIBRATE,
        )
        return
    if not entry or entry["value"] is None:
        return
    value, error = entry["value"], entry["stderr"] or 0.0
    if value > _OFF and value > CLEAR * error:
        yield (
            f"probabilities are off by {value:.3f} in the mean (calibration error)",
            _CALIBRATE,
        )


def _certainty(seen: Seen) -> Iterator[tuple[str, str]]:
    found = seen.run.headline()
    if found is None:
        return
    part, name, entry = found
    error = entry["stderr"]
    rows = entry.get("n")
    vague = error is None or error > _VAGUE * entry["value"]
    if name == "perplexity" and rows and vague:
        yield (
            f"perplexity was measured on {rows:,} tokens: too few to know it",
            "more text to validate on: --validation_file, or a larger"
            " --validation_split_percentage",
        )
    if name not in ("accuracy", "f1_micro"):
        return
    low, high = limits(name, entry)
    if (high - low) / 2 > _WIDE and part != "folds":
        folds = part == "eval" and bool(seen.run.arguments.get("do_train"))
        yield (
            f"{name} is only known to lie between {number(low)} and {number(high)}"
            + (f" ({rows:,} rows)" if rows else ""),
            "more rows to measure on"
            + ", or --k_folds 5, which measures on every row" * folds,
        )
