"""A pickle of weights becomes safetensors, and runs nothing on the way."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from hub_server import HubServer
from recipe_process import user_env
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmft import cli
from llmft.errors import EnvironmentFault
from llmft.model import convert
from llmft.sources.hub import Located

NAME = "pytorch_model.bin"


def pickled(folder, kind="bert", task="masked-lm", **changes):
    """Save a model as older versions of transformers did; return it."""
    model = tiny.AUTO_CLASSES[task].from_pretrained(
        tiny.save(folder, kind, task, **changes)
    )
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / NAME)
    return model.eval()


def llmft(*argv):
    with pytest.raises(SystemExit) as caught:
        cli.main([*map(str, argv)])
    return caught.value.code


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(6)[None]).logits


@pytest.mark.parametrize(
    ("kind", "task", "changes"),
    [
        ("bert", "masked-lm", {}),  # tied: a decoder, and its bias twice
        ("roberta", "masked-lm", {}),
        ("bert", "classification", {}),
        ("gpt2", "causal-lm", {}),
        ("llama", "causal-lm", {"tie_word_embeddings": False}),
    ],
)
def test_a_converted_model_is_the_same(tmp_path, capsys, kind, task, changes):
    model = pickled(tmp_path / "old", kind, task, **changes)
    (tmp_path / "old" / "training_args.bin").write_bytes(b"pickle")
    assert llmft("convert", tmp_path / "old") == 0
    target = tmp_path / "old-safetensors"
    said = capsys.readouterr().out.splitlines()
    kept = model.state_dict().keys() - model.all_tied_weights_keys.keys()
    assert said[0].startswith(f"{target}: {len(kept)} tensors, ")
    assert load_file(target / "model.safetensors").keys() == kept
    assert said[1:] == ["left out: training_args.bin"]
    found, info = tiny.AUTO_CLASSES[task].from_pretrained(
        target, output_loading_info=True
    )
    assert not any(info.values())
    assert torch.equal(logits(found.eval()), logits(model))
    names = {path.name for path in (tmp_path / "old").iterdir()}
    pickles = {NAME, "training_args.bin"}
    assert {path.name for path in target.iterdir()} == names - pickles | {
        "model.safetensors"
    }


def test_weights_that_share_memory_by_chance_are_all_kept(tmp_path):
    """Untied names of one tensor, and views of one that nobody names."""
    pickled(tmp_path / "old")
    whole = torch.arange(12.0).view(3, 4)
    one = torch.ones(2, 2)
    state = {"a": one, "b": one, "row": whole[1], "turned": whole.T}
    torch.save(state, tmp_path / "old" / NAME)
    found = load_file(
        convert.convert(str(tmp_path / "old"), None) / "model.safetensors"
    )
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], x) for name, x in state.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_parts_and_the_format_before_zip(tmp_path, zipped):
    folder = tmp_path / "old"
    model = pickled(folder, "gpt2", "causal-lm")
    (folder / NAME).unlink()
    items = [*model.state_dict().items()]
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    where = {}
    for file, part in zip(names, (items[:9], items[9:]), strict=True):
        where |= dict.fromkeys(dict(part), file)
        how = {"_use_new_zipfile_serialization": zipped}
        torch.save(dict(part), folder / file, **how)
    index = folder / f"{NAME}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    target = convert.convert(str(folder), str(tmp_path / "new"))
    assert not (target / index.name).exists()
    found = AutoModelForCausalLM.from_pretrained(target)
    assert torch.equal(logits(found.eval()), logits(model))
    (folder / names[1]).unlink()
    assert llmft("convert", folder) == 5
    index.unlink()
    with pytest.raises(EnvironmentFault, match="1 of 2 files of the weights are there"):
        convert.convert(str(folder), None)
    assert not (tmp_path / "old-safetensors").exists()


def test_variants_are_left_out(tmp_path, capsys):
    pickled(tmp_path / "old")
    names = [f"pytorch_model{kind}.bin" for kind in ("", ".fp16", "_ema")]
    for i, name in enumerate(names):
        torch.save({"a": torch.full((1,), i)}, tmp_path / "old" / name)
    target = convert.convert(str(tmp_path / "old"), None)
    assert load_file(target / "model.safetensors")["a"] == 0
    said = capsys.readouterr().out.splitlines()[1:]
    assert said == [f"left out: {', '.join(names[1:])}"]


def test_an_adapter(tmp_path):
    tiny.save(tmp_path / "old", "gpt2", "causal-lm")
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save({"lora_A": torch.ones(2)}, tmp_path / "old" / "adapter_model.bin")
    target = convert.convert(str(tmp_path / "old"), None)
    assert load_file(target / "adapter_model.safetensors").keys() == {"lora_A"}


class _Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("write", "code", "says"),
    [
        (
            lambda file: torch.save({"a": _Payload()}, file),
            7,
            "it asks for posix.mkdir: nothing of it was run; expected tensors alone;"
            " choose another model",
        ),
        (
            lambda file: file.write_bytes(pickle.dumps({"a": _Payload()})),
            7,
            "it is no pickle of torch: nothing of it was run; expected tensors alone;",
        ),
        (
            lambda file: torch.save(torch.nn.Linear(2, 2), file),
            7,
            "it asks for torch.nn.modules.linear.Linear: nothing of it was run;",
        ),
        (
            lambda file: file.write_bytes(file.read_bytes()[:2000]),
            5,
            "the weights are damaged: PytorchStreamReader failed reading zip archive",
        ),
        (lambda file: file.write_bytes(b""), 5, "the weights are damaged: EOFError"),
        (
            lambda file: torch.save({"model": {"a": torch.ones(1)}}, file),
            2,
            "not a dict of tensors by name; expected a state dict",
        ),
        (
            lambda file: torch.save({1: torch.ones(1)}, file),
            2,
            "not a dict of tensors by name; expected a state dict",
        ),
        (
            lambda file: torch.save({"a": torch.eye(2).to_sparse()}, file),
            2,
            "cannot hold 'a', torch.sparse_coo; expected dense tensors of other names",
        ),
        (
            lambda file: torch.save({"__metadata__": torch.ones(1)}, file),
            2,
            "safetensors cannot hold '__metadata__', torch.strided; expected dense",
        ),
        (
            lambda file: torch.save({"a": torch.ones(1).to(torch.complex128)}, file),
            2,
            "old: safetensors cannot hold the weights: torch.complex128",
        ),
        (
            lambda file: torch.save({"a": torch.ones(1, device="meta")}, file),
            2,
            "old: safetensors cannot hold the weights: Cannot copy out of",
        ),
        (
            lambda file: file.with_name(f"{NAME}.index.json").write_text(
                '{"weight_map": ["a"]}'
            ),
            5,
            "weight_map is ['a']; expected a file for each tensor; copy the folder",
        ),
        (
            lambda file: file.with_name("adapter_model.bin").touch(),
            2,
            "it has adapter_model.bin, pytorch_model.bin; expected those of one model;",
        ),
        (
            lambda file: file.with_name("pytorch_model-00001-of-00002.bin").touch(),
            2,
            "it has pytorch_model-00001-of-00002.bin, pytorch_model.bin; expected",
        ),
        (
            lambda file: file.rename(file.with_name("pytorch_model_fsdp.bin")),
            2,
            "it has no pytorch_model.bin: nothing to convert",
        ),
        (
            lambda file: file.unlink(),
            2,
            "it has no pytorch_model.bin: nothing to convert",
        ),
        (
            lambda file: file.with_name("model.safetensors").touch(),
            2,
            "it has model.safetensors: nothing to convert",
        ),
        (
            lambda file: file.parent.with_name("old-safetensors").mkdir(),
            2,
            "output_dir is there: name another",
        ),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, capsys, write, code, says):
    monkeypatch.chdir(tmp_path)
    pickled(tmp_path / "old")
    write(tmp_path / "old" / NAME)
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()  # bars of the saving, where other tests had shown them
    assert llmft("convert", "old") == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert says in said[0]
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_of_the_hub(tmp_path):
    """In a process of its own: huggingface_hub reads its settings on import."""
    model = pickled(tmp_path / "repo", "gpt2", "causal-lm")
    (tmp_path / "repo" / "tf_model.h5").write_bytes(b"weights of another library")
    with HubServer({"models/owner/old": tmp_path / "repo"}) as server:
        settings = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-m", "llmft", "convert", "owner/old"],
            env=user_env(tmp_path / "home", **settings),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    asked = " ".join(path for _, path in server.log)
    assert NAME in asked
    assert "tf_model.h5" not in asked
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "old-safetensors")
    assert torch.equal(logits(found.eval()), logits(model))


def test_a_copy_in_the_cache_is_converted_as_it_is(tmp_path, monkeypatch):
    """Nothing more is fetched: there may be no network."""
    folder = tmp_path / "cache" / ("c" * 40)
    pickled(folder, "gpt2", "causal-lm")
    located = Located(str(folder), None, True, "offline", "owner/old", "c" * 40)
    monkeypatch.setattr(convert.hub, "locate_model", lambda name: located)
    monkeypatch.setattr(convert, "snapshot_download", None)
    monkeypatch.chdir(tmp_path)
    assert convert.convert("owner/old", None) == Path("old-safetensors")
