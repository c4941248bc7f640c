"""The fast loss is the model's own loss: same value, same gradients, every edge."""

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional

from llmft.losses import (
    labelled_cross_entropy,
    labelled_positions_only,
    next_token_statistics,
    token_statistics,
)

KINDS = "bert distilbert roberta modernbert albert electra".split()
VOCABULARY = 160
# float32 sums in another order: a few units in the last place of the largest term.
LOSS_RTOL = 1e-6
GRADIENT_RTOL, GRADIENT_ATOL = 1e-4, 1e-6


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return tiny.model(request.param, "masked-lm", VOCABULARY).eval()


def batch(model, labelled, length=11):
    """Rows of random ids, padded at the end, with ``labelled[i]`` labels in row i."""
    draw = torch.Generator().manual_seed(1)
    shape = (len(labelled), length)
    ids = torch.randint(5, VOCABULARY, shape, generator=draw)
    mask = torch.ones(shape, dtype=torch.int64)
    labels = torch.full(shape, -100)
    for row, count in enumerate(labelled):
        padding = (0, 0, 4, 7)[row % 4]
        if padding:
            ids[row, -padding:] = model.config.pad_token_id
            mask[row, -padding:] = 0
        chosen = torch.randperm(length - padding, generator=draw)[:count]
        labels[row, chosen] = torch.randint(5, VOCABULARY, (len(chosen),))
    return {"input_ids": ids, "attention_mask": mask}, labels


def fast_loss(model, inputs, labels, count=None, smoothing=0.0):
    with labelled_positions_only(model.base_model, labels):
        outputs = model(**inputs)
    assert outputs.logits.ndim == 2  # the head saw chosen positions, not texts
    return labelled_cross_entropy(outputs, labels, count, smoothing)


def gradients(model, *losses):
    model.zero_grad(set_to_none=True)
    for loss in losses:
        loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, wanted):
    assert found.keys() == wanted.keys()
    assert any(g.abs().max() > 1e-3 for g in wanted.values())
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient,
            wanted[name],
            rtol=GRADIENT_RTOL,
            atol=GRADIENT_ATOL,
            msg=lambda m, name=name: f"{name}: {m}",
        )


@pytest.mark.parametrize(
    "labelled",
    [(2, 1, 3, 4), (0, 5, 0, 1), (99,) * 4, (99,) * 9, (3,), (1,)],
    ids=["some", "empty rows", "all", "all of many", "batch of one", "one label"],
)
def test_equals_the_models_own_loss_and_gradients(model, labelled):
    inputs, labels = batch(model, labelled)
    own = model(**inputs, labels=labels)
    ours = fast_loss(model, inputs, labels)
    torch.testing.assert_close(ours, own.loss, rtol=LOSS_RTOL, atol=0)
    places = labels != -100
    chosen = own.logits.double().log_softmax(-1)[places]
    independent = -chosen.gather(1, labels[places][:, None]).mean()
    torch.testing.assert_close(ours.double(), independent, rtol=LOSS_RTOL, atol=0)
    found = gradients(model, ours)
    assert_same_gradients(found, gradients(model, own.loss))


def test_nothing_labelled_is_zero_and_finite(model):
    inputs, labels = batch(model, (0, 0, 0))
    loss = fast_loss(model, inputs, labels)
    assert loss.item() == 0
    for name, gradient in gradients(model, loss).items():
        assert torch.equal(gradient, torch.zeros_like(gradient)), name


def test_the_head_runs_at_few_positions():
    model = tiny.model("bert", "masked-lm", VOCABULARY).eval()
    seen = []
    model.cls.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    inputs, labels = batch(model, (6,) * 12, length=50)
    fast_loss(model, inputs, labels)
    assert 6 * 12 <= seen[0][0] <= 128 < labels.numel() / 4


def test_micro_batches_add_up_to_the_whole_batch(model):
    """Four micro-batches with 4, 0, 1 and 3 labels: a mean of means would differ."""
    inputs, labels = batch(model, (4, 0, 1, 3))
    whole = fast_loss(model, inputs, labels)
    wanted = gradients(model, whole)
    count = (labels != -100).sum()
    parts = [
        fast_loss(
            model,
            {name: value[i : i + 1] for name, value in inputs.items()},
            labels[i : i + 1],
            count,
        )
        for i in range(4)
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=LOSS_RTOL, atol=0)
    assert_same_gradients(gradients(model, *parts), wanted)


