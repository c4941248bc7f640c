"""How well tokens are predicted, by which they are and where they stand."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import torch

_ENOUGH = 5000  # blocks that say how frequent tokens are
_FREQUENT = (1, 10, 100, 1000)  # times in them: the limits of groups


class TokenTally:
    """Sums over the predicted tokens of an evaluation.

    Attributes:
        tokens, places: (ids or positions, 3): summed negative log-likelihood, tokens,
            right guesses.
    """

    def __init__(self) -> None:
        self.tokens = np.zeros((0, 3))
        self.places = np.zeros((0, 3))

    def add(self, ids: torch.Tensor, places: torch.Tensor, found: torch.Tensor) -> None:
        """Add tokens: ``ids`` and ``places`` (n,), ``found`` (n, 3)."""
        values = found.detach().cpu().double().numpy()
        self.tokens = _added(self.tokens, ids.cpu().numpy(), values)
        self.places = _added(self.places, places.cpu().numpy(), values)


def _added(sums: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    size = max(len(sums), int(keys.max(initial=-1)) + 1)
    more = [np.bincount(keys, values[:, i], size) for i in range(3)]
    grown = np.zeros((size, 3))
    grown[: len(sums)] = sums
    return grown + np.stack(more, 1)


def breakdown(tally: TokenTally, tokenizer: Any, train: Any) -> dict[str, Any]:
    """Return loss, tokens and accuracy by kind, frequency and position.

    Args:
        tokenizer: names the tokens.
        train: the training examples, whose first ``_ENOUGH`` tell what is frequent;
            a stream, or None, tells nothing.
    """
    ids = np.flatnonzero(tally.tokens[:, 1])
    pieces = tokenizer.convert_ids_to_tokens(ids.tolist())
    special = {*tokenizer.all_special_ids}
    wordpiece = any(piece.startswith("##") for piece in pieces)
    kinds = [
        "special" if i in special else kind_of(piece, wordpiece)
        for i, piece in zip(ids.tolist(), pieces, strict=True)
    ]
    found = {"by_kind": _grouped(kinds, tally.tokens[ids])}
    if hasattr(train, "__len__"):
        blocks = train[: min(len(train), _ENOUGH)]["input_ids"]
        seen = np.concatenate([np.asarray(block, int) for block in blocks])
        counts = np.bincount(seen, minlength=len(tally.tokens))
        names = [_range(int(n), _FREQUENT) if n else "never" for n in counts[ids]]
        found["by_frequency"] = _grouped(names, tally.tokens[ids])
    places = np.flatnonzero(tally.places[:, 1])
    names = [_range(int(p) + 1, tuple(2**k for k in range(3, 14))) for p in places]
    found["by_position"] = _grouped(names, tally.places[places])
    return found


def kind_of(piece: str, wordpiece: bool) -> str:
    """Return what a token is: number, punctuation, start of a word, or what follows.

    Args:
        wordpiece: what goes on has ``##`` before it; else what starts a word, or
            stands at the start of a text, has a mark for the space.
    """
    bare = piece.removeprefix("##").lstrip("Ġ▁Ċ")
    if bare and all(
        c in string.punctuation or not (c.isalnum() or c > "~") for c in bare
    ):
        return "punctuation"
    if bare.isnumeric():
        return "number"
    goes_on = piece.startswith("##") if wordpiece else piece[:1] not in "Ġ▁Ċ"
    return "continuation" if goes_on else "word start"


def _range(n: int, limits: tuple[int, ...]) -> str:
    """Return the range between two limits that has ``n``: below, or from the lower."""
    if n < limits[0]:
        return f"under {limits[0]:,}"
    low = max(limit for limit in limits if limit <= n)
    above = [limit for limit in limits if limit > n]
    return f"{low:,} to {above[0] - 1:,}" if above else f"{low:,} and more"


def _grouped(names: list[str], sums: np.ndarray) -> dict[str, dict[str, float]]:
    """Return the means of each group, in the order in which they come."""
    found: dict[str, np.ndarray] = {}
    for name, row in zip(names, sums, strict=True):
        found[name] = found.get(name, 0) + row
    return {
        name: {"loss": nll / n, "accuracy": right / n, "tokens": int(n)}
        for name, (nll, n, right) in found.items()
    }
