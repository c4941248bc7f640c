"""``llmft.load``: a trained model as a function of texts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, TypeAlias

from transformers import AutoModelForCausalLM

from llmft.config.facts import fields_of, from_flags
from llmft.config.fields import GenerationModelArguments, TrainingArguments
from llmft.config.parse import Arguments
from llmft.data.read.text import require_clean
from llmft.errors import ConfigError, nearest
from llmft.model.load import load_model, load_tokenizer
from llmft.model.probes import require_causal
from llmft.process import libraries_as_before, quiet_libraries
from llmft.tasks import generate
from llmft.tasks.named import Named, find_model
from llmft.tasks.predict import CLASSES, OF_MACHINE, predict_texts
from llmft.tasks.predictors import (
    FLAGS,
    cpu_arguments,
    data_arguments,
    load_predictor,
)
from llmft.tasks.prompts import completions
from llmft.train.randomness import drawing_apart

Text: TypeAlias = str | tuple[str, str] | Mapping[str, str]
# What a call of a model that writes texts can change.
WRITING = [
    *("apply_chat_template", "max_new_tokens", "min_new_tokens", "do_sample"),
    *("temperature", "top_k", "top_p", "num_return_sequences"),
    *("repetition_penalty", "no_repeat_ngram_size"),
]

# Threads are the caller's own.
_READING = [*FLAGS, *(name for name in OF_MACHINE if name != "num_threads")]


class Predicts:
    """A classifier or a masked model, called with a text or a list of texts.

    A pair is a tuple of two texts, or has the keys ``text`` and ``text_pair``. What
    comes back is a row for each as ``llmft predict`` writes it: ``prediction``,
    ``probability`` and ``probabilities``; of masks ``prediction`` and ``fills``.
    """

    def __init__(self, named: Named, given: Mapping[str, Any]) -> None:
        training = cpu_arguments(**{n: given[n] for n in ("precision",) if n in given})
        if attention := given.get("attn_implementation"):
            named.args.attn_implementation = attention
        data = data_arguments(named, given)
        self.predictor = load_predictor(named, data, training)
        self.lock = Lock()  # a call leaves marks on the model while it runs

    def __call__(self, texts: Text | Sequence[Text]) -> list[dict[str, Any]]:
        """Return what the model says of each text. Raises LlmftError."""
        rows = [_row(text) for text in _listed(texts)]
        if len({len(row) for row in rows}) > 1:
            raise ConfigError("some texts have a pair, some have none")
        pairs = [row["text_pair"] for row in rows if "text_pair" in row]
        with self.lock:
            return predict_texts(self.predictor, [row["text"] for row in rows], pairs)


class Writes:
    """A causal model, called with a prompt or a list of prompts.

    Keywords are arguments of ``generate.py``, as ``max_new_tokens``; a call gives its
    own. What comes back is ``prompt`` and ``completion`` for each text.
    """

    def __init__(self, named: Named, given: Mapping[str, Any]) -> None:
        located = named.located
        chat = named.recorded("apply_chat_template")
        known = {"apply_chat_template": chat, **vars(named.args), **given}
        fields = fields_of(GenerationModelArguments)
        args = GenerationModelArguments(
            **{n: x for n, x in known.items() if n in fields}
        )
        self.tokenizer = load_tokenizer(located, args)
        self.model = load_model(
            AutoModelForCausalLM, located, args, self.tokenizer, will_train=False
        )
        require_causal(self.model, located.name)
        self.args = Arguments(args, None, cpu_arguments(), {})
        self.lock = Lock()

    def __call__(
        self, texts: str | Sequence[str], *, seed: int = 42, **more: Any
    ) -> list[dict[str, Any]]:
        """Return what the model writes after each prompt. Raises LlmftError."""
        args = copy.deepcopy(self.args)
        for name, value in _checked(more, WRITING, GenerationModelArguments).items():
            setattr(args.model, name, value)
        prompts = [texts] if isinstance(texts, str) else list(texts)
        for prompt in prompts:
            if not isinstance(prompt, str):
                said = f"a prompt is {type(prompt).__name__}, expected str"
                raise ConfigError(said)
            require_clean(prompt, "a prompt")
        args.model.prompt = prompts
        args.training.seed = _checked({"seed": seed}, ["seed"], TrainingArguments)[
            "seed"
        ]
        if not prompts:
            return []
        if problems := generate.check_sampling(vars(args.model)):
            raise ConfigError(*problems)
        with self.lock, drawing_apart():
            found = [*completions(self.model, self.tokenizer, args)]
        return [row for rows, _ in found for row in rows]


def load(name: str, **arguments: Any) -> Predicts | Writes:
    """Load a trained model as a function of texts.

        model = llmft.load("outputs/classify/20260101-120000-a1b2c3")
        model(["A masterful film", "boring"])[0]["prediction"]

    Args:
        name: a run or its name, a folder of a model, a hub id, or pypi:NAME.
        arguments: how texts are read and cut, as ``max_seq_length``; of a model that
            writes, those of ``generate.py``. By default they are those of the run.

    Raises:
        LlmftError: there is no such model, or it has no trained head.
    """
    known = [*_READING, *WRITING]
    _checked(arguments, known, *CLASSES, GenerationModelArguments)
    with libraries_as_before():
        quiet_libraries()
        named = find_model(str(name))
        if named.task.recipe == generate.TASK.recipe:
            given = _checked(arguments, WRITING, GenerationModelArguments)
            return Writes(named, given)
        return Predicts(named, _checked(arguments, _READING, *CLASSES))


def _checked(
    given: Mapping[str, Any], names: Sequence[str], *classes: type
) -> dict[str, Any]:
    """Return the values of arguments. Raises ConfigError with all problems."""
    values, problems = from_flags(given, *classes)
    problems += [
        f"unknown argument {name}{nearest(name, names)}"
        for name in given
        if name not in names
    ]
    if problems:
        raise ConfigError(*problems)
    return values


def _listed(texts: Any) -> list[Any]:
    return [texts] if isinstance(texts, str | tuple | Mapping) else list(texts)


def _row(text: Any) -> dict[str, str]:
    """Return a text or a pair as a row."""
    row = dict(text) if isinstance(text, Mapping) else None
    if isinstance(text, tuple) and len(text) == 2:
        row = {"text": text[0], "text_pair": text[1]}
    row = row or {"text": text}
    known = row.keys() <= {"text", "text_pair"} and "text" in row
    if not known or not all(isinstance(part, str) for part in row.values()):
        said = f"a text is {type(text).__name__}, expected str, (str, str) or"
        raise ConfigError(f'{said} {{"text": ..., "text_pair": ...}}')
    return row
