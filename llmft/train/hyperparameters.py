"""Epochs and learning rate that follow from the data and the model: ``auto``.

They are so by default, and for data or a model named on the command line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from llmft.config.choice import Choice
from llmft.config.parse import Arguments
from llmft.train.narrow import transformers_model


class Rule(NamedTuple):
    """What suits a kind of training.

    Attributes:
        rate: the learning rate of a model of ``hidden_size``.
        power: that of another is ``(hidden_size / its) ** power`` times as much, and
            at the most ``HIGHEST``.
        examples: to learn from in all, and ``each`` more of every output.
        most: passes over them, at the most.
        keeps_last: whether the last weights are kept, and training never stops early,
            where that is not said otherwise.
    """

    rate: float
    hidden_size: int
    power: float
    examples: int
    most: int
    each: int = 0
    keeps_last: bool = False


CLASSIFICATION = Rule(3e-4, 384, 3.0, 5000, 8, each=250, keeps_last=True)
MASKED_LM = Rule(5e-4, 384, 3.0, 8000, 20)
CAUSAL_LM = Rule(5e-5, 576, 1.0, 1000, 5)
HIGHEST = 1e-3  # of small models
LORA = 10.0  # its factors take so much more than whole weights (SmolLM2: 5e-4)


def set_epochs_and_rate(
    args: Arguments, model: Any, rule: Rule, data: Mapping[str, Any]
) -> list[Choice]:
    """Set ``num_train_epochs`` and ``learning_rate`` where they are not given.

    Args:
        model: as it will be trained. data: the examples by split.
    """
    training, train, choices = args.training, data.get("train"), list[Choice]()
    if not training.do_train or train is None:
        return choices
    steps_are_given = training.max_steps > 0 or training.time_limit
    if "num_train_epochs" not in args.origins and not steps_are_given:
        rows = len(train)
        outputs = transformers_model(model).config.num_labels
        wanted = rule.examples + rule.each * outputs
        epochs = min(max(math.ceil(wanted / rows), 1), rule.most)
        _set(args, num_train_epochs=float(epochs))
        said = f"auto: {rows:,} examples, about {wanted:,} to learn from"
        said += "; the last weights are kept" if rule.keeps_last else ""
        choices.append(Choice("epochs", str(epochs), said))
        if rule.keeps_last:
            _set(args, load_best_model_at_end=False, early_stopping_patience=None)
    if "learning_rate" not in args.origins:
        size = transformers_model(model).config.get_text_config().hidden_size
        rate = rule.rate * (rule.hidden_size / size) ** rule.power
        rate *= LORA if getattr(args.model, "lora_r", None) else 1.0
        _set(args, learning_rate=float(f"{min(rate, HIGHEST):.1g}"))
        said = f"auto: hidden size {size:,}"
        choices.append(Choice("rate", f"{training.learning_rate:g}", said))
    return choices


def _set(args: Arguments, **values: Any) -> None:
    """Set what was not given, and note it."""
    for name, value in values.items():
        if name not in args.origins:
            setattr(args.training, name, value)
            args.origins[name] = "auto"
