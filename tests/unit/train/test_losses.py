"""The fast loss is the model's own loss: same value, same gradients, every edge."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional

from llmft.data.read.labels import MULTI, REGRESSION, SINGLE
from llmft.model.probes import last_meeting, plain_head
from llmft.train import losses
from llmft.train.losses import labelled_cross_entropy, token_statistics
from llmft.train.narrow import head_inputs, labelled_positions_only
from llmft.train.objectives import Classification, MaskedLM

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
    """The loss as the trainer computes it: with the head's inputs, if not smoothed."""

    def narrow(point, labels):
        return labelled_positions_only(model.base_model, labels, point)

    point = last_meeting(model, inputs, narrow, every=3)
    head = None if smoothing else plain_head(model, inputs)
    with (
        narrow(point, labels),
        head_inputs(head) as states,
    ):
        outputs = model(**inputs)
    # The head saw chosen positions, not texts.
    assert outputs.logits.ndim == 2 or len(outputs.logits) == 1
    values = (states[0] if states else outputs.logits).flatten(0, -2)
    return labelled_cross_entropy(values, labels, count, smoothing, head)


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
    part = model.cls.predictions.transform
    part.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    inputs, labels = batch(model, (6,) * 12, length=50)
    fast_loss(model, inputs, labels)
    assert 6 * 12 <= seen[-1][0] <= 128 < labels.numel() / 4


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
    full = labelled_cross_entropy(logits, labels, label_smoothing=0.2)
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
    loss = labelled_cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted, rtol=LOSS_RTOL, atol=0)
    of_eight = labelled_cross_entropy(logits, labels, torch.tensor(8))
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


CAUSAL = "llama gpt2 gpt_neox".split()


@pytest.fixture(scope="module", params=CAUSAL)
def causal(request):
    return tiny.model(request.param, "causal-lm", VOCABULARY).eval()


def causal_batch(rows=3, length=9, ignored=()):
    ids = torch.randint(0, VOCABULARY, (rows, length), generator=torch.manual_seed(0))
    labels = ids.clone()
    for row, start in ignored:
        labels[row, start:] = -100
    return ids, labels


@pytest.fixture
def small_chunks(monkeypatch):
    """About a hundred positions at a time."""
    monkeypatch.setattr(losses, "LOGITS", 100 * VOCABULARY)


def chunked_loss(model, ids, labels, count=None):
    head = plain_head(model, {"input_ids": ids})
    with head_inputs(head) as states:
        outputs = model(input_ids=ids, use_cache=False)
    assert outputs.logits.shape[1] == 1  # the head saw one position of each text
    return next_token_loss(states[0], head, labels, count)


def next_token_loss(states, head, labels, count=None):
    return labelled_cross_entropy(states[:, :-1], labels[:, 1:], count, head=head)


def test_the_one_row_of_the_head_looks_like_one(causal):
    """Torch copies a frozen weight for a row with the strides of more rows."""
    ids, _ = causal_batch()
    head, given = causal.get_output_embeddings(), []
    with head_inputs(head):  # its hook comes first
        handle = head.register_forward_pre_hook(lambda _, args: given.extend(args))
        causal(input_ids=ids, use_cache=False)
    handle.remove()
    assert given[0].stride() == torch.empty(given[0].shape).stride()


@pytest.mark.parametrize(
    ("rows", "ignored"),
    [(3, ()), (1, ()), (4, [(0, 5), (2, 1), (3, 0)]), (70, [(5, 4)])],
    ids=["all", "batch of one", "padded", "several chunks"],
)
def test_the_chunked_loss_is_the_models_own(causal, rows, ignored, small_chunks):
    ids, labels = causal_batch(rows, ignored=ignored)
    own = causal(input_ids=ids, labels=labels).loss
    ours = chunked_loss(causal, ids, labels)
    torch.testing.assert_close(ours, own, rtol=LOSS_RTOL, atol=0)
    found = gradients(causal, ours)
    assert_same_gradients(found, gradients(causal, own))


def test_nothing_to_predict_is_zero_and_finite(causal):
    ids, labels = causal_batch(2, ignored=[(0, 1), (1, 1)])
    loss = chunked_loss(causal, ids, labels)
    assert loss.item() == 0
    for name, gradient in gradients(causal, loss).items():
        assert not gradient.any(), name


def test_micro_batches_of_a_causal_model_add_up(causal):
    ids, labels = causal_batch(3, ignored=[(1, 3), (2, 0)])
    whole = chunked_loss(causal, ids, labels)
    wanted = gradients(causal, whole)
    count = (labels[:, 1:] != -100).sum()
    parts = [
        chunked_loss(causal, ids[i : i + 1], labels[i : i + 1], count) for i in range(3)
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=LOSS_RTOL, atol=0)
    assert_same_gradients(gradients(causal, *parts), wanted)


