"""Causal generation: its arguments, and sampling text before and after training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextStreamer,
    set_seed,
)

from llmft.config.choice import Choice
from llmft.config.fields import (
    GenerationDataArguments,
    GenerationModelArguments,
)
from llmft.config.parse import Arguments
from llmft.config.rules import ACTIONS, FILES, require_data
from llmft.config.task import Task
from llmft.console import say
from llmft.data.read.files import STDIN
from llmft.data.read.messages import MESSAGES, PROMPT_COMPLETION, TEXT
from llmft.data.split.splits import Splits
from llmft.data.tokens.chat import learns_only, prompt_text
from llmft.data.tokens.examples import causal_examples
from llmft.data.tokens.stream import Stream
from llmft.errors import ConfigError, NonFiniteError, escape
from llmft.machine import detect
from llmft.metrics.tokens import CAUSAL_LM
from llmft.model.ends import ends_of, length, set_ends
from llmft.model.probes import in_own_precision, position_limit
from llmft.runs.folder import Run
from llmft.runs.plan import Plan
from llmft.runs.record import RunRecord
from llmft.tasks.recipe import run_recipe
from llmft.train.randomness import drawing_apart

TASK = Task(
    recipe="generate",
    auto_class=AutoModelForCausalLM,
    pipeline_tag="text-generation",
    embedded_model="pypi:SmolLM2-135M-Instruct",
    metrics=CAUSAL_LM,
)


def run(**arguments: Any) -> RunRecord | Plan:
    """Run the recipe as ``recipes/generate.py`` does; see ``run_recipe``.

    generate.run(train_file="chats.jsonl", do_train=True, lora_r=8)
    """
    return run_recipe(TASK, arguments)


def check(v: dict[str, Any]) -> list[str]:
    """Return what does not fit together where one trains, measures or samples."""
    problems = check_sampling(v)
    lora = [n for n in v if n.startswith("lora_") and n != "lora_r"]
    changed = [n for n in lora if v[n] not in (None, 0.0, "merged")]
    if v["lora_r"] is None and changed:
        problems.append(f"{', '.join(changed)} without lora_r has no effect")
    if v["lora_r"] is not None and not v["do_train"]:
        problems.append("lora_r is of training: add --do_train")
    columns = [[f"{name}_column_name"] for name in ("text", "messages")]
    columns += [["prompt_column_name", "completion_column_name"]]
    given = [" and ".join(pair) for pair in columns if any(v.get(n) for n in pair)]
    if len(given) > 1:
        problems.append(f"{', '.join(given)} exclude each other")
    if {v.get("completion_only_loss"), v.get("assistant_only_loss")} == {True, False}:
        problems.append("completion_only_loss and assistant_only_loss differ")
    acts = any(v[name] for name in ACTIONS)
    if v["prompt_file"] and (v["prompt"] or acts):
        other = "prompt" if v["prompt"] else "training or evaluating"
        problems.append(f"prompt_file and {other} exclude each other")
    if v["output_file"] and not v["prompt_file"]:
        problems.append("output_file needs prompt_file: others are printed")
    if STDIN in v["prompt"] and STDIN in (v[name] for name in FILES):
        problems.append("prompt and a file are both standard input (-)")
    if acts:
        return problems + require_data(v)
    if v.get("chat_template_path") and not v.get("apply_chat_template"):
        problems.append("chat_template_path needs --apply_chat_template, or data")
    problems += [
        f"{name} is used by --do_train, --do_eval or --do_predict only"
        for name in ("dataset_name", *FILES)
        if v[name]
    ]
    if not v["prompt_file"] and not any(text.strip() for text in v["prompt"]):
        problems.append(
            'nothing to do: give --prompt "...", or --do_train with data; in a JSON'
            ' file, add "do_train": true'
        )
    return problems


def check_sampling(v: dict[str, Any]) -> list[str]:
    """Return what does not fit together in how texts are written."""
    problems = []
    least, most = v["min_new_tokens"], v["max_new_tokens"]
    if least > most:
        problems.append(f"min_new_tokens is {least}, above max_new_tokens {most}")
    draws = v["do_sample"] and v["temperature"] > 0
    if v["num_return_sequences"] > 1 and not draws:
        off = "temperature 0" if v["do_sample"] else "do_sample off"
        problems.append(
            f"num_return_sequences is {v['num_return_sequences']} with {off}: the"
            " texts would be the same; use 1, or sample"
        )
    return problems


def examples(
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
    args: GenerationDataArguments,
    seed: int,
) -> dict[str, Any]:
    """Make the examples of each split; see ``causal_examples``."""
    found: dict[str, Any] = {
        split: causal_examples(source, tokenizer, args, split)
        for split, source in splits.sources.items()
    }
    if splits.rows is not None:
        start = (splits.rows, args, tokenizer, seed, splits.skip)
        found["train"] = Stream(*start, end_documents=True)
    return found


class Terminal(TextStreamer):
    """Print words as they are written, control characters escaped."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        say(text, end="\n" if stream_end else "")