def test_label_smoothing_is_torchs(model):
    inputs, labels = batch(model, (2, 1, 3, 4))
    logits = model(**inputs).logits
    wanted = functional.cross_entropy(
        logits.view(-1, VOCABULARY), labels.view(-1), label_smoothing=0.2
    )
    ours = fast_loss(model, inputs, labels, smoothing=0.2)
    torch.testing.assert_close(ours, wanted, rtol=LOSS_RTOL, atol=0)
    full = labelled_cross_entropy({"logits": logits}, labels, label_smoothing=0.2)
    torch.testing.assert_close(full, wanted, rtol=LOSS_RTOL, atol=0)


def test_the_hook_is_gone_afterwards(model):
    inputs, labels = batch(model, (2, 2))
    before = model(**inputs).logits
    fast_loss(model, inputs, labels)
    with (
        pytest.raises(IndexError),
        labelled_positions_only(model.base_model, labels),
    ):
        model(input_ids=inputs["input_ids"] + VOCABULARY)
    with (
        pytest.raises(KeyboardInterrupt),
        labelled_positions_only(model.base_model, labels),
    ):
        raise KeyboardInterrupt
    assert not model.base_model._forward_hooks
    assert torch.equal(model(**inputs).logits, before)


def test_classes_and_low_precision():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.bfloat16)
    labels = torch.tensor([2, 0])
    wanted = functional.cross_entropy(logits.float(), labels)
    loss = labelled_cross_entropy({"logits": logits}, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted, rtol=LOSS_RTOL, atol=0)
    of_eight = labelled_cross_entropy({"logits": logits}, labels, torch.tensor(8))
    torch.testing.assert_close(of_eight, wanted * 2 / 8, rtol=LOSS_RTOL, atol=0)


def statistics_by_hand(logits, labels):
    """One (summed nll, tokens, right) a row, in float64 numpy, token by token."""
    found = np.zeros((len(labels), 3))
    for i, row in enumerate(labels):
        for t, label in enumerate(row):
            if label != -100:
                scores = logits[i, t].astype(np.float64)
                nll = np.log(np.exp(scores - scores.max()).sum())
                nll -= scores[label] - scores.max()
                found[i] += nll, 1, scores.argmax() == label
    return found


@pytest.fixture
def scored():
    draw = np.random.default_rng(3)
    logits = draw.normal(0, 4, (4, 6, 9)).astype(np.float32)
    labels = draw.integers(0, 9, (4, 6))
    easy = draw.random((4, 6)) < 0.5
    labels[easy] = logits.argmax(-1)[easy]
    labels[0, 2:] = labels[2] = labels[3, 0] = -100
    return logits, labels


def test_token_statistics_of_gathered_and_of_all_logits(scored):
    logits, labels = scored
    wanted = statistics_by_hand(logits, labels)
    assert wanted[2].tolist() == [0, 0, 0]
    assert 0 < wanted[:, 2].sum() < wanted[:, 1].sum()
    scores, targets = torch.tensor(logits), torch.tensor(labels)
    chosen = scores[targets != -100]
    more = torch.cat([chosen, torch.full((7, 9), 50.0)])  # a batch made to fit
    for given in (scores, chosen, more):
        found = token_statistics(given, targets)
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_next_token_statistics_shift_by_one(scored):
    logits, labels = scored
    wanted = statistics_by_hand(logits[:, :-1], labels[:, 1:])
    scores, targets = torch.tensor(logits), torch.tensor(labels)
    for given in (scores, (scores, "past key values")):
        found = next_token_statistics(given, targets)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_statistics_of_a_causal_model_are_its_own_loss():
    model = tiny.model("gpt2", "causal-lm", VOCABULARY).eval()
    ids = torch.randint(0, VOCABULARY, (3, 7), generator=torch.manual_seed(0))
    labels = ids.clone()
    labels[1, 4:] = -100
    with torch.no_grad():
        outputs = model(input_ids=ids, labels=labels)
    nll, tokens, _ = next_token_statistics(outputs.logits, labels).sum(0)
    assert tokens == 6 + 3 + 6
    torch.testing.assert_close((nll / tokens).float(), outputs.loss)
