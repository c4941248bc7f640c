"""Tiny random models and tokenizers, made on the spot: tests need no download."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    set_seed,
)

# Models this small are several times faster on one thread.
torch.set_num_threads(1)

WORDS = (
    "the a film movie story plot actor director scene good bad great dull funny sad"
    " slow fast young old woman man town city love war money and but with of in to is"
    " was never always very quite makes takes gives finds loses wins"
).split()
# Of the kind of ChatML, with a default system turn, and the eos of bpe_tokenizer.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "[system]help{{ eos_token }}\n{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
AUTO_CLASSES = {
    "masked-lm": AutoModelForMaskedLM,
    "classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def sentences(count: int, seed: int = 0, words: int = 12) -> list[str]:
    """Return ``count`` sentences of random known words, the same for a seed."""
    import random

    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=words)) + "." for _ in range(count)]


def wordpiece_tokenizer(more: str = "") -> PreTrainedTokenizerFast:
    """Return an uncased WordPiece tokenizer with BERT's special tokens.

    It knows the characters of ``more``, too.
    """
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation, *more]
    pieces = [*specials, *letters, *(f"##{x}" for x in letters), *WORDS[1:]]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer like GPT-2's: eos, and no pad token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        sentences(200),
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


def unigram_tokenizer(more: str = "") -> PreTrainedTokenizerFast:
    """Return a Unigram tokenizer like XLM-R's, which is SentencePiece's.

    It is trained on ``more``, too; characters that it has not seen are unknown.
    """
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        [*sentences(200), string.printable, *[more] * 20],
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=specials, unk_token="<unk>"
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def model(kind: str, task: str, vocabulary: int, **changes: object) -> PreTrainedModel:
    """Return a random 2-layer model of ``kind`` (a transformers model type).

    ``task`` is masked-lm, classification or causal-lm; ``changes`` go to the config.
    """
    sizes = dict(SIZES, vocab_size=vocabulary, pad_token_id=0, **changes)
    if kind in ("roberta", "xlm-roberta", "camembert"):
        sizes["pad_token_id"] = 1
    if kind == "llama":
        sizes |= {"num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        sizes |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    if kind == "distilbert":
        sizes |= {"hidden_dim": 64}
    if kind == "modernbert":
        sizes |= {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2}
        sizes |= {"eos_token_id": 3, "global_attn_every_n_layers": 2}
    config = AutoConfig.for_model(kind, **sizes)
    set_seed(0)
    return AUTO_CLASSES[task].from_config(config)


def save(folder: Path, kind: str, task: str, **changes: object) -> Path:
    """Save a tiny model and its tokenizer to ``folder`` as a user would hold them."""
    tokenizer = bpe_tokenizer() if task == "causal-lm" else wordpiece_tokenizer()
    tokenizer.save_pretrained(folder)
    model(kind, task, len(tokenizer), **changes).save_pretrained(folder)
    return folder


@contextmanager
def started_run(
    args: Any,
    recipe: str = "classify",
    *,
    choices: Sequence[Any] = (),
    data: dict[str, Any] | None = None,
    model: dict[str, str] | None = None,
    train: Any = None,
) -> Iterator[Any]:
    """Yield a ``Run`` in its folder, of a recipe that read no data but ``train``."""
    from llmft.data.split.splits import Splits
    from llmft.runs.folder import Run
    from llmft.tasks import classify, generate, mlm

    tasks = {"mlm": mlm.TASK, "classify": classify.TASK, "generate": generate.TASK}
    splits = Splits({}, data or {})
    run = Run(f"recipes/{recipe}.py", tasks[recipe], args, splits, model or {})
    run.plan(choices, train)
    with run.start():
        yield run