class _RefuseNaN(LogitsProcessor):
    """Stops at scores that are not numbers; greedy sampling would go on with them."""

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor
    ) -> torch.FloatTensor:
        if scores.isnan().any():
            raise NonFiniteError(
                "the model's scores for the next token are nan",
                "expected numbers",
                "the weights of the model are not finite: use another one",
            )
        return scores


def generation_config(
    args: GenerationModelArguments, tokenizer: PreTrainedTokenizerBase, ends: list[int]
) -> GenerationConfig:
    """Return the settings of ``generate`` that the arguments ask for.

    ``ends``: the ids at which a text ends.
    """
    sampling: dict[str, Any] = {}
    if _draws(args):
        sampling = {
            "temperature": args.temperature,
            "top_k": args.top_k,
            "top_p": args.top_p,
        }
    return GenerationConfig(
        max_new_tokens=args.max_new_tokens,
        min_new_tokens=args.min_new_tokens or None,
        do_sample=_draws(args),
        num_beams=1,  # whatever the model's own config has: it would not stream
        num_return_sequences=args.num_return_sequences,
        repetition_penalty=args.repetition_penalty,
        no_repeat_ngram_size=args.no_repeat_ngram_size,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends or None,
        bos_token_id=tokenizer.bos_token_id,
        **sampling,
    )


def _draws(args: GenerationModelArguments) -> bool:
    """Return whether tokens are drawn; with temperature 0 the likeliest is taken."""
    return args.do_sample and args.temperature > 0


def check_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: GenerationModelArguments,
) -> None:
    """Raise ConfigError for a prompt without tokens, or too long with its text."""
    limit = position_limit(model)
    for prompt in args.prompt:
        length = len(prompt_ids(prompt, tokenizer, args))
        if length == 0:
            raise ConfigError(f"the prompt {prompt!r} has no tokens")
        if limit is not None and length + args.max_new_tokens > limit:
            raise ConfigError(
                f"a prompt of {length} tokens and max_new_tokens"
                f" {args.max_new_tokens} exceed the model's {limit} positions"
            )


def prompt_ids(
    prompt: str, tokenizer: PreTrainedTokenizerBase, args: GenerationModelArguments
) -> list[int]:
    """Return the tokens of a prompt, or with the chat template of a user's turn."""
    chat = bool(args.apply_chat_template)
    said = prompt_text(tokenizer, prompt) if chat else prompt
    # The template has its special tokens in it.
    ids: list[int] = tokenizer(said, add_special_tokens=not chat)["input_ids"]
    eos = tokenizer.eos_token
    ended = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    if not chat and ended and not said.endswith(eos):
        ids.pop()  # some tokenizers end each text; a prompt goes on
    return ids


def write(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    config: GenerationConfig,
    streamer: TextStreamer | None = None,
) -> torch.Tensor:
    """Return prompts and what is written for them, int64 ``(texts, tokens)``.

    ``inputs``: ``input_ids`` and ``attention_mask``, int64, ``(prompts, tokens)``.
    Raises NonFiniteError.
    """
    with in_own_precision(model), torch.inference_mode():
        ids: torch.Tensor = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            generation_config=config,
            logits_processor=LogitsProcessorList([_RefuseNaN()]),
            streamer=streamer,
        )
    return ids


