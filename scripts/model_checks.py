"""A tiny model of a family with a recipe, compared with plain transformers.

Used by sweep_models.py for all families, and by the tests for a few.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import recipe_process
import torch
import transformers
from peft import PeftModel
from tiny_configs import LABELS, PLAIN, TASKS, families, tiny_model, tokenizer_of
from torch import nn

from llmft.data.tokens.collate import (
    FIXED_EPOCH,
    SeededDataCollatorForLanguageModeling,
)
from llmft.errors import LlmftError

ROWS, LENGTH, RATE, SEED = 6, 32, 0.05, 42
# Of float32 sums in another order, after two steps.
LOSS_RTOL, WEIGHT_RTOL, WEIGHT_ATOL = 1e-4, 1e-3, 2e-5
WORKS, REFUSED, DIFFERS = "works", "refused", "differs"
INTERNAL, NOT_TINY = "INTERNAL ERROR", "cannot be built tiny"


LORA = ("--lora_r", "4", "--learning_rate", "0.5")


class Differs(Exception):
    """llmft does not do what plain transformers does."""


class NotTiny(Exception):
    """transformers itself cannot build, save, load or train the tiny model."""


def build(task: str, config_class: Any, folder: Path) -> None:
    """Save a tiny random model of a family, and its tokenizer. Raises NotTiny."""
    try:
        with torch.device("meta"):  # not in memory, where it is not tiny
            tiny_model(task, config_class)
        transformers.set_seed(0)
        model = tiny_model(task, config_class)
        generator = torch.manual_seed(1)
        with torch.no_grad():  # no bias is zero, no norm is one
            for weight in model.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(0.02 * noise.to(weight.dtype))
        model.save_pretrained(folder)
    except Exception as error:
        raise NotTiny(last_frame(error)) from error
    tokenizer_of(task).save_pretrained(folder)


def load(task: str, folder: Path) -> Any:
    """Load a model as plain transformers does, in fp32 without dropout."""
    config = transformers.AutoConfig.from_pretrained(folder)
    if task == "classify" and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    for part in [config, *(getattr(config, n, None) for n in config.sub_configs)]:
        for name in list(getattr(part, "__dict__", ())):
            if "dropout" in name or name.endswith("pdrop"):
                if type(getattr(part, name)) in (float, int):
                    setattr(part, name, type(getattr(part, name))(0))
    model, found = TASKS[task].auto_class.from_pretrained(
        folder, config=config, dtype=torch.float32, output_loading_info=True
    )
    if found["missing_keys"] or found["unexpected_keys"]:
        raise Differs(f"saved model: {found['missing_keys']} {found}")
    return model


def write_data(task: str, folder: Path) -> None:
    """Write train and valid, as many rows as a batch has, of several lengths."""
    for seed, name in enumerate(("train", "valid")):
        rows = recipe_process.keyword_rows(list(LABELS), list(LABELS), ROWS, seed)
        lines = [text for text, _ in rows]
        if task == "classify":
            lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
        ending = "csv" if task == "classify" else "txt"
        (folder / f"{name}.{ending}").write_text("\n".join(lines) + "\n")


def plain_batch(task: str, folder: Path, name: str, epoch: int) -> dict[str, Any]:
    """Return all rows of a file as one batch, as transformers' own tokenizer has it.

    Masks are those of llmft's collator, by (seed, epoch, row).
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ending = "csv" if task == "classify" else "txt"
    lines = (folder / f"{name}.{ending}").read_text().splitlines()
    if task == "classify":
        texts, labels = zip(*(line.rsplit(",", 1) for line in lines[1:]), strict=True)
        cut: dict[str, Any] = {"truncation": True, "max_length": LENGTH}
        batch = dict(tokenizer(list(texts), padding=True, return_tensors="pt", **cut))
        batch.pop("token_type_ids", None)
        return batch | {"labels": torch.tensor([LABELS.index(x) for x in labels])}
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ids = tokenizer(lines)["input_ids"]
    if task == "generate":
        ids = [[*row, tokenizer.eos_token_id] for row in ids]
        padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        hidden = padded["attention_mask"] == 0
        return dict(padded) | {"labels": padded["input_ids"].masked_fill(hidden, -100)}
    collator = SeededDataCollatorForLanguageModeling(tokenizer, mask_seed=SEED)
    rows = [{"input_ids": x, "row": i, "epoch": epoch} for i, x in enumerate(ids)]
    batch = collator(rows)
    batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
    return batch


