"""Causal generation: continue a prompt; with --do_train, in the style of your texts.

python recipes/generate.py --prompt "Once upon a time"
python recipes/generate.py --args recipes/generate_cpu.json
python recipes/generate.py --help
"""

import sys

import torch
from transformers import AutoModelForCausalLM, set_seed

from llmft.config.fields import GenerationDataArguments, GenerationModelArguments
from llmft.config.rules import Arguments, parse
from llmft.console import say
from llmft.data.split.splits import load_splits, needed_splits
from llmft.data.tokens import chat
from llmft.data.tokens.collate import LanguageModelingCollator
from llmft.data.tokens.examples import causal_examples
from llmft.data.tokens.stream import Stream
from llmft.machine import choose
from llmft.machine.choose import Choice
from llmft.metrics import tokens
from llmft.model import adapters, load, packing
from llmft.model.identity import identity
from llmft.model.probes import require_causal
from llmft.process import run_command
from llmft.runs import folder
from llmft.sources.hub import Located
from llmft.tasks import generate
from llmft.train import checkpoint
from llmft.train.trainer import LlmftTrainer


def main(argv: list[str]) -> None:
    args = parse(
        argv,
        GenerationModelArguments,
        GenerationDataArguments,
        description=__doc__,
        metrics=tokens.CAUSAL_LM,
        check=generate.check,
    )
    training = args.training
    folder.check_output_dir(training)
    located = load.locate(args.model, "pypi:SmolLM2-135M-Instruct", adapters=True)
    choices = choose.prepare(training, args.model, args.data.max_seq_length)
    if training.do_train or training.do_eval or training.do_predict:
        fine_tune(args, located, choices)
    else:
        sample(args, located, choices)


def sample(args: Arguments, located: Located, choices: list[Choice]) -> None:
    """Continue the prompts with the model as it is; nothing is written."""
    tokenizer = load.load_tokenizer(located, args.model)
    model = load.load_model(
        AutoModelForCausalLM,
        located,
        args.model,
        tokenizer,
        # Reading the weights is what takes the time of a token, so bf16 halves it.
        dtype=torch.bfloat16 if args.training.bf16 else torch.float32,
        will_train=False,
    )
    require_causal(model, located.name)
    folder.plan(args, choices, None)
    if args.training.dry_run:
        return
    say()
    generate.sample(model, tokenizer, args.model, args.training.seed, stream=True)


def fine_tune(args: Arguments, located: Located, choices: list[Choice]) -> None:
    """Train on the user's texts; show the same prompts before and after."""
    training = args.training
    set_seed(training.seed)
    tokenizer = load.load_tokenizer(located, args.model)
    splits = load_splits(args.data, training.seed, needed_splits(training))
    choices += chat.settle(args, splits.format, tokenizer)
    blocks = {
        split: causal_examples(source, tokenizer, args.data, split)
        for split, source in splits.sources.items()
    }
    if (rows := splits.rows) is not None:
        blocks["train"] = Stream(
            rows, args.data, tokenizer, training.seed, splits.skip, end_documents=True
        )
    facts = {"data": splits.provenance, "model": identity(located, tokenizer)}
    checkpoint.require_match("generate", args, facts, blocks.get("train"))
    model = load.load_model(
        AutoModelForCausalLM,
        located,
        args.model,
        tokenizer,
        max_seq_length=args.data.max_seq_length,
        will_train=training.do_train,
    )
    require_causal(model, located.name)
    blocks = packing.keep_documents_apart(model, blocks)
    model = adapters.add_lora(model, args.model)
    generate.check_prompts(model, tokenizer, args.model)
    folder.plan(args, choices, blocks.get("train"))
    if training.dry_run:
        return

    with folder.start("generate", args, choices, **facts) as run:
        trainer = LlmftTrainer(
            model=model,
            args=training,
            data_collator=LanguageModelingCollator(tokenizer, mlm=False),
            train_dataset=blocks.get("train"),
            eval_dataset=blocks.get("validation"),
            processing_class=tokenizer,
            compute_metrics=tokens.TokenPrediction("token_accuracy"),
            task="causal-lm",
        )
        run.attach(trainer)
        results, held_out = {}, splits.held_out()
        before: list[list[str]] = []
        if training.do_train:
            before = generate.sample(model, tokenizer, args.model, training.seed)
            if held_out:
                results["before"] = trainer.evaluate(
                    blocks[held_out], metric_key_prefix="before"
                )
            trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        if training.do_eval:
            results["eval"] = trainer.evaluate()
        if training.do_predict:
            results["test"] = trainer.evaluate(blocks["test"], metric_key_prefix="test")
        trainer.model = adapters.merged(model, args.model)
        run.finish(trainer, results, f"Causal language model on {splits.name}")
        after = generate.sample(model, tokenizer, args.model, training.seed)
        generate.show(before, after)
        folder.report(
            run,
            results,
            list(tokens.CAUSAL_LM),
            "generate",
            *(() if args.model.prompt else ("--prompt", "Once upon a time")),
            keep=["apply_chat_template", *(["prompt"] if args.model.prompt else [])],
        )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
