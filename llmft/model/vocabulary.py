"""Tokens that a user adds to a vocabulary, and embeddings for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmft.console import say
from llmft.errors import ConfigError, brief, listed
from llmft.model.probes import embeddings_of

_MOST = 5  # tokens that are named
_FILES = (".txt", ".csv", ".tsv", ".json", ".jsonl")  # no token ends so


def tokens_to_add(given: list[str] | None) -> list[str]:
    """Return the tokens of ``add_tokens``: each itself, or the lines of a file.

    Raises ConfigError for a file that cannot be read, or has none.
    """
    found: list[str] = []
    for one in given or []:
        path = Path(one)
        try:
            one.encode()
            if ("/" in one or path.suffix in _FILES) and not path.is_file():
                raise ConfigError("add_tokens: no such file", path=one)
            if path.suffix in _FILES[1:]:
                raise ConfigError("add_tokens: expected a .txt, one a line", path=one)
            lines = path.read_text("utf-8-sig").splitlines() if path.is_file() else None
        except (OSError, ValueError) as error:
            raise ConfigError(f"add_tokens: {brief(error)}", path=one) from error
        tokens = [one] if lines is None else lines
        tokens = [token.strip() for token in tokens if token.strip()]
        if not tokens:
            raise ConfigError("add_tokens: there is no token", path=one)
        found += tokens
    return list(dict.fromkeys(found))


def add_tokens(tokenizer: PreTrainedTokenizerBase, given: list[str] | None) -> None:
    """Add the tokens of ``add_tokens`` that the tokenizer does not have; say which."""
    tokens = tokens_to_add(given)
    known = tokenizer.get_vocab()
    new = [token for token in tokens if token not in known]
    tokenizer.add_tokens(new)
    if tokens:
        had = f"; {len(tokens) - len(new):,} it had" if len(new) < len(tokens) else ""
        say(f"tokens     {len(new):,} added: {listed(new, _MOST)}{had}")


def resize_embeddings(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a model embeddings for all tokens; those it has stay as they are.

    Some models have more than their tokenizer needs: added tokens take these. New ones
    are drawn around the mean of the others, as transformers does
    (https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
    """
    rows, needed = embeddings_of(model), max(tokenizer.get_vocab().values()) + 1
    if rows is None or needed <= rows:
        say(f"           embeddings: none are new, the model has {rows} for {needed}")
        return
    model.resize_token_embeddings(needed)
    said = f"{needed - rows:,} new ones start near the mean of the {rows:,} others"
    say(f"           embeddings: {said}")
