"""What a model allows: packed documents that do not see each other, first of all."""

import pytest
import tiny
import torch
from datasets import Dataset

from llmft.config.fields import LanguageModelingDataArguments
from llmft.data.tokens.collate import SeededDataCollatorForLanguageModeling
from llmft.data.tokens.examples import lm_blocks
from llmft.model.probes import (
    drop_seq_lengths_if_unsupported,
    plain_head,
    separates_documents,
)
from llmft.train.losses import labelled_cross_entropy
from llmft.train.narrow import head_inputs


@pytest.fixture
def tokenizer():
    found = tiny.bpe_tokenizer()
    found.pad_token = found.eos_token
    return found


@pytest.fixture
def blocks(tokenizer):
    texts = Dataset.from_dict({"text": [tiny.sentences(1, i, 4)[0] for i in range(9)]})
    args = LanguageModelingDataArguments(max_seq_length=16)
    return lm_blocks(texts, tokenizer, args, "train", end_documents=True)


@pytest.mark.parametrize(
    ("kind", "separates"),
    [("llama", True), ("gpt2", True), ("qwen2", True), ("bloom", False)],
)
def test_which_models_keep_documents_apart(kind, separates, blocks, capsys):
    extra = {"qwen2": {"num_key_value_heads": 2}, "bloom": {"n_head": 2}}
    model = tiny.model(kind, "causal-lm", 500, **extra.get(kind, {}))
    assert separates_documents(model) is separates
    found = drop_seq_lengths_if_unsupported(model, {"train": blocks})["train"]
    assert ("seq_lengths" in found.column_names) is separates
    assert ("attends across" in capsys.readouterr().out) is not separates


def test_positions_begin_with_each_document_and_block(blocks, tokenizer):
    batch = SeededDataCollatorForLanguageModeling(tokenizer, mlm=False)(list(blocks))
    for ids, positions in zip(
        batch["input_ids"].tolist(), batch["position_ids"].tolist(), strict=True
    ):
        expected, position, fresh = [], 0, True
        for token in ids:
            position = 0 if fresh else position
            expected.append(position)
            position += 1
            fresh = token == tokenizer.eos_token_id
        assert positions == expected


def test_the_loss_of_a_block_is_that_of_its_documents(blocks, tokenizer):
    model = tiny.model("llama", "causal-lm", len(tokenizer)).eval()
    batch = SeededDataCollatorForLanguageModeling(tokenizer, mlm=False)(list(blocks))
    labels, positions = batch.pop("labels"), batch["position_ids"].tolist()
    head = plain_head(model, batch)
    with torch.no_grad(), head_inputs(head) as states:
        model(**batch, use_cache=False)
        packed = labelled_cross_entropy(states[0][:, :-1], labels[:, 1:], head=head)
    total, count = 0.0, 0
    for row, places in zip(blocks, positions, strict=True):
        starts = [i for i, place in enumerate(places) if place == 0]
        for start, end in zip(
            starts, [*starts[1:], len(row["input_ids"])], strict=True
        ):
            ids = torch.tensor([row["input_ids"][start:end]])
            if ids.shape[1] > 1:
                with torch.no_grad():
                    loss = model(input_ids=ids, labels=ids).loss.item()
                total += loss * (ids.shape[1] - 1)
                count += ids.shape[1] - 1
    assert count == int((labels[:, 1:] != -100).sum())
    assert packed.item() == pytest.approx(total / count, rel=1e-5)


def test_row_policy_needs_no_positions(tokenizer):
    texts = Dataset.from_dict({"text": tiny.sentences(4)})
    args = LanguageModelingDataArguments(max_seq_length=16, block_policy="row")
    found = lm_blocks(texts, tokenizer, args, "train", end_documents=True)
    assert found.column_names == ["input_ids", "row", "documents"]