def test_the_chunked_loss_in_bf16_is_near():
    """bf16 keeps 8 bits: logits and with them the loss are off by under a percent."""
    model = tiny.model("llama", "causal-lm", VOCABULARY).eval()
    ids, labels = causal_batch()
    exact = model(input_ids=ids, labels=labels).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_loss(model, ids, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=1e-2, atol=0)
    found = gradients(model, loss)["lm_head.weight"]
    wanted = gradients(model, exact)["lm_head.weight"]
    assert (found - wanted).norm() < 0.03 * wanted.norm()


@pytest.mark.parametrize("rows", [4, 70])
def test_next_token_statistics_are_those_of_all_logits(rows, small_chunks):
    model = tiny.model("llama", "causal-lm", VOCABULARY).eval()
    ids, labels = causal_batch(rows, ignored=[(0, 5), (2, 0)])
    head = plain_head(model, {"input_ids": ids})
    with torch.no_grad(), head_inputs(head) as states:
        model(input_ids=ids, use_cache=False)
        found = token_statistics(states[0][:, :-1], labels[:, 1:], head)
    with torch.no_grad():
        logits = model(input_ids=ids).logits.numpy()
    wanted = statistics_by_hand(logits[:, :-1], labels[:, 1:].numpy())
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_chunked_loss_in_bf16_does_not_drift_with_the_tokens(small_chunks):
    """Sums are float32: in bf16, 8,192 tokens were 1 % off, 32,768 were 9 %."""
    torch.manual_seed(0)
    head = torch.nn.Linear(16, VOCABULARY, bias=False)
    states = torch.randn(4, 2049, 16)
    labels = torch.randint(0, VOCABULARY, (4, 2049))
    wanted = functional.cross_entropy(
        head(states)[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_token_loss(states, head, labels)
    torch.testing.assert_close(loss, wanted, rtol=1e-3, atol=0)
    (found,) = torch.autograd.grad(loss, head.weight)
    (exact,) = torch.autograd.grad(wanted, head.weight)
    assert (found - exact).norm() < 0.01 * exact.norm()


def test_a_frozen_head_gets_no_gradient():
    model = tiny.model("llama", "causal-lm", VOCABULARY).eval()
    model.lm_head.weight.requires_grad_(False)
    ids, labels = causal_batch()
    chunked_loss(model, ids, labels).backward()
    assert model.lm_head.weight.grad is None
    assert model.model.layers[0].self_attn.q_proj.weight.grad.any()


@pytest.fixture
def elsewhere():
    """What names no device is made on another one than that of model and batch."""
    with torch.device("meta"):
        yield


def test_masked_lm_follows_the_device_of_its_batch(model, elsewhere):
    with torch.device("cpu"):
        inputs, labels = batch(model, (2, 1, 3, 4))
        wanted = fast_loss(model, inputs, labels)
        expected = gradients(model, wanted)
    batch_of = {**inputs, "labels": labels}
    objective = MaskedLM()
    loss = objective.loss(model, batch_of, objective.label_count(batch_of))
    assert objective.tried[2] is model.get_output_embeddings()
    assert loss.device.type == "cpu"
    torch.testing.assert_close(loss, wanted, rtol=LOSS_RTOL, atol=0)
    assert_same_gradients(gradients(model, loss), expected)
    evaluated, found = objective.evaluate(model, batch_of)
    assert found["statistics"].device.type == evaluated.device.type == "cpu"
    torch.testing.assert_close(evaluated, wanted, rtol=LOSS_RTOL, atol=0)


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION])
def test_a_classifier_follows_the_device_of_its_batch(kind, elsewhere):
    with torch.device("cpu"):
        model = tiny.model("bert", "classification", VOCABULARY, num_labels=3)
        objective = Classification(kind, None if kind == REGRESSION else [1.0, 2.0, 3])
        inputs, _ = batch(model.eval(), (0, 0, 0))
        labels = {SINGLE: torch.tensor([0, 2, 1]), MULTI: torch.ones(3, 3)}
        given = {**inputs, "labels": labels.get(kind, torch.ones(3))}
    count = objective.label_count(given)
    loss = objective.loss(model, given, count)
    assert loss.device.type == count.device.type == "cpu"
    assert loss.isfinite()


def test_autocast_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr(losses.torch, "is_autocast_enabled", lambda d: d == "cpu")
    rows = torch.ones(1)
    assert losses.product_dtype(rows) == torch.bfloat16
    elsewhere = SimpleNamespace(device=torch.device("cuda"), dtype=rows.dtype)
    assert losses.product_dtype(elsewhere) == torch.float32