def plain_loss(task: str, model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Return the mean cross entropy of a batch, from all logits of the model."""
    inputs = {name: x for name, x in batch.items() if name != "labels"}
    logits, labels = model(**inputs).logits.float(), batch["labels"]
    if task == "generate":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def plain_run(task: str, folder: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """Train two steps with plain torch; return the loss of valid, and the weights.

    Raises NotTiny where even that fails.
    """
    try:
        model = load(task, folder)
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        for epoch in (0, 1):
            model.train()
            plain_loss(
                task, model, plain_batch(task, folder, "train", epoch)
            ).backward()
            optimizer.step()
            optimizer.zero_grad()
        loss = evaluate(task, model, folder)
        if not torch.isfinite(torch.tensor(loss)):
            raise ValueError(f"loss {loss}")
    except Exception as error:
        raise NotTiny(f"plain transformers: {last_frame(error)}") from error
    return loss, {n: x.detach().clone() for n, x in model.state_dict().items()}


@torch.no_grad()
def evaluate(task: str, model: Any, folder: Path) -> float:
    model.eval()
    batch = plain_batch(task, folder, "valid", FIXED_EPOCH)
    return float(plain_loss(task, model, batch))


def flags_of(task: str, folder: Path, output: str, *more: str) -> list[str]:
    """Return the command line of a run of two steps, each of all rows."""
    ending = "csv" if task == "classify" else "txt"
    given = {
        "model_name_or_path": folder / "start",
        "train_file": folder / f"start/train.{ending}",
        "validation_file": folder / f"start/valid.{ending}",
        "output_dir": folder / output,
        "max_seq_length": LENGTH,
        "per_device_train_batch_size": ROWS,
        "per_device_eval_batch_size": ROWS,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "no",
        "load_best_model_at_end": "false",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0,
        "max_grad_norm": 1e9,
        "optim": "sgd",
        "precision": "fp32",
        "num_threads": 1,
        "report_to": "none",
        "dropout": 0,
        "seed": SEED,
    }
    flags = [str(x) for name, value in given.items() for x in (f"--{name}", value)]
    return [*flags, "--do_train", "--do_eval", *TASKS[task].flags, *more]


main_of = cache(recipe_process.main_of)


def run(task: str, *flags: str) -> str:
    """Run the recipe's main in this process; return what it printed."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        main_of(TASKS[task].recipe)([*flags])
    return said.getvalue()


def metric(folder: Path, name: str = "loss") -> float:
    found = json.loads((folder / "metrics.json").read_text())["eval"]
    return float(found[name]["value"])


def require_close(what: str, found: Any, wanted: Any, rtol: float, atol: float) -> None:
    """Raise Differs unless two tensors or numbers are the same."""
    found, wanted = torch.as_tensor(found).float(), torch.as_tensor(wanted).float()
    if found.shape != wanted.shape:
        raise Differs(f"{what}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    if not torch.allclose(found, wanted, rtol, atol):
        apart = (found - wanted).abs().max()
        size = wanted.abs().max()
        raise Differs(f"{what}: apart by {apart:.2g} of {size:.2g}")


def trained_and_resumed(task: str, folder: Path, *flags: str) -> str:
    """Train two steps, and the second again from a checkpoint; return what was said.

    Raises Differs unless both give the same bytes.
    """
    said = run(task, *flags_of(task, folder, "whole", *flags))
    checkpoint = folder / "whole/checkpoints/checkpoint-1"
    resumed = ("--resume_from_checkpoint", str(checkpoint))
    run(task, *flags_of(task, folder, "resumed", *flags, *resumed))
    one, other = (
        {
            p.name: p.read_bytes()
            for p in (folder / name / "model").glob("*.safetensors")
        }
        for name in ("whole", "resumed")
    )
    if not one or one != other:
        raise Differs("resumed from step 1, the model has other bytes")
    return said


def check(task: str, config_class: Any, folder: Path) -> None:
    """Raise NotTiny, LlmftError, Differs or any error of a family that fails."""
    start = folder / "start"
    build(task, config_class, start)
    write_data(task, start)
    loss, weights = plain_run(task, start)
    trained_and_resumed(task, folder)
    before = load(task, start).state_dict()
    model = load(task, folder / "whole/model")
    found = model.state_dict()
    if found.keys() != weights.keys():
        raise Differs(f"weights: {sorted(found.keys() ^ weights.keys())[:3]}")
    if all(torch.equal(before[n], x) for n, x in found.items()):
        raise Differs("nothing was learnt")
    for name, wanted in weights.items():
        require_close(name, found[name], wanted, WEIGHT_RTOL, WEIGHT_ATOL)
    reported = metric(folder / "whole")
    require_close("eval loss", reported, evaluate(task, model, start), LOSS_RTOL, 0)
    require_close("eval loss of the loop", reported, loss, LOSS_RTOL, 1e-4)
    MORE[task](task, folder, model)


def more_of_mlm(task: str, folder: Path, model: Any) -> None:
    """Nothing more."""


def more_of_classify(task: str, folder: Path, model: Any) -> None:
    """The defaults: a ladder with a probe, and the contrastive loss."""
    flags = [x for x in flags_of(task, folder, "defaults") if x not in PLAIN[::2]]
    keep = flags.index("--do_eval") + 1
    run(task, *flags[:keep], "--max_steps", "1")


def more_of_generate(task: str, folder: Path, model: Any) -> None:
    """Packed rows, whose documents are apart or not, as is said; and sampling."""
    flags = flags_of(task, folder, "packed", "--block_policy", "pack")
    flags[1] = str(folder / "whole/model")
    flags.remove("--do_train")
    said = run(task, *flags)
    ids = [
        x
        for row in plain_batch(task, folder / "start", "valid", 0)["labels"].tolist()
        for x in row
        if x >= 0
    ]
    blocks = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    together = "across the documents" in said
    total, count = 0.0, 0
    for row in blocks.tolist():
        for part in [row] if together else documents(row):
            with torch.no_grad():
                tokens = torch.tensor([part])
                logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
            losses = nn.functional.cross_entropy(
                logits.float(), tokens[0, 1:], reduction="sum"
            )
            total, count = total + float(losses), count + len(part) - 1
    reported = metric(folder / "packed")
    require_close("eval loss of packed rows", reported, total / count, LOSS_RTOL, 0)
    where = str(folder / "whole/model")
    prompt = ("--prompt", "the film", "--max_new_tokens", "4")
    run(task, "--model_name_or_path", where, "--num_threads", "1", *prompt)


def documents(row: list[int], end: int = 0) -> Iterator[list[int]]:
    """Yield the documents in a row, each with its end."""
    part: list[int] = []
    for token in row:
        part.append(token)
        if token == end:
            yield part
            part = []
    if part:
        yield part


MORE = {
    "mlm": more_of_mlm,
    "classify": more_of_classify,
    "generate": more_of_generate,
}


def check_lora(task: str, config_class: Any, folder: Path) -> None:
    """As ``check``: merged weights are those of the base with the factors beside."""
    start = folder / "start"
    build(task, config_class, start)
    write_data(task, start)
    plain_run(task, start)
    trained_and_resumed(task, folder, *LORA)
    adapter = flags_of(task, folder, "adapter", *LORA, "--lora_save", "adapter")
    run(task, *adapter)
    batch = plain_batch(task, start, "valid", 0)
    del batch["labels"]
    models = {
        "base": load(task, start),
        "merged": load(task, folder / "whole/model"),
        "factors": PeftModel.from_pretrained(
            load(task, start), folder / "adapter/model"
        ),
    }
    with torch.no_grad():
        found = {name: model.eval()(**batch).logits for name, model in models.items()}
    keep = batch["attention_mask"].bool()
    wanted = found["factors"][keep]
    moved, apart = (
        (wanted - found[name][keep]).abs().max() for name in ("base", "merged")
    )
    # Of some families (Inkling) all tiny logits are nearly alike.
    if moved < 1e-4 and not moved > 50 * apart:
        raise Differs(f"nothing was learnt: logits moved by {moved:.2g}")
    require_close("merged logits", found["merged"][keep], wanted, 1e-3, 1e-4)


def last_frame(error: BaseException) -> str:
    """Return what an error says in short, and where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())[:160]
    return (
        f"{type(error).__name__}: {said} ({Path(frame.filename).name}:{frame.lineno})"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Show nothing of what libraries say."""
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def result(task: str, family: str, lora: bool, folder: Path) -> dict[str, str]:
    """Return what came of a family: ``result``, ``what`` and ``trace``."""
    try:
        (check_lora if lora else check)(task, families(task)[family], folder)
    except NotTiny as error:
        return {"result": NOT_TINY, "what": str(error)}
    except LlmftError as error:
        said = str(error).replace(str(folder), "")
        return {"result": REFUSED, "what": said}
    except Differs as error:
        return {"result": DIFFERS, "what": str(error)}
    except Exception as error:
        trace = "".join(traceback.format_tb(error.__traceback__)[-4:])
        return {"result": INTERNAL, "what": last_frame(error), "trace": trace}
    return {"result": WORKS, "what": ""}
