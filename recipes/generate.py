"""Causal generation: continue a prompt; with --do_train, in the style of your texts.

python recipes/generate.py --prompt "Once upon a time"
python recipes/generate.py --args recipes/generate_cpu.json
"""

import sys
from functools import partial

from llmft.process import run_script

# Above the other imports: how threads wait is read when torch loads, and Ctrl-C while
# all that loads ends in one line, too.
if __name__ == "__main__":
    sys.exit(run_script(__file__, sys.argv[1:]))

from transformers import AutoModelForCausalLM

from llmft.config.fields import (
    GenerationDataArguments,
    GenerationModelArguments,
    TrainingArguments,
)
from llmft.config.parse import Arguments, parse
from llmft.config.rules import ACTIONS
from llmft.console import say
from llmft.data.tokens.collate import SeededDataCollatorForLanguageModeling
from llmft.metrics.tokens import TokenPrediction
from llmft.model.adapters import add_lora, lighten_base, merged
from llmft.model.ends import set_ends
from llmft.model.identity import fingerprint
from llmft.model.load import load_model
from llmft.model.probes import drop_seq_lengths_if_unsupported, require_causal
from llmft.runs.folder import Run
from llmft.runs.plan import Plan, make_plan, show
from llmft.tasks import generate, prompts
from llmft.tasks.fast_writing import made_fast
from llmft.tasks.prepare import prepare, read_splits
from llmft.train.callbacks import EarlyStoppingCallback
from llmft.train.fast_path import choose_fast_path
from llmft.train.hyperparameters import CAUSAL_LM, set_epochs_and_rate
from llmft.train.objectives import CausalLM
from llmft.train.trainer import LlmftTrainer


def main(argv: list[str]) -> Plan:
    args = parse(
        argv,
        GenerationModelArguments,
        GenerationDataArguments,
        partial(TrainingArguments, use_cpu=True),
        description=__doc__,
        metrics=generate.TASK.metrics,
        check=generate.check,
    )
    prompts.read_prompts(args)  # where they are in a file
    if any(getattr(args.training, action) for action in ACTIONS):
        return fine_tune(args)
    return continue_prompts(args)


def continue_prompts(args: Arguments) -> Plan:
    """Write on with the model as it is; no file is written."""
    located, choices, tokenizer = prepare(args, generate.TASK)
    model = load_model(
        AutoModelForCausalLM, located, args.model, tokenizer, will_train=False
    )
    require_causal(model, located.name)
    model, precision = made_fast(model, args.training)  # writes some tokens in each
    plan = make_plan(args.training, [*choices, precision], None)
    show(plan, args.training)
    if not args.training.dry_run:
        say()
        prompts.answer(model, tokenizer, args, located)
    return plan


def fine_tune(args: Arguments) -> Plan:
    """Train on the user's texts; show the same prompts before and after."""
    model_args, data_args, training_args = args.model, args.data, args.training
    # Checks output_dir, finds the model, sets the seed, and torch's threads.
    located, choices, tokenizer = prepare(args, generate.TASK)
    splits = read_splits(args)  # makes those that are missing, refuses leakage
    choices += generate.set_defaults_from_format(args, splits.format, tokenizer)
    examples = generate.examples(splits, tokenizer, data_args, training_args.seed)
    model = load_model(
        AutoModelForCausalLM,
        located,
        model_args,
        tokenizer,
        max_seq_length=data_args.max_seq_length,
        will_train=training_args.do_train,
    )
    require_causal(model, located.name)
    set_ends(model, tokenizer, model_args.apply_chat_template, examples)
    examples = drop_seq_lengths_if_unsupported(model, examples)
    model = add_lora(model, model_args, tokenizer, located)
    generate.check_prompts(model, tokenizer, model_args)
    choices += set_epochs_and_rate(args, model, CAUSAL_LM, examples)
    # Tries steps in each precision and attention; sets the fastest, unless given.
    collator = SeededDataCollatorForLanguageModeling(tokenizer, mlm=False)
    objective = CausalLM()
    fast_path = choose_fast_path(args, model, objective, collator, examples)
    choices += fast_path.choices
    run = Run(__file__, generate.TASK, args, splits, fingerprint(located, tokenizer))
    plan = run.plan(choices, examples.get("train"), fast_path.forecast)
    if training_args.dry_run:
        return plan

    with run.start():  # makes the folder of the run, and run.callbacks
        trainer = LlmftTrainer(
            model=model,
            args=training_args,
            objective=objective,
            data_collator=collator,
            train_dataset=examples.get("train"),
            eval_dataset=examples.get("validation"),
            processing_class=tokenizer,
            compute_metrics=TokenPrediction("token_accuracy"),
            callbacks=[EarlyStoppingCallback.from_args(training_args), *run.callbacks],
        )
        before: list[list[str]] = []
        if training_args.do_train:
            before = generate.sample(model, tokenizer, model_args, training_args.seed)
            lighten_base(model, training_args)  # after ``sample``, which is in fp32
            if run.held_out:
                run.results["before"] = trainer.evaluate(
                    examples[run.held_out], metric_key_prefix="before"
                )
            trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
            trainer.model = merged(model, model_args)
            run.save(trainer)
        if training_args.do_eval:
            run.results["eval"] = trainer.evaluate()
        if training_args.do_predict:
            run.results["test"] = trainer.evaluate(
                examples["test"], metric_key_prefix="test"
            )

        run.finish(trainer, f"Causal language model on {splits.name}")
        after = generate.sample(model, tokenizer, model_args, training_args.seed)
        generate.show(before, after, model_args.prompt, run)
        given = ["prompt"] if model_args.prompt else []
        run.report(
            list(generate.TASK.metrics),
            "generate",
            [] if given else ["--prompt", "Once upon a time"],
            keep=["apply_chat_template", *given],
        )
    return run.planned
