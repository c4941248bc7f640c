"""What every recipe does before it reads data."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase, set_seed

from llmft.config.choice import Choice
from llmft.config.parse import Arguments
from llmft.config.task import Task
from llmft.data.read.files import Reading, is_pipe, named_files
from llmft.data.split.splits import Splits, load_splits, needed_splits
from llmft.machine import choose
from llmft.model.load import load_tokenizer, locate, require_memory_for_weights
from llmft.runs.output_dir import check_output_dir
from llmft.sources.hub import Located


def prepare(
    args: Arguments, task: Task
) -> tuple[Located, list[Choice], PreTrainedTokenizerBase]:
    """Check the output folder, find the model, set threads, allocator and seed.

    Nothing is written. Raises LlmftError where the run cannot be.

    Returns:
        where the model is, what was chosen for this machine, and the tokenizer.
    """
    check_output_dir(args.training)
    _require_files(args)
    located = locate(args.model, task.embedded_model, task.auto_class)
    lora = bool(getattr(args.model, "lora_r", None))
    few = lora or getattr(args.model, "freeze_backbone", False)
    frozen = args.model.freeze_embeddings
    require_memory_for_weights(task.auto_class, located, args.training, few, frozen)
    choices = choose.prepare_machine(args.training)
    if located.merged_into and args.training.do_train:
        trains = "a new one trains on top" if lora else "what it is merged into trains"
        why = f"merged into {located.merged_into}"
        if hasattr(args.model, "lora_r") and not few:
            why += "; --lora_r trains few weights"
        choices.append(Choice("adapter", trains, why))
    set_seed(args.training.seed)
    return located, choices, load_tokenizer(located, args.model)


def _require_files(args: Arguments) -> None:
    """Raise DataError for a file that is not there, before a model is downloaded."""
    for split in sorted(needed_splits(args.training)):
        name = getattr(args.data, f"{split}_file")
        if name and not (is_pipe(name) or Path(name).expanduser().is_dir()):
            with named_files(name, Reading.of(args.data)):
                pass


def read_splits(args: Arguments, needs_label: bool = False) -> Splits:
    """Read train, validation and test, as far as the steps of the run need them."""
    training = args.training
    return load_splits(
        args.data,
        training.seed,
        needed_splits(training),
        needs_label=needs_label,
        fold=args.fold,
    )