def sample(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    args: GenerationModelArguments,
    seed: int,
    *,
    stream: bool = False,
) -> list[list[str]]:
    """Continue each prompt; the same seed gives the same texts.

    Args:
        stream: print each text as it is written (one text a prompt only).

    Returns:
        for each prompt, ``num_return_sequences`` texts, prompt included; with the chat
        template both, each after the name of its role.

    Raises:
        ConfigError: see ``check_prompts``.
    """
    check_prompts(model, tokenizer, args)
    set_ends(model, tokenizer, args.apply_chat_template)
    ends = ends_of(model)
    config = generation_config(args, tokenizer, ends)
    model.eval()
    texts = []
    started, written = time.perf_counter(), 0
    for prompt in args.prompt:
        given = torch.tensor([prompt_ids(prompt, tokenizer, args)], device=model.device)
        chat, before = bool(args.apply_chat_template), given.shape[1]
        turns = f"[user] {prompt} [assistant] " if chat else ""
        live = stream and args.num_return_sequences == 1
        streamer = None
        if live:
            say(turns, end="")
            streamer = Terminal(tokenizer, chat, skip_special_tokens=True)
        inputs = {"input_ids": given, "attention_mask": torch.ones_like(given)}
        with drawing_apart():
            set_seed(seed)
            ids = write(model, inputs, config, streamer)
        new = ids[:, before:]
        written += sum(length(row, ends) for row in new)
        shown = tokenizer.batch_decode(new if chat else ids, skip_special_tokens=True)
        texts.append([turns + text for text in shown])
        if stream and not live:
            for number, text in enumerate(texts[-1], 1):
                say(f"[{number}] {text}")
        if stream:
            say()
    if stream:
        rate = written / (time.perf_counter() - started)
        peak = detect.peak_rss_bytes() / 2**20
        say(f"written    {written} tokens, {rate:.2f} tokens/s, {peak:.0f} MiB peak")
    return texts


def show(
    before: list[list[str]],
    after: list[list[str]],
    prompts: Sequence[str],
    run: Run,
) -> None:
    """Print and keep the texts of each prompt.

    ``before`` is empty where nothing was trained.
    """
    if after:
        both = zip(prompts, before or [[]] * len(after), after, strict=True)
        kept = [{"prompt": p, "before": one, "after": two} for p, one, two in both]
        run.write_examples("samples", kept)
    for prompt in range(len(after)):
        say()
        for name, texts in (("before", before), ("after", after)):
            group = texts[prompt] if texts else []
            for number, text in enumerate(group, 1):
                which = f" [{number}]" if len(group) > 1 else ""
                said = f"{name if before else 'written'}{which}"
                say(f"{said:<10} {text}")


def set_defaults_from_format(
    args: Arguments, found: str, tokenizer: PreTrainedTokenizerBase
) -> list[Choice]:
    """Set what follows from the format of the data; return it for the plan.

    That is ``block_policy`` and ``apply_chat_template`` where they were not given.

    Raises:
        ConfigError: as ``learns_only``; or there is no chat template.
    """
    only = learns_only(args.data, found)
    policy = "pack" if found == TEXT else "row"
    follows: list[tuple[Any, str, Any]] = [(args.data, "block_policy", policy)]
    if found == MESSAGES:
        follows.append((args.model, "apply_chat_template", True))
    for part, name, value in follows:
        if getattr(part, name) is None:
            setattr(part, name, value)
            args.origins[name] = f"follows: the data are {found}"
    if found == TEXT:
        return []
    where = "the completion" if found == PROMPT_COMPLETION else "turns of the assistant"
    flag = "completion" if found == PROMPT_COMPLETION else "assistant"
    value = f"on {where} only" if only else "on all tokens"
    choices = [Choice("loss", value, f"{flag}_only_loss is {only}".lower())]
    if args.model.apply_chat_template and args.model.prompt:
        shown = escape(repr(prompt_text(tokenizer, args.model.prompt[0])), 300)
        choices.append(Choice("prompt", shown, "by the chat template"))
    return choices
