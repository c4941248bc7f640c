"""A head trained on cached features is the head trained on the frozen encoder."""

import pytest
import tiny
import torch
from datasets import Dataset
from unit.train.test_trainer import WEIGHTS, arguments, assert_same_weights

from llmft.data.tokens.collate import DataCollatorForClassification
from llmft.model import features
from llmft.train.objectives import Classification
from llmft.train.trainer import LlmftTrainer

KINDS = "bert distilbert roberta electra modernbert gpt2 llama".split()
LEFT = ("llama", "left")
NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0},
}


def texts(wordpiece):
    found = [tiny.sentences(1, i, 3 + (5 * i) % 11)[0] for i in range(14)]
    found[9] = found[4]
    ids = wordpiece(found)["input_ids"]
    columns = {"input_ids": ids, "length": [len(row) for row in ids]}
    return Dataset.from_dict(columns | {"labels": [i % 3 for i in range(14)]})


def classifier(kind, wordpiece, **changes):
    changes |= {"num_labels": 3, **NO_DROPOUT.get(kind, {})}
    if kind == "modernbert":
        changes.setdefault("classifier_pooling", "cls")
    model = tiny.model(kind, "classification", len(wordpiece), **changes).eval()
    model.config.pad_token_id = wordpiece.pad_token_id
    return model


def logits(model, collate, data):
    rows = [{"input_ids": row["input_ids"]} for row in data]
    with torch.no_grad():
        return model(**collate(rows)).logits


@pytest.mark.parametrize(("kind", "side"), [*((k, "right") for k in KINDS), LEFT])
def test_cached_features_give_the_logits_of_the_encoder(kind, side, capsys):
    wordpiece = tiny.wordpiece_tokenizer()
    wordpiece.padding_side = side  # of Gemma's tokenizer: left
    model, collate = (
        classifier(kind, wordpiece),
        DataCollatorForClassification(wordpiece),
    )
    data = texts(wordpiece)
    wanted, names = logits(model, collate, data), set(model.state_dict())
    collate.pad_to_multiple_of = 8  # as bf16 has it: of row numbers there is one
    cached = features.freeze_backbone(model, {"train": data}, collate)["train"]
    assert collate([{"input_ids": [3]}])["input_ids"].shape == (1, 1)
    assert "13 different texts of 14 encoded once" in capsys.readouterr().out
    assert cached["labels"][:] == data["labels"][:]
    assert cached["input_ids"][4] == cached["input_ids"][9]
    torch.testing.assert_close(logits(model, collate, cached), wanted)
    head = set(model.state_dict())
    assert head < names
    assert "states" in dict(model.base_model.named_buffers())  # go where the model goes
    with features.whole_model(model):
        assert set(model.state_dict()) == names
        torch.testing.assert_close(logits(model, collate, data), wanted)
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trained == head
    torch.testing.assert_close(logits(model, collate, cached), wanted)  # as before


def test_a_head_that_reads_all_states_is_trained_without_cache(wordpiece, capsys):
    model = classifier("modernbert", wordpiece, classifier_pooling="mean")
    data = {"train": texts(wordpiece)}
    same = features.freeze_backbone(
        model, data, DataCollatorForClassification(wordpiece)
    )
    assert same is data
    assert "features of the encoder are not cached" in capsys.readouterr().out
    assert not any(p.requires_grad for p in model.base_model.parameters())
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_training_on_the_cache_takes_the_same_steps(wordpiece, tmp_path, kind):
    found = []
    for cached in (True, False):
        model, collate = (
            classifier(kind, wordpiece),
            DataCollatorForClassification(wordpiece),
        )
        data = {"train": texts(wordpiece)}
        if cached:
            data = features.freeze_backbone(model, data, collate)
        else:
            for name, weight in model.base_model.named_parameters():
                weight.requires_grad_(name.startswith("pooler."))
        trainer = LlmftTrainer(
            objective=Classification(),
            model=model,
            args=arguments(tmp_path, max_steps=6, learning_rate=0.1, optim="sgd"),
            data_collator=collate,
            train_dataset=data["train"],
            processing_class=wordpiece,
        )
        trainer.train()
        with features.whole_model(model):  # of the uncached one: nothing changes
            weights = model.state_dict().items()
            found.append({n: p.detach().clone() for n, p in weights})
    assert_same_weights(found[0], found[1])
    fresh = classifier(kind, wordpiece).state_dict()
    moved = {n for n, p in found[0].items() if (p - fresh[n]).abs().max() > 1e-3}
    assert "classifier.weight" in moved
    assert not any("layer" in name for name in moved)
    assert WEIGHTS["atol"] < 1e-3


def test_pairs_of_the_same_ids_differ_by_their_token_types(wordpiece):
    model, collate = (
        classifier("bert", wordpiece),
        DataCollatorForClassification(wordpiece),
    )
    data = Dataset.from_dict(
        {
            "input_ids": [[2, 5, 3, 5, 3], [2, 5, 3, 5, 3], [2, 6, 3]],
            "token_type_ids": [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 1]],
            "length": [5, 5, 3],
            "row": [0, 1, 1],
            "labels": [0, 1, 2],
        }
    )
    rows = [{k: row[k] for k in ("input_ids", "token_type_ids")} for row in data]
    with torch.no_grad():
        wanted = model(**collate(rows)).logits
    assert not torch.allclose(wanted[0], wanted[1])
    cached = features.freeze_backbone(model, {"train": data}, collate)["train"]
    assert cached.column_names == ["row", "labels", "input_ids"]
    torch.testing.assert_close(logits(model, collate, cached), wanted)


def test_features_and_encoder_follow_the_model_to_another_device(wordpiece):
    """Trainer moves the model after the features were made."""
    model, collate = (
        classifier("bert", wordpiece),
        DataCollatorForClassification(wordpiece),
    )
    features.freeze_backbone(model, {"train": texts(wordpiece)}, collate)
    model.to("meta")
    rows = torch.zeros((2, 1), dtype=torch.long, device="meta")
    assert model(input_ids=rows).logits.device.type == "meta"
    with features.whole_model(model):
        assert {p.device.type for p in model.parameters()} == {"meta"}
