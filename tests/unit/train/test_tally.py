"""Sums over predicted tokens, against a loop."""

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset

from llmft.train.losses import token_statistics
from llmft.train.tally import TokenTally, breakdown, kind_of


def test_the_sums_are_those_of_a_loop_over_all_logits():
    torch.manual_seed(0)
    tally, wanted_tokens, wanted_places = TokenTally(), {}, {}
    for size in (3, 2):
        logits = torch.randn(size, 5, 11)
        labels = torch.randint(11, (size, 5))
        labels[torch.rand(size, 5) < 0.4] = -100
        token_statistics(logits, labels, tally=tally)
        for row, place in (labels != -100).nonzero().tolist():
            token = int(labels[row, place])
            scores = logits[row, place].log_softmax(-1)
            found = np.array([-scores[token], 1, scores.argmax() == token])
            wanted_tokens[token] = wanted_tokens.get(token, 0) + found
            wanted_places[place] = wanted_places.get(place, 0) + found
    for sums, wanted in ((tally.tokens, wanted_tokens), (tally.places, wanted_places)):
        for key, row in enumerate(sums):
            np.testing.assert_allclose(row, wanted.get(key, np.zeros(3)), rtol=1e-5)


def test_a_batch_without_labels_adds_nothing():
    tally = TokenTally()
    token_statistics(torch.randn(2, 3, 4), torch.full((2, 3), -100), tally=tally)
    assert tally.tokens.sum() == tally.places.sum() == 0


@pytest.mark.parametrize(
    ("piece", "wordpiece", "wanted"),
    [
        ("film", True, "word start"),
        ("##ing", True, "continuation"),
        ("##7", True, "number"),
        ("1999", True, "number"),
        (".", True, "punctuation"),
        ("##'", True, "punctuation"),
        ("Ġfilm", False, "word start"),
        ("▁film", False, "word start"),
        ("ing", False, "continuation"),
        ("Ġ12", False, "number"),
        ("Ġ,", False, "punctuation"),
        ("片", True, "word start"),
    ],
)
def test_kinds_of_tokens(piece, wordpiece, wanted):
    assert kind_of(piece, wordpiece) == wanted


def test_the_breakdown_has_each_token_once_in_each_part():
    tokenizer = tiny.wordpiece_tokenizer()
    ids = tokenizer("a film. 7 xfilm", add_special_tokens=False)["input_ids"]
    tally = TokenTally()
    found = torch.tensor([[float(i), 1, i % 2] for i in range(len(ids))])
    tally.add(torch.tensor(ids), torch.arange(len(ids)) + 6, found)
    train = Dataset.from_dict({"input_ids": [[ids[0]] * 12, ids[:2]]})
    parts = breakdown(tally, tokenizer, train)
    assert parts["by_position"]["under 8"] == {"loss": 0.0, "accuracy": 0, "tokens": 1}
    for part in parts.values():
        assert sum(group["tokens"] for group in part.values()) == len(ids)
    assert parts["by_frequency"]["10 to 99"]["tokens"] == 1
    assert parts["by_frequency"]["never"]["tokens"] == len(ids) - 2
    assert parts["by_kind"]["number"]["tokens"] == 1
    assert parts["by_kind"]["punctuation"]["tokens"] == 1
    assert "by_frequency" not in breakdown(tally, tokenizer, None)
