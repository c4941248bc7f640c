"""Training of a tiny classifier in a run folder, for tests of its checkpoints."""

import json
import random
from contextlib import contextmanager

import tiny
from datasets import Dataset

from llmft.config.fields import DataArguments, ModelArguments, TrainingArguments
from llmft.config.parse import Arguments
from llmft.data.tokens.collate import DataCollatorForClassification
from llmft.runs import output_dir as runs
from llmft.train import checkpoint, resume
from llmft.train.callbacks import EarlyStoppingCallback
from llmft.train.objectives import Classification
from llmft.train.trainer import LlmftTrainer

FACTS = {
    "data": {"train": {"source": "a.csv", "rows": 8, "sha256": "ab" * 32}},
    "model": {"name": "tiny", "tokenizer": "cd" * 32, "model.safetensors": "ef" * 32},
}


def arguments(output_dir, **changes):
    quiet = {"do_train": True, "report_to": "none", "disable_tqdm": True}
    quiet |= {"eval_strategy": "no", "load_best_model_at_end": False, "max_steps": 3}
    quiet |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    quiet |= {"early_stopping_patience": None, "per_device_train_batch_size": 4}
    training = TrainingArguments(output_dir=str(output_dir), **(quiet | changes))
    return Arguments(ModelArguments("tiny"), DataArguments(), training, {})


def train(args, wordpiece, *also, recipe="classify", checked=False):
    """Train as a recipe does, on 8 texts; return the trainer.

    Where it is ``checked``, what goes on is compared with what was before.
    """
    runs.check_output_dir(args.training)
    encoded = wordpiece(tiny.sentences(8))
    data = Dataset.from_dict({**encoded, "label": [0, 1] * 4})
    seen = {"train": data} if checked else {}
    with tiny.started_run(args, recipe, **FACTS, **seen) as run:
        trainer = LlmftTrainer(
            objective=Classification(),
            model=tiny.model("bert", "classification", len(wordpiece)),
            args=args.training,
            data_collator=DataCollatorForClassification(wordpiece),
            train_dataset=data,
            eval_dataset=data,
            processing_class=wordpiece,
            callbacks=[
                EarlyStoppingCallback.from_args(args.training),
                *run.callbacks,
                *also,
            ],
        )
        trainer.train(resume_from_checkpoint=args.training.resume_from_checkpoint)
        run.steps = trainer.state.global_step
        (run.folder / "model").mkdir(exist_ok=True)  # in the place of ``run.save``
    return trainer


def change_record(run, **changes):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | changes))


@contextmanager
def manifest_of(folder):
    """Yield the manifest of a checkpoint, which is written again with its changes."""
    manifest = checkpoint.read_manifest(folder)
    del manifest["sha256"]
    yield manifest
    (folder / "manifest.json").write_text(checkpoint.sealed(manifest))


def unseen(folder, flips, truncations, seed=0):
    """Return the damages of a checkpoint, of so many at random, that are not seen.

    Each file gets as many; each is as it was afterwards.
    """
    draw, files = random.Random(seed), sorted(p for p in folder.iterdir())
    missed = []
    for number in range(flips + truncations):
        path = files[number % len(files)]
        content = path.read_bytes()
        place = draw.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        if number >= flips:
            changed = changed[: place if number % 2 else len(content) - 1]
        path.write_bytes(changed)
        if resume.fault(folder) is None:
            missed.append((path.name, place))
        path.write_bytes(content)
    return missed
