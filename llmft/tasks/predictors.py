"""Models that say something of texts: a classifier, and one that fills masks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from llmft.config.choice import Choice
from llmft.config.facts import fields_of, fields_with
from llmft.config.fields import ClassificationDataArguments, TrainingArguments
from llmft.config.parse import Arguments
from llmft.console import say
from llmft.data.read.columns import Columns
from llmft.data.read.files import FORMATS, Reading, format_of, is_pipe, named_files
from llmft.data.read.store import Source
from llmft.data.read.text import in_unicode
from llmft.data.tokens.collate import (
    IGNORED,
    DataCollatorForClassification,
    by_length,
)
from llmft.data.tokens.encode import Encoded, encode_batch
from llmft.data.tokens.examples import dataset_of, unknown_tokens
from llmft.data.tokens.long_text import fit
from llmft.errors import ConfigError, DataFormatError, LengthError, NonFiniteError
from llmft.machine.trial import Candidate
from llmft.metrics import predictions
from llmft.model.labels import label_names, trained_problem_type
from llmft.model.load import (
    load_model,
    load_tokenizer,
    require_mask_token,
    set_token_type_ids,
)
from llmft.model.probes import in_own_precision, position_limit
from llmft.tasks import classify, mlm
from llmft.tasks.named import Named
from llmft.train.batches import lengths_of
from llmft.train.fast_path import choose_fast_path
from llmft.train.narrow import labelled_positions_only
from llmft.train.objectives import Classification, MaskedLM
from llmft.train.steps import set_candidate

_MASKS = re.compile(r"\[MASK\]|<mask>")
_MOST = 512  # tokens of a text, where neither run nor user says how many
_OF_LABELS = ("label_column_name", "problem_type", "label_delimiter")
KEPT = fields_with("kept", ClassificationDataArguments)  # of the run
FLAGS = [*(n for n in KEPT if n not in _OF_LABELS), "max_bad_rows", "allow"]
FILLS = 5
# Batches of a file by which its trial knows that it may take all of its time.
ENOUGH = 100


def data_arguments(
    named: Named, given: Mapping[str, Any], file: str | None = None
) -> ClassificationDataArguments:
    """Return how texts are read and cut: as the run did it, but for what is given.

    The format is that of the run where the ending of the ``file`` does not say it, the
    encoding that of the file where it is in Unicode and the user says nothing else.
    With neither run nor user, ``max_seq_length`` is 0: as the model allows.
    """
    recorded = {name: named.recorded(name) for name in KEPT}
    if file and format_of(Path(file)) in FORMATS:
        recorded["file_format"] = None
    encoding = recorded["encoding"]
    if file and encoding and "encoding" not in given and not is_pipe(file):
        reading = Reading(file_format=given.get("file_format"), encoding=encoding)
        with named_files(file, reading) as (files, _, _):
            if any(map(in_unicode, files)):
                say(f"encoding   Unicode, as {file} is; that of the run: {encoding}")
                recorded["encoding"] = None
    known = {"max_seq_length": 0}
    known |= {name: value for name, value in recorded.items() if value is not None}
    fields = fields_of(ClassificationDataArguments)
    return ClassificationDataArguments(
        **known | {name: value for name, value in given.items() if name in fields}
    )


def source_of(
    rows: Sequence[Mapping[str, Any]], name: str = "text", files: Sequence[str] = ()
) -> Source:
    """Return rows with ``text`` and maybe ``text_pair``, ``file``, ``line`` as data."""
    names = [name for name in rows[0] if name != "carried"]
    columns: dict[str, Any] = {n: [row[n] for row in rows] for n in names}
    for n in ("text", "text_pair"):
        if n in columns:
            columns[n] = pa.array(columns[n], pa.large_string())
    columns.setdefault("file", [0] * len(rows))
    columns.setdefault("line", list(range(1, len(rows) + 1)))
    return Source(dataset_of(columns), name, files=tuple(files) or (name,))


class Predictor:
    """A model with its tokenizer, which says something of texts, many at once.

    Args:
        named: which model.
        data: how texts are read and cut.
        training: threads and precision.

    Attributes:
        columns: what it reads of data.
        counts: what happened to the texts so far, in words, and how often.
    """

    model: Any
    objective: Classification | MaskedLM

    def __init__(
        self,
        named: Named,
        data: ClassificationDataArguments,
        training: TrainingArguments,
    ) -> None:
        self.args = Arguments(named.args, data, training, {})
        self.tokenizer = load_tokenizer(named.located, named.args)
        self.counts: Counter[str] = Counter()
        self.columns = Columns.of(data, label_optional=True)
        self.load(named)
        self.model.eval()
        self.collator = DataCollatorForClassification(self.tokenizer)
        limit = position_limit(self.model) or _MOST
        self.precision = "fp32"
        if not data.max_seq_length:
            most = min(_MOST, limit, int(self.tokenizer.model_max_length))
            data.max_seq_length = most
        if training.precision == "bf16":
            self.take("bf16", self.attention)

    def load(self, named: Named) -> None:
        """Load the model; set ``model`` and ``objective``."""
        raise NotImplementedError

    def features(self, source: Source) -> Dataset:
        """Encode texts; see ``classification_features``."""
        raise NotImplementedError

    def count_unknown(self, ids: np.ndarray) -> None:
        """Count the tokens, of all texts, that the model cannot tell apart."""
        if unknown := unknown_tokens(ids, self.tokenizer):
            name = self.tokenizer.unk_token
            self.counts[f"tokens are unknown to this model ({name})"] += unknown

    def said(self, source: Source, features: Dataset) -> list[dict[str, Any]]:
        """Return what the model says of each text."""
        raise NotImplementedError

    def __call__(self, source: Source) -> list[dict[str, Any]]:
        """Return what the model says of each text, as a row of ``predictions.jsonl``.

        Raises:
            DataError: a text cannot be used. NonFiniteError: scores are no numbers.
        """
        texts = source.dataset["text"][:]
        if empty := sum(not text.strip() for text in texts):
            self.counts["texts are empty; used all the same"] += empty
        names = [n for n in ("text", "text_pair") if n in source.dataset.column_names]
        shown = (source.dataset[name][:] for name in names)
        found = self.said(source, self.features(source))
        return [
            dict(zip(names, values, strict=True)) | row
            for *values, row in zip(*shown, found, strict=True)
        ]

    def choose(self, source: Source, total: int) -> list[Choice]:
        """Try what is fastest for a file of ``total`` texts, and take it; see there.

        The trial is of the batch of the text in the middle, as ``batches`` makes it:
        a small one says nothing of it (Xeon with AMX, MiniLM: bf16 takes 28 ms for 90
        tokens where fp32 takes 24, but half of its time for 2,000).
        """
        features = self.features(source)
        self.counts.clear()
        parts = [part for part in by_length(lengths_of(features)) for _ in part]
        typical = parts[len(parts) // 2]
        times = min(-(-total // len(typical)), ENOUGH)
        data = {"test": features.select(typical * times)}
        args, model = self.args, self.model
        args.training.per_device_eval_batch_size = len(typical)
        found = choose_fast_path(args, model, self.objective, self.collator, data)
        self.take("bf16" if args.training.bf16 else "fp32", self.attention)
        return found.choices

    @property
    def attention(self) -> str:
        """The attention that the model runs with."""
        return str(self.model.config._attn_implementation)

    def take(self, precision: str, attention: str) -> None:
        """Run in this precision with this attention from now on."""
        set_candidate(self.model, Candidate(precision, attention), ())
        self.precision = precision
        # As in training: bf16 kernels are made and kept for each length.
        self.collator.pad_to_multiple_of = 8 if precision == "bf16" else None

    def batches(self, features: Dataset) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Yield the places of some texts of like length, and them as a batch.

        The model runs in its precision meanwhile, and no gradient is kept.
        """
        names = [n for n in ("input_ids", "token_type_ids") if n in features.features]
        rows = features.select_columns(names).to_list()
        bf16 = self.precision == "bf16"
        with (
            in_own_precision(self.model),
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            for places in by_length([len(row["input_ids"]) for row in rows]):
                yield places, self.collator([rows[i] for i in places])


class Classifier(Predictor):
    """A classifier: a class, several labels, or a number for each text."""

    def load(self, named: Named) -> None:
        """Load a model that ``classify.py`` trained, or the like."""
        located, data = named.located, self.args.data
        set_token_type_ids(self.tokenizer, located)
        kind = trained_problem_type(located)
        self.labels = label_names(located, None, (), kind)
        self.objective = Classification(kind)
        self.model = load_model(
            classify.TASK.auto_class,
            located,
            named.args,
            self.tokenizer,
            max_seq_length=data.max_seq_length,
            label_names=self.labels.names,
            problem_type=kind,
            will_train=False,
        )

    def features(self, source: Source) -> Dataset:
        """Encode texts or pairs, cut or split as the arguments say, counted."""
        data, names = self.args.data, source.dataset.column_names
        batch = {n: source.dataset[n][:] for n in ("text", "text_pair") if n in names}
        ids, lengths, types = encode_batch(batch, self.tokenizer)
        self.count_unknown(ids)
        encoded = Encoded(ids, lengths, types, 0, "")
        columns, rows, _ = fit(source, encoded, self.tokenizer, data, source.name)
        over = np.maximum(lengths - data.max_seq_length, 0)
        if over.any():
            size = data.max_seq_length
            done = "split" if data.long_text == "split" else "cut"
            self.counts[f"texts are {done}, of more than {size} tokens"] += int(
                (over > 0).sum()
            )
        features = dataset_of({**columns, "row": rows})
        classify.require_one_end(self.model, {"text": features}, {"text": source})
        return features

    def said(self, source: Source, features: Dataset) -> list[dict[str, Any]]:
        """Return prediction and probabilities of each text."""
        logits = np.empty((len(features), len(self.labels.names)), np.float32)
        assert isinstance(self.objective, Classification)
        for places, batch in self.batches(features):
            output = self.objective.output(self.model, batch)
            logits[places] = output["logits"].float().numpy()
        found, _ = self.objective.by_text(logits, None, features)
        _require_finite(found)
        least = self.args.data.multi_label_threshold
        return predictions.said(found, self.labels, least)


class MaskFiller(Predictor):
    """A masked language model: the likeliest tokens for each mask of a text."""

    def load(self, named: Named) -> None:
        """Load a masked language model."""
        require_mask_token(self.tokenizer, named.located)
        self.objective = MaskedLM()
        data = self.args.data
        if data.max_seq_length == named.recorded("max_seq_length"):  # was not given
            data.max_seq_length = 0  # nothing is cut, since a mask could be
        self.model = load_model(
            mlm.TASK.auto_class,
            named.located,
            named.args,
            self.tokenizer,
            max_seq_length=data.max_seq_length,
            will_train=False,
        )

    def features(self, source: Source) -> Dataset:
        """Encode texts with masks, written [MASK], <mask> or as the model has it.

        Raises DataFormatError for a text without one, LengthError for one too long.
        """
        mask, size = str(self.tokenizer.mask_token), self.args.data.max_seq_length
        if "text_pair" in source.dataset.column_names:
            raise ConfigError(
                "this model fills masks of single texts, and reads no pairs"
            )
        texts = [
            text if mask in text else _MASKS.sub(lambda _: mask, text)
            for text in source.dataset["text"][:]
        ]
        ids, lengths, _ = encode_batch({"text": texts}, self.tokenizer)
        self.count_unknown(ids)
        rows = np.split(ids, np.cumsum(lengths)[:-1])
        for place, row in enumerate(rows):
            if self.tokenizer.mask_token_id not in row:
                said = "a text without a mask"
                raise DataFormatError(
                    said, f"expected {mask} in it", path=source.place(place)
                )
            if len(row) > size:
                said = f"a text of {len(row):,} tokens"
                raise LengthError(
                    said, f"expected at most {size:,}", path=source.place(place)
                )
        return dataset_of({"input_ids": [row.tolist() for row in rows]})

    def said(self, source: Source, features: Dataset) -> list[dict[str, Any]]:
        """Return the best token, and the likeliest ``FILLS``, for each mask."""
        found: list[list[Any]] = [[] for _ in range(len(features))]
        for places, batch in self.batches(features):
            ids = batch["input_ids"]
            is_mask = ids == self.tokenizer.mask_token_id
            labels = torch.where(is_mask, ids, IGNORED)
            with labelled_positions_only(self.model.base_model, labels):
                logits = self.model(**batch).logits[0, : int(is_mask.sum())]
            best = logits.float().softmax(-1).topk(min(FILLS, logits.shape[-1]))
            _require_finite(best.values.numpy())
            rows = is_mask.nonzero()[:, 0].tolist()
            pairs = zip(rows, best.indices.tolist(), best.values.tolist(), strict=True)
            for row, tokens, values in pairs:
                found[places[row]].append([*map(self._fill, tokens, values)])
        return [
            {"prediction": [fill[0]["token"] for fill in fills], "fills": fills}
            for fills in found
        ]

    def _fill(self, token: int, probability: float) -> dict[str, Any]:
        word = str(self.tokenizer.decode([token])).strip()
        return {"token": word, "probability": round(probability, 6)}


def _require_finite(scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        raise NonFiniteError(
            "the scores of the model are not finite",
            "expected numbers",
            "use another model, or --precision fp32",
        )


def load_predictor(
    named: Named, data: ClassificationDataArguments, training: TrainingArguments
) -> Predictor:
    """Load a classifier or a masked model. Raises ConfigError for one that writes."""
    kinds = {classify.TASK.recipe: Classifier, mlm.TASK.recipe: MaskFiller}
    kind = kinds.get(named.task.recipe)
    if kind is None:
        raise ConfigError(
            "this model writes texts, it predicts nothing about them; use `llmft"
            f" generate --model_name_or_path {named.located.name} --prompt_file FILE`,"
            ' or --prompt "..."',
            path=named.located.name,
        )
    return kind(named, data, training)


cpu_arguments = partial(TrainingArguments, use_cpu=True, do_predict=True)
