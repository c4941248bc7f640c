"""Models and data sets from a stand-in hub, from its cache, and from nowhere.

huggingface_hub reads its settings when it is imported, so each state of the hub is a
subprocess that makes several calls; what it found is checked here.
"""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server import COMMIT, HubServer, lay_out_hub_cache
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from llmft.errors import ConfigError, EnvironmentFault
from llmft.sources import hub

ROOT = Path(__file__).parents[2]
MODEL, DATA = "distilbert/distilbert-base-uncased", "Salesforce/wikitext"
CONFIGS = ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
SPLITS = {"test": 2, "train": 5, "validation": 3}
HINT = "pypi:x needs no hub"
LIMIT = 10  # seconds for a call that finds no hub, imports included

ASK = """
import contextlib, io, json, sys, time
from llmft.sources import hub
heavy = {"torch", "transformers", "datasets"} & set(sys.modules)
from llmft.sources import hub_data as hubdata
for name, args in json.loads(sys.argv[1]):
    said, start = io.StringIO(), time.monotonic()
    answer = {"heavy": sorted(heavy)}
    try:
        with contextlib.redirect_stdout(said):
            module = hubdata if "dataset_dict" in name else hub
            value = getattr(module, name)(*args)
    except Exception as error:
        answer |= {"type": type(error).__name__, "text": str(error)}
        answer["code"] = getattr(error, "exit_code", 1)
    else:
        answer["type"] = type(value).__name__
        if answer["type"] == "tuple":
            texts = {s: [r["text"] for r in rows] for s, rows in value[0].items()}
            value = [texts, value[1]]
        answer["value"] = getattr(value, "__dict__", value)
    answer |= {"said": said.getvalue(), "seconds": time.monotonic() - start}
    print(json.dumps(answer))
"""


