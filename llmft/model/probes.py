"""Small trials of a model: whether it fits its data, and what it allows."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmft.console import say
from llmft.data.tokens.collate import IGNORED
from llmft.data.tokens.stream import Stream
from llmft.errors import ConfigError, brief
from llmft.model.compiled import repeated_layers

Blocks: TypeAlias = Dataset | Stream
# Where all positions meet for the last time in the last layer, by the name of the
# module: what comes after it treats each position alone. BERT, RoBERTa, ELECTRA and
# DeBERTa; DistilBERT; MPNet.
_LAST_MEETINGS = ("attention.output", "sa_layer_norm", "attention.LayerNorm")
SAME = 0.05  # of ``alike``, in bf16 from products of other shapes


def check_fits(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_seq_length: int
) -> None:
    """Raise ConfigError where token ids or positions would run out of the tables."""
    # Ids may have gaps, as those of a vocab.txt with a line twice.
    rows, last = embeddings_of(model), max(tokenizer.get_vocab().values())
    if rows is not None and last >= rows:
        has = f"{len(tokenizer):,} tokens, ids up to {last:,}"
        raise ConfigError(
            f"the tokenizer has {has}, the model embeddings for {rows:,}: use the"
            " tokenizer that the model was made with, or --resize_embeddings true"
        )
    positions = position_limit(model)
    if positions is not None and max_seq_length > positions:
        raise ConfigError(
            f"max_seq_length is {max_seq_length}, this model has {positions} positions"
        )


def embeddings_of(model: Any) -> int | None:
    """Return for how many tokens a model has embeddings; None: it has none (CANINE)."""
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return len(table.weight) if hasattr(table, "weight") else None


def require_savable(model: Any, place: str) -> None:
    """Raise ConfigError for a model that transformers would not save after training.

    Each weight is saved with one number of its own, which still shares its memory with
    what the whole weight shares it with. What a generation_config.json says about
    drawing tokens that are not drawn is left out before, which is said.
    """
    if model.can_generate():
        _mend_generation_config(model.generation_config)
    numbers = {
        name: weight.detach().as_strided((1,), (1,))
        for name, weight in model.state_dict().items()
        if weight.numel()
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(
                folder, state_dict=numbers, save_original_format=False
            )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"transformers cannot save this model: {brief(error, 300)}; mend its"
            " config.json or generation_config.json, or choose another model",
            path=place,
        ) from error


def _mend_generation_config(config: Any) -> None:
    """Leave out what is of sampling, or of beams, where there are none.

    transformers reads such a file and does not write it.
    """
    try:
        config.validate(strict=True)
    except ValueError as error:
        unused = re.findall("^- `(\\w+)`", str(error), re.MULTILINE)
        shown = ", ".join(f"{name} {getattr(config, name)}" for name in unused)
        for name in unused:
            setattr(config, name, None)
        if unused:
            say(f"           of generation_config.json, without use: {shown}")


def position_limit(model: PreTrainedModel) -> int | None:
    """Return the longest sequence that the model's position table allows, if any."""
    limit = getattr(model.config, "max_position_embeddings", None)
    embeddings = getattr(model.base_model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if limit is None or limit < 1:  # XLNet says -1
        return None
    # RoBERTa counts from padding_idx + 1.
    return limit if padding is None else limit - padding - 1


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put ``model`` into eval mode for the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def in_own_precision(model: Any) -> Iterator[None]:
    """Run ``model`` in the precision of its weights, as who loads it will.

    accelerate wraps ``forward`` in autocast when a model is trained or evaluated, and
    leaves it there: examples from before and after would come in two precisions. One
    token at a time, bf16 is no faster (SmolLM2-135M on 2 cores with AMX: 25.6 tokens/s,
    28.2 in fp32).
    """
    own = vars(model)
    wrapped = own.pop("forward", None) if "_original_forward" in own else None
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped


@contextmanager
def changed_inputs(
    module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Apply ``change`` to each tensor that ``module`` is called with in the block."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        return tuple(change(x) if isinstance(x, torch.Tensor) else x for x in args)

    with module.register_forward_pre_hook(hook):
        yield


@torch.no_grad()
def trial(model: Any, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Return the logits of a few tokens, shape (rows, tokens, vocabulary).

    ``ids``: any numbers; those that the model has no embedding for count from 0 again.
    """
    ids = ids.to(model.device) % (embeddings_of(model) or 8)
    with evaluating(model):
        logits: torch.Tensor = model(input_ids=ids, use_cache=False, **inputs).logits
    return logits


def alike(one: torch.Tensor, other: torch.Tensor, apart: float = 1e-4) -> bool:
    """Whether logits are the same but for rounding, which is less in fp32."""
    if one.shape != other.shape:
        return False
    return bool((one - other).norm() <= apart * other.norm())


def require_causal(model: PreTrainedModel, name: str) -> None:
    """Raise ConfigError for a model that sees what it should predict (BERT)."""
    if not alike(*trial(model, torch.tensor([[0, 1], [0, 2]]))[:, 0]):
        raise ConfigError(
            f"{name} sees the words that it should predict: it is no causal"
            " model; use recipes/mlm.py for it"
        )


def separates_documents(model: PreTrainedModel) -> bool:
    """Return whether position ids that start again keep documents apart.

    Tried on two documents of four tokens: packed in one row, the second must be seen
    as it is alone. transformers does this for most causal models.
    """
    numbers = torch.arange(8, device=model.device)[None]
    try:
        packed = trial(model, numbers, position_ids=numbers % 4)
    except TypeError:  # no position_ids: BLOOM, MPT
        return False
    return alike(packed[:, 4:], trial(model, numbers[:, 4:]))


def drop_seq_lengths_if_unsupported(
    model: PreTrainedModel, blocks: dict[str, Blocks]
) -> dict[str, Blocks]:
    """Return ``blocks``, without ``seq_lengths`` where the model makes no use of them.

    Then the attention of a packed block goes across its documents, which is said.
    """
    packed = any("seq_lengths" in data.column_names for data in blocks.values())
    if not packed or separates_documents(model):
        return blocks
    say("  this model attends across the documents of a packed block")
    return {split: data.remove_columns("seq_lengths") for split, data in blocks.items()}


def _two_rows(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return two rows of a batch, cut to an odd length, without labels.

    BigBird and Longformer pad inside to an even length and cut that off at the end.
    """
    length = inputs["input_ids"].shape[1]
    cut = length - 1 + length % 2
    return {
        name: x[:2, :cut] if x.shape[1:2] == (length,) else x[:2]
        for name, x in inputs.items()
        if name != "labels"
    }


@torch.no_grad()
def last_meeting(
    model: Any,
    inputs: dict[str, Any],
    narrow: Callable[[nn.Module, torch.Tensor], AbstractContextManager[None]],
    every: int | None = None,
) -> nn.Module | None:
    """Return the module of the last layer that may see the needed positions only.

    Of the last layer only keys, values and the attention over them need all positions.
    Dropping the others behind that saves 0.85 * 9/12 of the layer where 15 % have a
    label, for the same result. Two rows are run to see that the needed logits do not
    hear of the other positions, and that they come out when those are dropped; so a
    classifier that does not read its first token alone gets None.

    Args:
        model: a ``*ForMaskedLM``, or a ``*ForSequenceClassification``.
        narrow: what drops them: makes, of the module and the labels of the trial, a
            context as those of ``train.narrow``.
        every: in the trial each position that is a multiple of it is needed; None:
            the first of a row only.
    """
    layers = repeated_layers(model)
    modules = dict(layers[-1].named_modules()) if layers else {}
    point = next((modules[n] for n in _LAST_MEETINGS if n in modules), None)
    # Buffers are statistics of what passes (I-BERT), which would be of other positions.
    if point is None or next(layers[-1].buffers(), None) is not None:
        return None
    rows = _two_rows(inputs)
    labels = torch.full_like(rows["input_ids"], IGNORED)
    labels[:, :: every or labels.shape[1]] = 0
    keep, graphs = labels != IGNORED, []

    def silence(states: torch.Tensor) -> torch.Tensor:
        graphs.append(torch.is_grad_enabled())
        return states.masked_fill(~keep[..., None], torch.nan)

    try:
        with evaluating(model):
            with torch.enable_grad(), changed_inputs(point, silence):
                wanted = model(**rows).logits.detach()
            with narrow(point, labels):
                found = model(**rows).logits
    except Exception:  # whatever a model says that cannot do it
        return None
    if not all(graphs):  # layers that run again in backward (Reformer), whole
        return None
    if wanted.ndim == 3:  # of each position, and not of each text
        wanted, found = wanted[keep], found[: int(keep.sum())]
    return point if wanted.isfinite().all() and alike(found, wanted, SAME) else None


def plain_head(model: Any, inputs: dict[str, Any]) -> nn.Linear | None:
    """Return the output layer of a language model whose logits are just what it gives.

    None where the model also scales or caps its logits (Gemma 2, Cohere, Granite), adds
    a bias of its own (ESM), or has no such layer. This is tried with two rows of the
    batch and large hidden states, since a cap shows at large logits only.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return None
    states = head.weight.new_full((1, 1, head.in_features), 100.0)
    own = {id(p) for p in head.parameters()}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    try:
        with (
            evaluating(model),
            torch.enable_grad(),
            changed_inputs(head, lambda given: states),
        ):
            logits = model(**_two_rows(inputs)).logits
            total = logits.sum()
    except Exception:  # whatever a model says that cannot do it
        return None
    if total.requires_grad and others:
        reached = torch.autograd.grad(total, others, allow_unused=True)
        if any(gradient is not None for gradient in reached):
            return None
    with torch.no_grad():
        wanted = head(states).float()
        same = logits.shape == wanted.shape
        return head if same and torch.allclose(wanted, logits.float(), 1e-3) else None
