"""Masks belong to (seed, epoch, row), are BERT's in proportion, and can be fixed."""

import math

import pytest
import tiny
import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import DataLoader

from llmft.data.tokens.collate import (
    DataCollatorForClassification,
    SeededDataCollatorForLanguageModeling,
    by_length,
    examples_by_row,
    fix_masks,
)
from llmft.errors import DataError


def masker(tokenizer, seed=42, **options):
    return SeededDataCollatorForLanguageModeling(tokenizer, mask_seed=seed, **options)


MODES = pytest.mark.parametrize("mode", ["token", "whole_word", "span"])


@pytest.fixture(scope="module")
def rows(wordpiece):
    """24 texts of unequal length with their row numbers."""
    lengths = [5 + 3 * (i % 9) for i in range(24)]
    texts = [tiny.sentences(1, seed=i, words=n)[0] for i, n in enumerate(lengths)]
    ids = [wordpiece(text)["input_ids"] for text in texts]
    return [{"input_ids": x, "row": 100 + i} for i, x in enumerate(ids)]


def unpadded(batch):
    """Return (ids, labels) lists of each row, without padding."""
    full = torch.ones_like(batch["input_ids"])
    lengths = batch.get("attention_mask", full).sum(1).tolist()
    return [
        (ids[:n].tolist(), labels[:n].tolist())
        for ids, labels, n in zip(
            batch["input_ids"], batch["labels"], lengths, strict=True
        )
    ]


@MODES
def test_a_mask_depends_on_seed_epoch_and_row_alone(wordpiece, rows, mode):
    collator = masker(wordpiece, mlm_masking=mode)
    alone = [unpadded(collator([row]))[0] for row in rows]
    assert unpadded(collator(rows)) == alone
    assert unpadded(collator(rows[::-1])) == alone[::-1]
    long = {"input_ids": list(range(5, 105)), "row": 7}
    assert unpadded(collator([rows[3], long]))[0] == alone[3]
    torch.manual_seed(123)
    torch.rand(5)
    assert unpadded(masker(wordpiece, mlm_masking=mode)(rows)) == alone
    moved = [{**row, "row": row["row"] + 1} for row in rows]
    other_seed = masker(wordpiece, seed=43, mlm_masking=mode)
    for other in (other_seed(rows), collator(moved)):
        changed = sum(a != b for a, b in zip(unpadded(other), alone, strict=True))
        assert changed > 12
    collator.set_epoch(1)
    assert sum(a != b for a, b in zip(unpadded(collator(rows)), alone)) > 12  # noqa: B905
    collator.set_epoch(0)
    assert unpadded(collator(rows)) == alone


@pytest.mark.parametrize("mlm", [True, False])
def test_the_examples_of_a_batch_are_found(wordpiece, rows, mlm):
    data = Dataset.from_list(rows)
    batch = masker(wordpiece, mlm=mlm)([rows[i] for i in (17, 3, 8)])
    assert examples_by_row(batch, data) == [[17], [3], [8]]
    twice = concatenate_datasets([data, data.select([3, 3, 17])])
    again = len(data)
    assert examples_by_row(batch, twice) == [
        [17, again + 2],
        [3, again, again + 1],
        [8],
    ]
    assert examples_by_row(batch, iter(rows)) == [[], [], []]
    assert examples_by_row({"features": batch["input_ids"]}, data) == [[], [], []]
    classes = [{**row, "labels": 1} for row in rows]
    batch = DataCollatorForClassification(wordpiece)(classes[5:7])
    assert examples_by_row(batch, data) == [[5], [6]]
    short = Dataset.from_dict({"input_ids": [[4, 5], [4], [5, 4], [], [4]]})
    given = {"input_ids": torch.tensor([[4, 0], [4, 5]])}
    given["attention_mask"] = torch.tensor([[1, 0], [1, 1]])
    assert examples_by_row(given, short) == [[1, 4], [0]]


