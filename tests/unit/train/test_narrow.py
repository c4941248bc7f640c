"""The end of a model at few positions gives what it gives at all, or is not used."""

import pytest
import tiny
import torch

from llmft.model.probes import last_meeting, plain_head
from llmft.train.narrow import first_position_only, head_inputs, labelled_positions_only

VOCABULARY = 160
# float32 products of other shapes, whose sums come in another order.
RTOL, ATOL = 1e-4, 1e-6
NARROWED = "bert distilbert roberta electra deberta-v2 mpnet".split()


def batch(model, length=20):
    """Four rows of random ids, two of them padded at the end."""
    ids = torch.randint(5, VOCABULARY, (4, length), generator=torch.manual_seed(1))
    mask = torch.ones_like(ids)
    for row in (1, 3):
        ids[row, -6:], mask[row, -6:] = model.config.pad_token_id, 0
    return {"input_ids": ids, "attention_mask": mask}


def meeting_of_masked_lm(model, inputs):
    def narrow(point, labels):
        return labelled_positions_only(model.base_model, labels, point)

    return last_meeting(model, inputs, narrow, every=3)


def meeting_of_classifier(model, inputs):
    return last_meeting(model, inputs, lambda point, _: first_position_only(point))


def some_labels(ids, every):
    labels = torch.full_like(ids, -100)
    labels[:, ::every] = ids[:, ::every]
    labels[2] = -100
    return labels


def gradients(model, output):
    model.zero_grad(set_to_none=True)
    output.pow(2).sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(model, found, wanted):
    torch.testing.assert_close(found, wanted, rtol=RTOL, atol=ATOL)
    ours, plain = gradients(model, found), gradients(model, wanted)
    assert ours.keys() == plain.keys()
    assert any(g.abs().max() > 1e-4 for g in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(ours[name], gradient, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("kind", NARROWED)
@pytest.mark.parametrize("every", [1, 3, 11])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_masked_lm_from_the_last_layer_on(kind, every, attention):
    if kind in ("deberta-v2", "mpnet") and attention == "sdpa":
        pytest.skip("has an attention of its own")
    model = tiny.model(kind, "masked-lm", VOCABULARY, attn_implementation=attention)
    model.eval()
    inputs = batch(model)
    labels = some_labels(inputs["input_ids"], every)
    point = meeting_of_masked_lm(model, inputs)
    assert point is not None
    seen = []
    point.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with labelled_positions_only(model.base_model, labels, point):
        logits = model(**inputs).logits
    assert seen[0][:-1] == (64,)
    wanted = model(**inputs).logits[labels != -100]
    assert_same(model, logits[: len(wanted)], wanted)
    assert not point._forward_pre_hooks


def test_a_head_that_wants_the_dimension_of_the_batch():
    """XLM's cuts [:, :, :] out of the states that it is given."""
    model = tiny.model("xlm", "masked-lm", VOCABULARY, n_layers=2, emb_dim=32).eval()
    inputs = batch(model)
    labels = some_labels(inputs["input_ids"], 3)
    with labelled_positions_only(model.base_model, labels):
        logits = model(**inputs).logits
    assert logits.shape == (1, 64, VOCABULARY)
    wanted = model(**inputs).logits[labels != -100]
    assert_same(model, logits[0, : len(wanted)], wanted)


@pytest.mark.parametrize("kind", NARROWED)
def test_a_classifier_at_its_first_token(kind):
    model = tiny.model(kind, "classification", VOCABULARY).eval()
    inputs = batch(model)
    point = meeting_of_classifier(model, inputs)
    seen = []
    point.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with first_position_only(point):
        logits = model(**inputs).logits
    assert seen[0][:2] == (4, 1)
    assert_same(model, logits, model(**inputs).logits)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_classifier_that_reads_all_tokens_is_left_alone(bf16):
    """ModernBERT may take the mean of all tokens; BERT with such a pooler stands for
    others. Its bias hides what that does to the logits: less than bf16 resolves."""
    model = tiny.model("bert", "classification", VOCABULARY)

    class Mean(torch.nn.Module):
        def forward(self, states):
            return states.mean(1)

    model.bert.pooler = Mean()
    model.classifier.bias.data[0] = 100.0
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        assert meeting_of_classifier(model, batch(model)) is None
    assert model.training


@pytest.mark.parametrize("kind", ["albert", "modernbert", "llama"])
def test_other_models_are_left_alone(kind):
    """ALBERT runs one layer many times; the others have no such place."""
    model = tiny.model(kind, "classification", VOCABULARY).eval()
    assert meeting_of_classifier(model, batch(model)) is None


@pytest.mark.parametrize("length", [16, 32])
def test_models_that_pad_inside_are_left_alone(length):
    """Longformer pads to its window and cuts that off again at the end."""
    model = tiny.model("longformer", "masked-lm", VOCABULARY, attention_window=16)
    inputs = batch(model, length)
    assert meeting_of_masked_lm(model, inputs) is None


def test_a_module_with_other_arguments_is_no_error():
    model = tiny.model("ibert", "masked-lm", VOCABULARY)
    assert meeting_of_masked_lm(model, batch(model)) is None


def test_a_bias_outside_the_head_is_noticed():
    """ESM adds one that is zero at first, so that logits do not show it."""
    model = tiny.model("esm", "masked-lm", VOCABULARY, mask_token_id=4)
    assert plain_head(model, batch(model)) is None


def test_the_trial_does_not_turn_sparse_attention_off():
    sizes = {"block_size": 4, "num_random_blocks": 1, "max_position_embeddings": 96}
    model = tiny.model("big_bird", "masked-lm", VOCABULARY, **sizes)
    plain_head(model, batch(model, 64))
    assert model.bert.attention_type == "block_sparse"


def test_in_bf16_the_same_place_and_head():
    model = tiny.model("bert", "masked-lm", VOCABULARY)
    inputs = batch(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert meeting_of_masked_lm(model, inputs) is not None
        assert plain_head(model, inputs) is model.get_output_embeddings()


@pytest.mark.parametrize("kind", "bert distilbert roberta modernbert albert".split())
def test_the_head_of_masked_lm_is_plain(kind):
    model = tiny.model(kind, "masked-lm", VOCABULARY).eval()
    inputs = batch(model)
    head = plain_head(model, inputs)
    with torch.no_grad(), head_inputs(head) as states:
        assert model(**inputs).logits.shape == (1, 1, VOCABULARY)
    wanted = model(**inputs).logits
    torch.testing.assert_close(head(states[0]), wanted, rtol=RTOL, atol=ATOL)


def test_a_head_that_is_not_plain_is_noticed():
    """Gemma 2 caps its logits at 30; Granite divides them."""
    sizes = {"head_dim": 16, "num_key_value_heads": 2}
    capped = tiny.model("gemma2", "causal-lm", VOCABULARY, **sizes)
    scaled = tiny.model("granite", "causal-lm", VOCABULARY, logits_scaling=8.0)
    ids = {"input_ids": torch.tensor([[5, 6, 7]])}
    assert plain_head(capped, ids) is None
    assert plain_head(scaled, ids) is None
    assert capped.training
    assert not capped.get_output_embeddings()._forward_pre_hooks
    biased = tiny.model("phi", "causal-lm", VOCABULARY)
    assert plain_head(biased, ids).bias is not None
