"""Examples of a classifier from texts that a program holds in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from llmft.config.fields import ClassificationDataArguments
from llmft.data.read.columns import Columns
from llmft.data.read.labels import MULTI, REGRESSION, SINGLE, LabelNames
from llmft.data.read.rows import memory_rows
from llmft.data.read.store import Source, in_memory, read_file, show
from llmft.data.tokens.examples import classification_features
from llmft.errors import ConfigError, DataError, shorten


class CustomTextDataset(Dataset):
    """A ``datasets.Dataset`` of token ids and labels, made of texts and labels.

    What is read from files is held to the same rules: text stays as it is, every row
    is checked, and what is cut to ``max_length`` is counted in the output. ::

        train = CustomTextDataset(texts, labels, tokenizer)
        test = CustomTextDataset(new, theirs, tokenizer, label_names=train.label_names)
        trainer = Trainer(model, train_dataset=train, eval_dataset=test,
                          data_collator=DataCollatorWithPadding(tokenizer))

    Columns are those of ``classification_features``.

    Args:
        texts: a list, an array or column of pandas, or a ``Source``, which has labels.
        labels: as long: classes (text or whole numbers), lists of them, or numbers
            with fractions; None where there are none.
        max_length: tokens of an example, at the most.
        text_pairs: second texts.
        label_names: those of the training set; None collects them.
        problem_type: as in a config of transformers; None: what the labels look like.
        allow: faults to pass over, as ``ClassificationDataArguments.allow``.

    Attributes:
        label_names: the classes by id, and what kind of labels they are; None
            without labels.

    Raises:
        DataError: a text or label is not one; its place is counted from 0.
        ConfigError: ``max_length`` is no number from 8 on, or ``problem_type`` unknown.
    """

    def __init__(
        self,
        texts: Iterable[str] | Source,
        labels: Iterable[Any] | None,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 128,
        *,
        text_pairs: Iterable[str] | None = None,
        label_names: LabelNames | None = None,
        problem_type: str | None = None,
        allow: Collection[str] = (),
    ) -> None:
        if isinstance(texts, Source):
            source = texts
        else:
            kind = label_names.problem_type if label_names else problem_type
            given = {"text": texts, "text_pair": text_pairs, "label": labels}
            source = _source(given, kind, allow)
        if label_names is None and "label" in source.dataset.column_names:
            kind = source.problem_type or SINGLE
            given = source.dataset["label"][:]
            place = source.place if source.files else None
            label_names = LabelNames.of(given, allow, kind, source.name, place)
        if not isinstance(max_length, int) or max_length < 8:  # as max_seq_length
            raise ConfigError(f"max_length is {max_length!r}, expected at least 8")
        args = ClassificationDataArguments(max_seq_length=max_length)
        known = label_names or LabelNames(())
        made = classification_features(source, tokenizer, args, source.name, known)
        Dataset.__init__(self, made.data, made.info, fingerprint=made._fingerprint)
        self.label_names = label_names

    @classmethod
    def from_json(
        cls,
        path: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 128,
        *,
        text_column_name: str | None = None,
        label_column_name: str | None = None,
        text_pair_column_name: str | None = None,
        label_names: LabelNames | None = None,
        problem_type: str | None = None,
        allow: Collection[str] = (),
    ) -> CustomTextDataset:
        """Read a json or jsonl file; columns are found as the recipes find them.

        With ``label_names`` it may have no labels, unless their column is named.
        Raises DataError, with path and line.
        """
        columns = Columns(
            text_column_name,
            label_column_name,
            needs_label=True,
            label_optional=label_names is not None and label_column_name is None,
            text_pair=text_pair_column_name,
            problem_type=label_names.problem_type if label_names else problem_type,
            **_allowed(allow),
        )
        source = read_file(path, columns)
        show("texts", source)
        return cls(
            source, None, tokenizer, max_length, label_names=label_names, allow=allow
        )


def _allowed(allow: Collection[str]) -> dict[str, Any]:
    """Return what of ``Columns`` follows from the faults to pass over."""
    passed = {name: name in allow for name in ("nul", "na_labels")}
    return {"needs_text": "empty_text" not in allow, **passed}


def _source(
    given: dict[str, Iterable[Any] | None],
    problem_type: str | None,
    allow: Collection[str],
) -> Source:
    """Check values in memory, and return them as what a file would have given."""
    if problem_type not in (None, SINGLE, MULTI, REGRESSION):
        kinds = ", ".join((SINGLE, MULTI, REGRESSION))
        raise ConfigError(f"problem_type is {problem_type!r}, expected one of {kinds}")
    for key, cells in given.items():
        if cells is None and key != "text":
            continue
        one = isinstance(cells, str | Mapping) or hasattr(cells, "columns")
        if one or not hasattr(cells, "__iter__") or getattr(cells, "ndim", 1) == 0:
            said = f"{key} is {shorten(cells)} ({type(cells).__name__})"
            raise DataError(said, "expected a list, or a single column")
    values = {key: _listed(v) for key, v in given.items() if v is not None}
    sizes = {key: len(cells) for key, cells in values.items()}
    if len({*sizes.values()}) > 1 or not sizes["text"]:
        shown = ", ".join(f"{count:,} of {key}" for key, count in sizes.items())
        raise DataError(shown, "expected as many of each, and at least one")
    columns = Columns(
        "text",
        "label" if "label" in values else None,
        needs_label="label" in values,
        text_pair="text_pair" if "text_pair" in values else None,
        problem_type=problem_type,
        **_allowed(allow),
        strict=True,  # nobody would see a note; 1.0 may be a score or a class
    )
    return in_memory(memory_rows(values, columns))


def _listed(values: Iterable[Any]) -> list[Any]:
    """Return values as a list of Python's own types, which arrays are made of, too."""
    found = np.asarray(values).tolist() if hasattr(values, "tolist") else [*values]
    return [value.tolist() if hasattr(value, "tolist") else value for value in found]
