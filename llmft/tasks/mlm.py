"""Masked language modelling: its arguments, and words filled in before and after."""

from __future__ import annotations

import random
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmft.config.rules import require_data, require_something_to_do
from llmft.console import say, table
from llmft.data.tokens.masking import require_span


def check(values: dict[str, Any]) -> list[str]:
    """Return what does not fit together in the arguments of masked LM."""
    return [
        *require_data(values),
        *require_something_to_do(values),
        *require_span(values),
    ]


def cloze_examples(
    data: Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    seed: int,
    max_length: int,
) -> list[tuple[str, str]]:
    """Return (text with one word masked, the word) for the start of ``count`` texts.

    Only words that are a single token are masked, so that one guess can be right.
    Each text is cut to 18 words and ``max_length`` tokens.
    """
    if data is None:
        return []
    texts = data["text"][:]
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    examples: list[tuple[str, str]] = []
    for i in order:
        if len(examples) == count:
            break
        words = texts[i].split()[:18]
        while len(_ids(words, tokenizer)) > max_length:
            words.pop()
        if len(words) < 6:
            continue
        places = [
            w
            for w, word in enumerate(words)
            if word.isalpha() and len(word) > 3 and _is_one_token(word, tokenizer)
        ]
        if places:
            place = random.Random(f"{seed}/{i}").choice(places)
            word = words[place]
            words[place] = str(tokenizer.mask_token)
            ids = _ids(words, tokenizer)
            # A mask can change how its neighbours split; a text can hold its own.
            if len(ids) <= max_length and ids.count(tokenizer.mask_token_id) == 1:
                examples.append((" ".join(words), word))
    if len(examples) < count:
        say(
            f"{len(examples)} of {count} fill-mask examples: no other text begins with"
            f" 6 to 18 words in {max_length} tokens, one of them a token by itself"
        )
    return examples


def _ids(words: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer(" ".join(words), verbose=False)["input_ids"]


def _is_one_token(word: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id


def fill_masks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[tuple[str, str]],
    top: int = 3,
) -> list[str]:
    """Return the ``top`` guesses for each of ``cloze_examples``, likeliest first."""
    model.eval()
    guesses = []
    for text, _ in examples:
        inputs = tokenizer(text, return_tensors="pt")
        (place,) = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()
        with torch.inference_mode():
            logits = model(**inputs).logits[0, int(place)]
        best = logits.topk(top).indices.tolist()
        guesses.append(", ".join(str(tokenizer.decode([i])).strip() for i in best))
    return guesses


def show_filled(
    examples: list[tuple[str, str]], before: list[str], after: list[str], split: str
) -> None:
    """Print what ``fill_masks`` gave before and after training on ``split``."""
    if examples:
        say(f"\nfill-mask, on {split}")
        both = zip(examples, before, after, strict=True)
        rows = [(text, word, then, now) for (text, word), then, now in both]
        say(table(rows, ["text", "word", "before", "after"]))