def test_padding(wordpiece, rows):
    batch = masker(wordpiece)(rows[:3])
    lengths = [len(row["input_ids"]) for row in rows[:3]]
    assert len(set(lengths)) == 3
    padded = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    assert torch.equal(batch["attention_mask"], (~padded).long())
    assert (batch["input_ids"][padded] == wordpiece.pad_token_id).all()
    assert (batch["labels"][padded] == -100).all()
    same_length = masker(wordpiece)([rows[0], {**rows[0], "row": 1}])
    assert set(same_length) == {"input_ids", "labels"}
    assert {value.dtype for value in batch.values()} == {torch.int64}


@pytest.mark.parametrize(
    ("workers", "mode", "start"),
    [(0, "token", None), (2, "token", "fork"), (2, "span", "spawn"),
     (1, "token", "spawn"), (1, "token", "forkserver")],
)  # fmt: skip
def test_workers_make_the_same_batches_also_when_they_live_on(
    wordpiece, rows, workers, mode, start
):
    """The epoch reaches workers that were started before it was set, in any way."""
    collator = masker(wordpiece, mlm_masking=mode)
    collator(rows[:2])  # as a trial does before
    loader = DataLoader(
        rows,
        batch_size=5,
        collate_fn=collator,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context=start,
    )
    reference = masker(wordpiece, mlm_masking=mode)
    epochs = []
    for epoch in (0, 1, 2):
        collator.set_epoch(epoch)
        reference.set_epoch(epoch)
        found = [pair for batch in loader for pair in unpadded(batch)]
        assert found == unpadded(reference(rows))
        epochs.append(found)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_proportions_are_those_of_bert(wordpiece):
    """Within four standard deviations of the binomial, over more than 100,000."""
    draw = torch.Generator().manual_seed(5)
    rows = torch.randint(0, len(wordpiece), (900, 130), generator=draw)
    collator = masker(wordpiece)
    batch = collator([{"input_ids": ids, "row": i} for i, ids in enumerate(rows)])
    assert "attention_mask" not in batch
    ids, labels = batch["input_ids"], batch["labels"]
    special = torch.isin(rows, torch.tensor(wordpiece.all_special_ids))
    assert special.sum() > 1000
    assert (labels[special] == -100).all()
    chosen = labels != -100
    assert torch.equal(labels[chosen], rows[chosen])
    assert torch.equal(ids[~chosen], rows[~chosen])

    def assert_share(hits, tokens, p):
        assert abs(hits - p * tokens) < 4 * math.sqrt(tokens * p * (1 - p))

    tokens, picked = int((~special).sum()), int(chosen.sum())
    assert tokens >= 100_000
    assert_share(picked, tokens, 0.15)
    masked = ids[chosen] == wordpiece.mask_token_id
    kept = ids[chosen] == rows[chosen]
    # A random word is [MASK], or the word itself, once in a vocabulary each.
    by_chance = 0.1 / len(wordpiece)
    assert_share(int(masked.sum()), picked, 0.8 + by_chance)
    assert_share(int(kept.sum()), picked, 0.1 + by_chance)
    assert_share(int((~masked & ~kept).sum()), picked, 0.1 - 2 * by_chance)
    assert_share(int(chosen[:450].sum()), tokens // 2, 0.15)
    by_place = chosen.sum(0) / (~special).sum(0)
    assert by_place.min() > 0.08  # no place is left out
    assert by_place.max() < 0.23


@MODES
def test_mlm_probability(wordpiece, rows, mode):
    everything = masker(wordpiece, mlm_probability=1.0, mlm_masking=mode)(rows)
    special = torch.isin(
        torch.cat([torch.tensor(row["input_ids"]) for row in rows]),
        torch.tensor(wordpiece.all_special_ids),
    )
    assert (everything["labels"] != -100).sum() == (~special).sum()


@MODES
def test_fixed_masks_stay_and_pass_through(wordpiece, rows, mode):
    data = Dataset.from_list(rows)
    collator = masker(wordpiece, mlm_masking=mode)
    collator.set_epoch(3)
    fixed = list(fix_masks(data, collator))
    pairs = unpadded(collator(fixed))
    again = masker(wordpiece, mlm_masking=mode)
    assert unpadded(again(list(fix_masks(data, again)))) == pairs
    other = masker(wordpiece, seed=1, mlm_masking=mode)
    assert unpadded(other(list(fix_masks(data, other)))) != pairs
    for epoch in (0, 1):
        collator.set_epoch(epoch)
        assert unpadded(collator(fixed[::-1]))[::-1] == pairs
        assert pairs != unpadded(collator(rows))  # not the masks of a training epoch
    kept = [{"input_ids": ids, "labels": labels} for ids, labels in pairs]
    assert unpadded(collator(kept)) == pairs  # labels of one's own
    restored = [
        [i if label == -100 else label for i, label in zip(*pair, strict=True)]
        for pair in pairs
    ]
    assert restored == data["input_ids"][:]


def test_fixed_masks_need_a_masked_token(wordpiece):
    data = Dataset.from_list([{"input_ids": [2, wordpiece.unk_token_id, 3], "row": 0}])
    never = masker(wordpiece, mlm_probability=1e-9)
    with pytest.raises(DataError) as caught:
        fix_masks(data, never, "test")
    assert str(caught.value) == (
        "DataError: all 3 test tokens are special ones, or unknown to the tokenizer;"
        " expected at least one to mask, and to measure on; give more test text"
    )
    assert caught.value.exit_code == 3
    data = Dataset.from_list([{"input_ids": [2, 9, 3], "row": 0}])
    (fixed,) = fix_masks(data, never)
    assert never([fixed])["labels"].tolist() == [[-100, 9, -100]]


def test_causal_labels_keep_eos_though_it_is_the_pad_token(bpe):
    tokenizer = tiny.bpe_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    eos = tokenizer.eos_token_id
    collator = SeededDataCollatorForLanguageModeling(tokenizer, mlm=False)
    rows = [[5, 6, eos, 7, eos], [8, eos]]
    batch = collator([{"input_ids": ids, "row": i} for i, ids in enumerate(rows)])
    assert batch["input_ids"].tolist() == [rows[0], [8, eos, eos, eos, eos]]
    assert batch["labels"].tolist() == [rows[0], [8, eos, -100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    without_pad = SeededDataCollatorForLanguageModeling(bpe, mlm=False)
    batch = without_pad([{"input_ids": ids, "row": 0} for ids in ([5], [6, 7])])
    assert batch["labels"].tolist() == [[5, -100], [6, 7]]


def test_classification_batches_drop_the_length_and_pad(wordpiece):
    rows = [
        {"input_ids": [2, 9, 3], "attention_mask": [1] * 3, "label": 1, "length": 3},
        {"input_ids": [2, 3], "attention_mask": [1] * 2, "label": 0, "length": 2},
    ]
    batch = DataCollatorForClassification(wordpiece)(rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].tolist() == [[2, 9, 3], [2, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert "length" in rows[0]  # the caller's rows are left alone


@pytest.mark.parametrize(
    ("lengths", "tokens", "wanted"),
    [
        ([3, 9, 5, 9], 32, [[1, 3], [2, 0]]),
        ([3, 9, 5, 9], 31, [[1], [3], [2, 0]]),  # 9 tokens are padded to 16
        ([2, 2, 2, 2, 2], 16, [[0, 1], [2, 3], [4]]),
        ([2] * 7, 64, [[0, 1, 2, 3], [4, 5], [6]]),
        ([1, 50], 8, [[1], [0]]),  # one that is longer comes alone
        ([0, 0], 16, [[0, 1]]),
        ([], 8, []),
    ],
)
def test_texts_of_like_length_share_a_batch(lengths, tokens, wanted):
    assert [*by_length(lengths, tokens)] == wanted
