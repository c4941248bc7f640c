"""Masked language modelling: its arguments, and words filled in before and after."""

from __future__ import annotations

import random
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llmft.config.fields import MaskedLMDataArguments
from llmft.config.rules import require_data, require_something_to_do
from llmft.config.task import Task
from llmft.console import say, table
from llmft.data.split.splits import Splits
from llmft.data.tokens.collate import SeededDataCollatorForLanguageModeling, fix_masks
from llmft.data.tokens.examples import lm_blocks
from llmft.data.tokens.stream import Stream
from llmft.metrics.tokens import MASKED_LM
from llmft.model.probes import in_own_precision
from llmft.runs.folder import Run
from llmft.runs.plan import Plan
from llmft.runs.record import RunRecord
from llmft.tasks.recipe import run_recipe

TASK = Task(
    recipe="mlm",
    auto_class=AutoModelForMaskedLM,
    pipeline_tag="fill-mask",
    embedded_model="pypi:all-MiniLM-L6-v2",
    metrics=MASKED_LM,
)


def run(**arguments: Any) -> RunRecord | Plan:
    """Run the recipe as ``recipes/mlm.py`` does; see ``run_recipe``.

    mlm.run(train_file="texts.txt", num_train_epochs=2)
    """
    return run_recipe(TASK, arguments)


def check(values: dict[str, Any]) -> list[str]:
    """Return what does not fit together in the arguments of masked LM."""
    problems = [*require_data(values), *require_something_to_do(values)]
    names = ("geometric_p", "max_span_length")
    changed = [n for n in names if values[n] != getattr(MaskedLMDataArguments, n)]
    if changed and values["mlm_masking"] != "span":
        said = "without mlm_masking span has no effect"
        problems.append(f"{', '.join(changed)} {said}")
    return problems


def blocks(
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
    collator: SeededDataCollatorForLanguageModeling,
    args: MaskedLMDataArguments,
) -> dict[str, Any]:
    """Cut the texts of each split into blocks of token ids; see ``lm_blocks``.

    The masks of validation and test are fixed, so that evaluations can be compared.
    """
    found: dict[str, Any] = {
        split: lm_blocks(texts, tokenizer, args, split)
        for split, texts in splits.parts.items()
    }
    for split in found.keys() - {"train"}:
        found[split] = fix_masks(found[split], collator, split)
    if splits.rows is not None:
        seed = collator.mask_seed
        found["train"] = Stream(splits.rows, args, tokenizer, seed, splits.skip)
    return found


def cloze_examples(
    data: Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
    args: MaskedLMDataArguments,
    seed: int,
) -> list[tuple[str, str]]:
    """Return (text with one word masked, the word) for ``num_examples`` texts.

    Only words that are a single token are masked, so that one guess can be right.
    Each text is cut to 18 words and ``max_seq_length`` tokens.
    """
    count, max_length = args.num_examples, args.max_seq_length
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
        inputs = tokenizer(text, return_tensors="pt").to(model.device)
        (place,) = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()
        with in_own_precision(model), torch.inference_mode():
            logits = model(**inputs).logits[0, int(place)]
        best = logits.topk(top).indices.tolist()
        guesses.append(", ".join(str(tokenizer.decode([i])).strip() for i in best))
    return guesses


def show_filled(
    examples: list[tuple[str, str]],
    before: list[str],
    after: list[str],
    run: Run,
) -> None:
    """Print and keep what ``fill_masks`` gave before and after training."""
    if examples:
        say(f"\nfill-mask, on {run.held_out}")
        both = zip(examples, before, after, strict=True)
        rows = [(text, word, then, now) for (text, word), then, now in both]
        header = ["text", "word", "before", "after"]
        say(table(rows, header))
        kept = [dict(zip(header, row, strict=True)) for row in rows]
        run.write_examples("fill_mask", kept)
