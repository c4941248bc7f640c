"""Try every model family of transformers with each recipe, on a tiny random model.

python scripts/sweep_models.py --output recipes/MODELS.md
python scripts/sweep_models.py --tasks mlm classify --families bert modernbert

A family is trained for two steps, resumed after the first, saved, loaded again and
compared with plain transformers: a loop of a few lines over the same examples.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import recipe_process
import tiny
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from tiny_configs import tiny_config
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from llmft.data.tokens.collate import (
    FIXED_EPOCH,
    SeededDataCollatorForLanguageModeling,
)
from llmft.errors import LlmftError

ROWS, LENGTH, RATE, SEED = 6, 32, 0.05, 42
LABELS = ("bad", "good")
# Of float32 sums in another order, after two steps.
LOSS_RTOL, WEIGHT_RTOL, WEIGHT_ATOL = 1e-4, 1e-3, 2e-5
SECONDS = 60  # of the CPU, for a family
MOST = 20_000_000  # weights of what is still tiny
WORKS, REFUSED, DIFFERS = "works", "refused", "differs"
INTERNAL, NOT_TINY = "INTERNAL ERROR", "cannot be built tiny"


class TaskKind(NamedTuple):
    """A recipe, the families that transformers has for it, and how they are loaded."""

    recipe: str
    mapping: Any
    auto_class: Any
    flags: tuple[str, ...]


_PLAIN = ("--ladder", "false", "--contrastive_weight", "0")
TASKS = {
    "mlm": TaskKind(
        "mlm",
        MODEL_FOR_MASKED_LM_MAPPING,
        AutoModelForMaskedLM,
        ("--block_policy", "row", "--num_examples", "2"),
    ),
    "classify": TaskKind(
        "classify",
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        AutoModelForSequenceClassification,
        _PLAIN,
    ),
    "generate": TaskKind(
        "generate",
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AutoModelForCausalLM,
        ("--block_policy", "row", "--compile_layers", "false"),
    ),
}
LORA = ("--lora_r", "4", "--learning_rate", "0.5")


class Differs(Exception):
    """llmft does not do what plain transformers does."""


class NotTiny(Exception):
    """transformers itself cannot build, save, load or train the tiny model."""


def families(task: str) -> dict[str, Any]:
    """Return the config class of each family by its model type, sorted."""
    found = {c.model_type: c for c in TASKS[task].mapping}
    return dict(sorted(found.items()))


def tokenizer_of(task: str) -> Any:
    """Return the tokenizer of the tiny models, which has a pad token."""
    tokenizer = tiny.wordpiece_tokenizer()
    if task == "generate":
        tokenizer = tiny.bpe_tokenizer()
    return tokenizer


def special_ids(tokenizer: Any) -> dict[str, int]:
    """Return the ids of special tokens by name; an encoder begins with cls."""
    names = ("pad", "bos", "eos", "cls", "sep", "mask")
    found = {name: getattr(tokenizer, f"{name}_token_id") for name in names}
    found["bos"] = found["cls"] if found["bos"] is None else found["bos"]
    found["eos"] = found["sep"] if found["eos"] is None else found["eos"]
    found["decoder_start"] = found["bos"]
    return {name: token for name, token in found.items() if token is not None}


def build(task: str, config_class: Any, folder: Path) -> None:
    """Save a tiny random model of a family, and its tokenizer. Raises NotTiny."""
    tokenizer = tokenizer_of(task)
    try:
        size = len(tokenizer) + 8  # some classes of tokenizers add their own
        config = tiny_config(config_class, size, special_ids(tokenizer))
        if task == "generate" and hasattr(config, "is_decoder"):
            config.is_decoder = True  # BERT as a decoder
        config.num_labels = len(LABELS)
        with torch.device("meta"):
            model = TASKS[task].auto_class.from_config(config)
        weights = sum(p.numel() for p in model.parameters())
        if weights > MOST:
            raise ValueError(f"{weights:,} weights")
        transformers.set_seed(0)
        model = TASKS[task].auto_class.from_config(config)
        generator = torch.manual_seed(1)
        with torch.no_grad():  # no bias is zero, no norm is one
            for weight in model.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(0.02 * noise.to(weight.dtype))
        model.save_pretrained(folder)
    except Exception as error:
        raise NotTiny(last_frame(error)) from error
    tokenizer.save_pretrained(folder)


def load(task: str, folder: Path) -> Any:
    """Load a model as plain transformers does, in fp32 without dropout."""
    options = {"num_labels": len(LABELS)} if task == "classify" else {}
    config = transformers.AutoConfig.from_pretrained(folder, **options)
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    for part in [config, *map(lambda n: getattr(config, n, None), config.sub_configs)]:
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
        batch = dict(tokenizer(list(texts), padding=True, return_tensors="pt"))
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
    flags = [x for x in flags_of(task, folder, "defaults") if x not in _PLAIN[::2]]
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
    moved = (found["factors"] - found["base"])[keep].abs().max()
    if moved < 1e-4:
        raise Differs(f"nothing was learnt: logits moved by {moved:.2g}")
    wanted = found["factors"][keep]
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


def in_child(task: str, family: str, lora: bool) -> dict[str, str]:
    """Return the ``result`` of a family, tried in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"sweep-{family}-"))
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        with quiet():
            found = result(task, family, lora, folder)
        (folder / "result.json").write_text(json.dumps(found))
        os._exit(0)
    until = time.monotonic() + 5 * SECONDS  # where others have the core, too
    status = None
    while status is None:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            status = code
        elif time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            status = -1
        else:
            time.sleep(0.02)
    written = folder / "result.json"
    if written.exists():
        found = json.loads(written.read_text())
    else:
        ended = f"not within {SECONDS} s" if status == -1 else f"ended with {status}"
        found = {"result": INTERNAL, "what": f"its process {ended}"}
    shutil.rmtree(folder, ignore_errors=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=[*TASKS])
    parser.add_argument("--families", nargs="+", default=[])
    parser.add_argument("--lora", action="store_true", help="generate with lora_r 4")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--json", type=Path, help="results are kept and added here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kinds = [(t, False) for t in args.tasks] + [("generate", True)] * args.lora
    found: dict[str, dict[str, Any]] = {}
    if args.json and args.json.exists():
        found = json.loads(args.json.read_text())
    began = time.monotonic()
    home = tempfile.mkdtemp(prefix="sweep-home-")
    os.environ["LLMFT_HOME"] = home
    for task, _ in kinds:
        main_of(TASKS[task].recipe)
    gc.freeze()  # Trainer collects garbage, among all of transformers
    for task, lora in kinds:
        column = f"{task} --lora_r" if lora else task
        for family in families(task):
            if args.families and family not in args.families:
                continue
            start = time.monotonic()
            got = in_child(task, family, lora)
            found.setdefault(column, {})[family] = got
            took = time.monotonic() - start
            print(
                f"{column} {family}: {got['result']} {got['what']} {took:.1f}s",
                flush=True,
            )
            if args.json:
                args.json.write_text(json.dumps(found, indent=1))
        print(column, dict(Counter(x["result"] for x in found[column].values())))
    shutil.rmtree(home, ignore_errors=True)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