def python(code: str, *argv: str, home: Path, **settings: str) -> str:
    """Run ``code`` with an environment that names no hub but ``settings``."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSF"))}
    env |= {"HF_HOME": str(home), "PYTHONPATH": str(ROOT), "NO_PROXY": "*"} | settings
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(*calls: tuple[str, list], home: Path, **settings: str) -> list[dict[str, Any]]:
    answers = python(ASK, json.dumps(calls), home=home, **settings).splitlines()
    return [json.loads(answer) for answer in answers]


def model(*args: str | None) -> tuple[str, list]:
    return "locate_model", [*args, *[None, HINT][len(args) - 1 :]]


def data(*args: str | bool | None) -> tuple[str, list]:
    return "load_dataset_dict", [*args, *[None, None, HINT][len(args) - 1 :]]


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import pyarrow
    from pyarrow import parquet

    root = tmp_path_factory.mktemp("repos")
    card = ["---", "configs:"]
    for config in CONFIGS:
        (root / "data" / config).mkdir(parents=True)
        card += [f"- config_name: {config}", "  data_files:"]
        for split, rows in SPLITS.items():
            card += [f"  - split: {split}", f"    path: {config}/{split}-*"]
            table = pyarrow.table({"text": [f"{config} {i}" for i in range(rows)]})
            path = root / "data" / config / f"{split}-00000-of-00001.parquet"
            parquet.write_table(table, path)
    (root / "data" / "README.md").write_text("\n".join([*card, "---", ""]))
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text("{}")
    (root / "model" / "model.safetensors").write_bytes(b"weights")
    (root / "script").mkdir()
    (root / "script" / "script.py").write_text("")
    return {
        f"models/{MODEL}": root / "model",
        "models/owner/gated": root / "model",
        "models/owner/script": root / "script",
        f"datasets/{DATA}": root / "data",
        "datasets/owner/gated": root / "data",
        "datasets/owner/script": root / "script",
    }


def rows_of(config: str) -> dict[str, list[str]]:
    return {split: [f"{config} {i}" for i in range(n)] for split, n in SPLITS.items()}


@pytest.fixture(scope="module")
def online(
    repos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, dict], Path, list[tuple[str, str]]]:
    """Return answers by what they are about, the HF_HOME that this filled, and
    what the hub was asked."""
    home = tmp_path_factory.mktemp("online")
    calls = {
        "reachable": ("reachable", []),
        "model": model("distilbert-base-uncased"),
        "typo": model("distilbert-base-uncasd"),
        "gated model": model("owner/gated"),
        "no config": model("owner/script"),
        "model revision": model("distilbert-base-uncased", "v9"),
        "data": data("wikitext", CONFIGS[1]),
        "typo in config": data(DATA, "wikitext-2"),
        "which config": data(DATA),
        "data revision": data(DATA, CONFIGS[1], "v9"),
        "no data": data("wikitex"),
        "gated data": data("owner/gated", CONFIGS[1]),
        "script": data("owner/script"),
        "path": data("./train.csv"),
    }
    gated = frozenset({"models/owner/gated", "datasets/owner/gated"})
    with HubServer(repos, gated=gated) as server:
        answers = ask(*calls.values(), home=home, HF_ENDPOINT=server.url)
    return dict(zip(calls, answers, strict=True)), home, server.log


def test_nothing_heavy_is_imported(online: tuple) -> None:
    assert online[0]["reachable"] | {"seconds": 0} == {
        "heavy": [],
        "type": "bool",
        "value": True,
        "said": "",
        "seconds": 0,
    }


def test_a_one_word_model_on_the_hub(online: tuple) -> None:
    assert online[0]["model"]["value"] == {
        "path_or_id": "distilbert-base-uncased",
        "revision": None,
        "local_files_only": False,
        "note": "",
        "merged_into": "",
        "name": "distilbert-base-uncased",
        "commit": COMMIT,
    }


def test_a_one_word_data_set_is_resolved_and_said(online: tuple) -> None:
    answers, _, log = online
    assert answers["data"]["value"][0] == rows_of(CONFIGS[1])
    assert answers["data"]["said"] == f"dataset wikitext is {DATA} on the hub\n"
    fetched = [path for method, path in log if method == "GET" and "resolve" in path]
    assert not [path for path in fetched if CONFIGS[0] in path]  # the larger one


def test_a_stream_is_the_same_from_hub_and_cache(
    repos: dict[str, Path], tmp_path: Path
) -> None:
    calls = [data("wikitext", config, None, HINT, True) for config in CONFIGS]
    with HubServer(repos) as server:
        answers = ask(*calls, home=tmp_path / "online", HF_ENDPOINT=server.url)
        files = server.files(f"datasets/{DATA}")
    lay_out_hub_cache(tmp_path / "offline" / "hub", "dataset", DATA, files)
    answers += ask(*calls, home=tmp_path / "offline", HF_HUB_OFFLINE="1")
    for config, answer in zip(CONFIGS * 2, answers, strict=True):
        assert answer["value"] == [rows_of(config), f"{config} {COMMIT}"]


def test_csv_of_the_hub_stays_text(tmp_path: Path) -> None:
    lines = ["text", *(f"a film {i}" for i in range(20)), "007", "NA", "1e5", '""']
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "train.csv").write_text("\n".join([*lines, ""]))
    calls = [data("owner/csv"), data("owner/csv", None, None, HINT, True)]
    with HubServer({"datasets/owner/csv": tmp_path / "csv"}) as server:
        loaded, streamed = ask(*calls, home=tmp_path / "home", HF_ENDPOINT=server.url)
    assert loaded["value"][0] == {"train": [*lines[1:-1], ""]}
    assert streamed["value"] == loaded["value"]


def test_files_of_the_hub_that_cannot_be_read(tmp_path: Path) -> None:
    rows = gzip.compress(b'{"text": "a film"}\n' * 999)
    contents = {
        "empty.jsonl": b"",
        "cut.jsonl.gz": rows[: len(rows) // 2],
        "uneven.csv": b"text,label\na,b\nc,d,e\n",
        "semicolon.csv": b"text;label\na;b\n",
    }
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / f"train{name[name.index('.') :]}").write_bytes(content)
    names = {name: f"owner/{name.partition('.')[0]}" for name in contents}
    repos = {f"datasets/{names[name]}": tmp_path / name for name in contents}
    calls = [data(name) for name in names.values()]
    calls += [data(names["semicolon.csv"], None, None, HINT, True)]
    with HubServer(repos) as server:
        answers = ask(*calls, home=tmp_path / "home", HF_ENDPOINT=server.url)
    separator = "looks separated by ';'; expected ',', or `sep` in its card; downl"
    said = ["it has no rows", "Compressed file ended", "Expected 2 fields in line 3"]
    said += [separator, separator]
    asked = [*names.values(), names["semicolon.csv"]]
    for answer, name, why in zip(answers, asked, said, strict=True):
        assert (answer["type"], answer["code"]) == ("DataError", 3)
        assert answer["text"].startswith(f"DataError {name}: ")
        assert why in answer["text"]


@pytest.mark.parametrize(
    ("about", "kind", "code", "texts"),
    [
        (
            "typo",
            "EnvironmentFault",
            5,
            [
                "model distilbert-base-uncasd was not found on the hub (http",
                f"; nearest there: {MODEL}; check the spelling, or set HF_TOKEN",
                HINT,
            ],
        ),
        (
            "no data",
            "EnvironmentFault",
            5,
            ["dataset wikitex was not found on the hub", f"nearest there: {DATA};"],
        ),
        (
            "gated model",
            "EnvironmentFault",
            5,
            ["owner/gated: it is gated on the hub", "accept its licence at http"],
        ),
        (
            "gated data",
            "EnvironmentFault",
            5,
            ["gated on the hub", "/datasets/owner/gated and set HF_TOKEN", HINT],
        ),
        ("no config", "EnvironmentFault", 5, ["owner/script on the hub has no config"]),
        ("model revision", "ConfigError", 2, ["model_revision: distilbert", "no 'v9'"]),
        ("data revision", "ConfigError", 2, [f"dataset_revision: {DATA} has no 'v9'"]),
        (
            "typo in config",
            "ConfigError",
            2,
            [
                f"dataset_config_name: {DATA} has no configuration 'wikitext-2'",
                f", did you mean {CONFIGS[1]}?; expected one of '{CONFIGS[0]}', ",
            ],
        ),
        (
            "which config",
            "ConfigError",
            2,
            [f"{DATA} has several configurations; expected one of '{CONFIGS[0]}', "],
        ),
        ("script", "DataError", 3, ["owner/script: cannot be loaded", "script.py"]),
        ("path", "ConfigError", 2, ["'./train.csv' is no hub id", "train_file"]),
    ],
)
def test_what_the_hub_does_not_have(
    online: tuple, about: str, kind: str, code: int, texts: list[str]
) -> None:
    answer = online[0][about]
    assert (answer["type"], answer["code"]) == (kind, code)
    for text in texts:
        assert text in answer["text"]
    assert "\n" not in answer["text"]


def test_offline_after_loading_once(online: tuple) -> None:
    """The hub cache has what datasets fetched: one configuration only."""
    loaded, other, pinned, absent = ask(
        data("wikitext", CONFIGS[1]),
        data("wikitext", CONFIGS[0]),
        data(DATA, CONFIGS[1], COMMIT),
        model("distilbert-base-uncased"),
        home=online[1],
        HF_HUB_OFFLINE="1",
    )
    assert loaded["value"][0] == pinned["value"][0] == rows_of(CONFIGS[1])
    assert loaded["said"] == (
        f"HF_HUB_OFFLINE is set: using the cached copy of dataset {DATA} (aaaaaaa)\n"
    )
    assert other["type"] == absent["type"] == "EnvironmentFault"
    assert "there is no complete copy in the cache" in other["text"]
    assert absent["text"] == (
        "EnvironmentFault: model distilbert-base-uncased: HF_HUB_OFFLINE is set, and"
        f" there is no complete copy in the cache {online[1] / 'hub'}; expected a hub"
        " that gives it, or a cached copy; unset HF_HUB_OFFLINE to use the network,"
        f" or {HINT}"
    )


@pytest.fixture
def cached(repos: dict[str, Path], tmp_path: Path) -> Path:
    """An HF_HOME as from another machine: a model and one configuration of data."""
    folder = repos[f"datasets/{DATA}"]
    files = {
        name: folder / name
        for name in [
            "README.md",
            *(f"{CONFIGS[1]}/{split}-00000-of-00001.parquet" for split in SPLITS),
        ]
    }
    lay_out_hub_cache(tmp_path / "hub", "dataset", DATA, files)
    lay_out_hub_cache(
        tmp_path / "hub", "model", MODEL, {"config.json": b"{}", "m.safetensors": b"w"}
    )
    index = json.dumps({"weight_map": {"w": "model-00002-of-00002.safetensors"}})
    lay_out_hub_cache(
        tmp_path / "hub",
        "model",
        "owner/partial",
        {
            "config.json": b"{}",
            "model-00001-of-00002.safetensors": b"w",
            "model.safetensors.index.json": index.encode(),
        },
    )
    for owner in ("one", "two"):
        lay_out_hub_cache(tmp_path / "hub", "model", f"{owner}/same", {"a": b"a"})
    return tmp_path


def test_a_hub_cache_without_network(cached: Path) -> None:
    found, pinned, partial, bare, same, loaded, unknown, which = ask(
        model("distilbert-base-uncased"),
        model(MODEL, "b" * 40),
        model("owner/partial"),
        ("locate_model", ["owner/partial", None, "", False]),
        model("same"),
        data("wikitext", CONFIGS[1]),
        data("wikitext", "wikitext-2"),
        data("wikitext"),
        home=cached,
        HF_HUB_OFFLINE="1",
    )
    name = f"models--{MODEL.replace('/', '--')}"
    assert found["value"] == {
        "path_or_id": str(cached / "hub" / name / "snapshots" / COMMIT),
        "revision": None,
        "local_files_only": True,
        "note": f"HF_HUB_OFFLINE is set: using the cached copy of {MODEL} (aaaaaaa)",
        "name": MODEL,
        "commit": COMMIT,
        "merged_into": "",
    }
    assert "no complete copy" in pinned["text"]  # another commit than the one there
    assert "no complete copy" in partial["text"]  # the second shard is not there
    assert bare["type"] == "Located"  # as for a tokenizer
    assert same["text"] == (
        "ConfigError: same is the name of several models in the cache; expected one of"
        " one/same, two/same"
    )
    assert loaded["value"][0] == rows_of(CONFIGS[1])
    assert loaded["said"] == (
        f"HF_HUB_OFFLINE is set: using the cached copy of dataset {DATA} (aaaaaaa)\n"
    )
    assert f"did you mean {CONFIGS[1]}?" in unknown["text"]
    assert f"{DATA} has several configurations" in which["text"]


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A host that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def refusing() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["refusing", "black_hole"])
def test_an_unreachable_hub_is_told_in_time(
    kind: str, cached: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(kind)
    no_model, no_data, found = ask(
        model("gpt2"),
        data("imdb", "plain_text"),
        model("distilbert-base-uncased"),
        home=cached,
        HF_ENDPOINT=url,
    )
    for answer, name in ((no_model, "model gpt2"), (no_data, "dataset imdb")):
        assert (answer["type"], answer["code"]) == ("EnvironmentFault", 5)
        assert answer["text"].startswith(
            f"EnvironmentFault: {name}: {url} does not answer (waited up to 4 s;"
            " HF_HUB_OFFLINE is not set), and there is no complete copy in the cache"
            f" {cached / 'hub'}"
        )
        assert answer["text"].endswith(f"or set HF_ENDPOINT to a mirror, or {HINT}")
        assert answer["seconds"] < LIMIT
    assert f"in the cache {cached / 'hub'};" in no_data["text"]
    assert found["value"]["local_files_only"]
    assert found["value"]["note"].startswith(f"{url} does not answer")
    assert found["seconds"] < LIMIT


def test_a_slow_hub_has_the_time_that_the_user_gives_it(
    black_hole: str, tmp_path: Path
) -> None:
    settings = {"HF_ENDPOINT": black_hole, "HF_HUB_ETAG_TIMEOUT": "1"}
    (answer,) = ask(model("gpt2"), home=tmp_path, **settings)
    assert "does not answer (waited up to 1 s; HF_HUB" in answer["text"]
    assert answer["seconds"] < 3


@pytest.mark.parametrize(
    ("status", "said"), [(503, "answered 503"), (200, "answers, but not as a hub")]
)
def test_a_host_that_is_no_hub(status: int, said: str, cached: Path) -> None:
    """The hub is down, or a login page of the network answers in its place."""
    with HubServer({}, status=status) as server:
        no_model, found, loaded = ask(
            model("gpt2"),
            model(MODEL),
            data("wikitext", CONFIGS[1]),
            home=cached,
            HF_ENDPOINT=server.url,
        )
    assert f"model gpt2: {server.url} {said}, and" in no_model["text"]
    assert said in found["value"]["note"]
    assert loaded["value"][0] == rows_of(CONFIGS[1])


FROM_PRETRAINED = """
import sys
from transformers import (AutoModelForMaskedLM, AutoTokenizer, BertConfig,
                          BertForMaskedLM, BertTokenizerFast)
