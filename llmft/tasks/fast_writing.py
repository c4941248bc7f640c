"""The form of a model that writes fastest, found by writing with each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import transformers
from torch import nn
from transformers import GenerationConfig

from llmft.config.choice import Choice
from llmft.config.fields import TrainingArguments
from llmft.machine import detect
from llmft.machine.trial import Candidate, contest, keep, recall

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Tokens that are written to compare forms, and seconds for two of them.
TRIED, SECONDS = 12, 10.0
# So much faster than what is tried before it a form has to be: twelve tokens are few.
GAINS = 1.05


def made_fast(model: Any, args: TrainingArguments) -> tuple[Any, Choice]:
    """Return the model in the form in which it writes fastest, and why.

    Reading the weights is what takes the time of a token: bf16 halves them, and packed
    layers read them faster. Some machines write slower in bf16. Some tokens are written
    in each form, unless this was tried before.
    """
    asked = "bf16" if args.bf16 else args.precision
    copies = 2 * sum(p.nbytes for p in model.parameters())
    why = ""
    if args.device.type != "cpu" or args.fast_path == "off":
        why = "nothing is tried"
    elif detect.allowed_bytes() < detect.peak_rss_bytes() + copies:
        why = "no memory to try others"
    if why:
        form = Candidate("bf16" if asked == "bf16" else "fp32", "own")
        return _made(model, form), Choice("precision", form.precision, why)
    precisions = ["fp32", "bf16"] if asked == "auto" else [asked]
    forms = [Candidate(p, "own", packed=k) for k in (False, True) for p in precisions]
    machine = detect.detect()
    of_machine = [machine.cpu, machine.features, machine.cores, torch.get_num_threads()]
    of_software = [torch.__version__, transformers.__version__]
    key = ["sampling", of_machine, of_software, model.config.to_dict(), precisions]
    known = recall(key)
    seconds = {form: known[_name(form)] for form in forms if _name(form) in known}
    if seconds and known.get("best"):
        best = next(form for form in forms if _name(form) == known["best"])
        made = _made(model, best)
    else:
        best, made, seconds = _tried(model, forms)
        weights = sum(p.numel() for p in model.parameters()) / 1e6
        job = f"writing, {model.config.model_type} of {weights:.0f} M"
        row = job, _name(best), f"{TRIED / seconds[best]:.1f} tokens/s"
        finite = {_name(f): s for f, s in seconds.items() if math.isfinite(s)}
        keep(key, {**finite, "best": _name(best)}, machine, row)
    rates = ", ".join(f"{_name(f)} {TRIED / took:.1f}" for f, took in seconds.items())
    return made, Choice(
        "precision", _name(best), f"tokens/s, tried: {rates}; 5 % more are a gain"
    )


def _tried(
    model: Any, forms: Sequence[Candidate]
) -> tuple[Candidate, Any, dict[Candidate, float]]:
    """Return the fastest of ``forms``, the model in it, and the seconds of each.

    No more than two copies are there at once, beside the model as it is.
    """
    best, seconds = forms[0], dict[Candidate, float]()
    made = _made(model, best)
    config = GenerationConfig(
        min_new_tokens=TRIED, max_new_tokens=TRIED, do_sample=False, num_beams=1
    )
    ids = torch.zeros(1, 4, dtype=torch.int64)
    for form in forms[1:]:
        models = {best: made}

        def write(candidate: Candidate, models: dict[Candidate, Any] = models) -> None:
            if candidate not in models:  # may fail
                models[candidate] = _made(deepcopy(model), candidate)
            with torch.inference_mode():
                models[candidate].generate(ids, generation_config=config)

        found, _ = contest([best, form], write, lambda took: SECONDS)
        # Tried beside the best so far: in the time that this took at first.
        seconds.setdefault(best, found.get(best, math.inf))
        if best in found and form in found:
            seconds[form] = found[form] * seconds[best] / found[best]
        if GAINS * seconds.get(form, math.inf) < seconds[best]:
            best, made = form, models[form]
    return best, made, seconds


def _made(model: Any, form: Candidate) -> Any:
    """Bring the model into a form, and return it."""
    model = model.to(DTYPES[form.precision])
    return pack_linear_layers(model) if form.packed else model


def _name(form: Candidate) -> str:
    return f"{form.precision}{' packed' * form.packed}"


class PackedLinear(nn.Module):
    """Computes what ``linear`` does, without gradients; it has no parameters.

    One token at a time, reading the weights is what takes the time. torch reads plain
    ones at 16 GB/s in fp32 and at 9 to 31 in bf16, packed ones at 19 to 52 and at 13 to
    69 (2 cores, AMD EPYC with AVX512-BF16, whose memory gives 77; layers of
    SmolLM2-135M).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, self.bias = linear.weight.detach(), linear.bias
        # For one row at a time; others are computed, too. As torch.compile does it.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return states of shape (..., in_features) with (..., out_features)."""
        return torch.ops.mkldnn._linear_pointwise(
            states, self.weight, self.bias, "none", [], ""
        )


def pack_linear_layers(model: Any) -> Any:
    """Put a ``PackedLinear`` in the place of each linear layer; return the model.

    Weights that other modules use, as the embeddings do, stay there as they were.
    Raises what torch does where it has no such layers for the dtype or the machine.
    """
    for module in model.modules():
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear:
                setattr(module, name, PackedLinear(layer))
    return model
