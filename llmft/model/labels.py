"""What the outputs of a classifier mean: names by id, and the problem type."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from transformers import AutoConfig

from llmft.data.read.labels import MULTI, REGRESSION, SINGLE, LabelNames
from llmft.data.read.store import Source
from llmft.errors import ConfigError, listed
from llmft.model.pretrained import from_pretrained
from llmft.sources.hub import Located

_MOST = 4  # names in a list of classes


def own_names(config: Any) -> tuple[str, ...]:
    """Return the class names of a config by id, () if they are not names of ids."""
    found = config.id2label or {}
    names = tuple(str(found[i]) for i in range(len(found)) if i in found)
    return names if len(set(names)) == len(found) else ()


def problem_type(config: Any) -> str:
    """Return what a classifier was made for: where that is not said, by its outputs."""
    if config.problem_type in (SINGLE, MULTI, REGRESSION):
        return str(config.problem_type)
    return REGRESSION if config.num_labels == 1 else SINGLE


def no_classifier(config: Any, kind: str = SINGLE) -> str:
    """Return why a model is not trained for the problem type ``kind``, or ""."""
    made = config.architectures or []
    made = [made] if isinstance(made, str) else made
    if made and not any(str(n).endswith("ForSequenceClassification") for n in made):
        return f"it is a {made[0]}"
    if problem_type(config) != kind:
        return f"it is for {problem_type(config)}"
    if kind == REGRESSION and config.num_labels != 1:
        return f"it gives {config.num_labels} numbers for a text"
    if not own_names(config):
        return "id2label in its config.json is not one name for each id from 0"
    return ""


def untrained(why: str, place: str) -> ConfigError:
    """Return the error of predicting with a model that has no trained classifier."""
    return ConfigError(
        f"this model has no trained classifier: {why}; expected a model that"
        " recipes/classify.py trained, or the like; --do_train makes one",
        path=place,
    )


def set_names(
    config: Any, names: tuple[str, ...], kind: str = SINGLE
) -> tuple[str, str]:
    """Give ``config`` the class names and the problem type of a run, if it has any.

    Returns why a classifier in the file cannot be taken over, or ""; and else, what the
    ids of one without names now mean, or "".
    """
    if not names:
        return "", ""
    own, why, note = own_names(config), no_classifier(config, kind), ""
    generic = own == tuple(f"LABEL_{i}" for i in range(len(own)))
    if why:
        pass
    elif len(own) != len(names):
        why = f"it has {len(own)} classes, the data {len(names)}"
    elif own != names and not generic:
        made_for, has = (listed(found, _MOST, str) for found in (own, names))
        why = f"it was trained for {made_for}, the data has {has}"
    elif own != names and names != tuple(str(i) for i in range(len(names))):
        meanings = [f"{old} is {new}" for old, new in zip(own, names, strict=True)]
        note = f"its classes had no names: {listed(meanings, _MOST, str)}"
    config.problem_type = kind
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    return why, note


def label_names(
    located: Located,
    train: Source | None,
    allow: Collection[str] = (),
    kind: str = SINGLE,
) -> LabelNames:
    """Return the classes: of the training labels, else those the model was made for.

    A model that knows the same names keeps its own order, so that its head fits; one
    for the same regression (of the problem type ``kind``) the name of its output.

    Raises:
        ConfigError: neither training labels nor a trained classifier.
        LabelError: training labels that are all alike, or much like each other.
    """
    labels = None
    if train is not None:
        given, name = train.dataset["label"][:], train.name
        labels = LabelNames.of(given, allow, kind, name, train.place)
    config = from_pretrained(AutoConfig, located)
    own, why = own_names(config), no_classifier(config, kind)
    if labels is not None:
        same = not why if kind == REGRESSION else set(own) == set(labels.names)
        return replace(labels, names=own) if same else labels
    if why:
        raise untrained(why, located.name)
    return LabelNames(own, kind)


def trained_problem_type(located: Located) -> str:
    """Return what a model that is not trained any further predicts.

    Raises ConfigError where it is no trained classifier.
    """
    config = from_pretrained(AutoConfig, located)
    kind = problem_type(config)
    if why := no_classifier(config, kind):
        raise untrained(why, located.name)
    return kind