folder = sys.argv[1]
config = BertConfig(vocab_size=7, hidden_size=8, num_hidden_layers=1,
                    num_attention_heads=1, intermediate_size=8)
BertForMaskedLM(config).save_pretrained(folder)
with open(folder + "/vocab.txt", "w") as file:
    file.write("\\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
BertTokenizerFast(folder + "/vocab.txt").save_pretrained(folder)
from llmft.sources import hub
from datasets import load_dataset
located = hub.locate_model("bert-base-uncased")
options = {"revision": located.revision, "local_files_only": located.local_files_only}
model = AutoModelForMaskedLM.from_pretrained(located.path_or_id, **options)
tokenizer = AutoTokenizer.from_pretrained(located.path_or_id, **options)
print(model.config.hidden_size, tokenizer("a b")["input_ids"])
print(load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1").num_rows)
"""


def test_the_stand_in_serves_the_libraries(
    repos: dict[str, Path], tmp_path: Path
) -> None:
    served = {**repos, "models/google-bert/bert-base-uncased": tmp_path / "bert"}
    with HubServer(served) as server:
        home, folder = tmp_path / "home", str(tmp_path / "bert")
        said = python(FROM_PRETRAINED, folder, home=home, HF_ENDPOINT=server.url)
    assert said.splitlines() == ["8 [2, 5, 6, 3]", str(SPLITS)]


def test_reachable_reads_the_settings_when_called(
    monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    with HubServer({}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        assert hub.reachable()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not hub.reachable()
        assert server.log == [("HEAD", "/")]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", refusing)
    assert not hub.reachable()


def test_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name in ("run/model", "./run/model", str(tmp_path / "run" / "model")):
        located = hub.locate_model(name)
        assert Path(located.path_or_id).samefile(tmp_path / "run" / "model")
        assert located.local_files_only
        assert not located.note + located.commit


def test_a_folder_named_like_an_owner_hides_no_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "hf_hub_url", lambda name, file, revision: name)
    found = SimpleNamespace(commit_hash=COMMIT)
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url, timeout: found)
    monkeypatch.setattr(hub, "_adapter", lambda name, revision, weights: None)
    assert hub.locate_model("owner/model").commit == COMMIT
    monkeypatch.setattr(hub, "unreachable", lambda: hub.Miss("no network", "mend it"))
    with pytest.raises(EnvironmentFault) as caught:
        hub.locate_model("owner/modle", None, HINT)
    assert str(caught.value).endswith(
        f"; mend it, or check the path: owner holds no modle, or {HINT}"
    )


@pytest.mark.parametrize("status", [404, 503])
def test_a_look_up_that_fails_is_no_answer(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a model is an adapter has to be known; 404 is enough to say so."""

    def ask(name: str, file: str, revision: str | None) -> SimpleNamespace:
        if file == hub.ADAPTER:
            response: Any = SimpleNamespace(
                status_code=status, headers={}, request=None
            )
            raise HfHubHTTPError(f"{status}", response=response)
        return SimpleNamespace(commit_hash=COMMIT)

    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr(hub, "_asked_for", ask)
    if status == 404:
        assert hub.locate_model("owner/model").commit == COMMIT
        return
    with pytest.raises(EnvironmentFault, match=f"answered {status}"):
        hub.locate_model("owner/model")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run", "a folder without config.json; use run/model"),
        ("empty", "no config.json there; expected a folder that save_pretrained"),
        ("./absent", "there is no such folder; check the path"),
        ("~/absent-folder", "there is no such folder"),
        ("a/b/c", "there is no such folder; check the path"),
        ("absent/", "there is no such folder; check the path"),
        ("./run/modle", "there is no such folder, did you mean model?; check the path"),
        ("./rum/model", "there is no such folder; check the path"),
        ("run/a/model", "there is no such folder; check the path"),
        ("https://a.b/c/d", "'https://a.b/c/d' is no hub id; expected a name or"),
        ("my model", "'my model' is no hub id"),
    ],
)
def test_a_name_that_leads_nowhere(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="model_name_or_path: ") as caught:
        hub.locate_model(name)
    assert text in str(caught.value)


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        hub.locate_model(str(tmp_path), "v2")
    assert str(caught.value) == (
        f"ConfigError {tmp_path}: model_name_or_path: a folder, which has no"
        " revisions; model_revision is v2; leave it out, or give a hub id"
    )
