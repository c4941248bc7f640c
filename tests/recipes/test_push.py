"""--push_to_hub, with a hub of its own that takes files."""

import pytest
import recipe_process as process
import tiny
from hub_server import HubServer
from huggingface_hub import HfApi, ModelCard
from transformers import pipeline

from llmft.errors import EnvironmentFault
from llmft.sources import upload

REPO = "me/my-model"


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    model = tiny.save(folder / "bert", "bert", "masked-lm")
    rows = process.keyword_rows(["no", "yes"], ["good", "bad"], 40)
    lines = "".join(f"{text},{label}\n" for text, label in rows)
    (folder / "train.csv").write_text("text,label\n" + lines)
    return [
        *("--model_name_or_path", model, "--train_file", folder / "train.csv"),
        *(*process.QUICK, "--max_steps", 2, "--output_dir", "run"),
        *("--push_to_hub", "--hub_model_id", REPO),
    ]


def env(home, server):
    online = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x"}
    return process.user_env(home, **online)


def test_the_model_is_pushed_with_its_card_at_the_end(flags, tmp_path):
    cwd, into = tmp_path / "work", tmp_path / "hub"
    with HubServer({}, into=into) as server:
        said = process.run_well("classify", *flags, cwd=cwd, env=env(tmp_path, server))
        created = [path for _, path in server.log].index("/api/repos/create")
    assert said.splitlines()[-1] == f"pushed     {server.url}/{REPO}"
    assert created < 5  # before anything is trained
    kept = process.tree(cwd / "run" / "model")
    assert process.tree(into / REPO) == kept
    assert {"config.json", "model.safetensors", "README.md"} <= kept.keys()
    answer = pipeline("text-classification", model=str(into / REPO))("good film")
    assert answer[0]["label"] in ("no", "yes")
    index = ModelCard.load(into / REPO / "README.md").data.eval_results
    assert "accuracy" in {result.metric_type for result in index}
    arguments = process.read_json(cwd / "run" / "run.json")["arguments"]
    assert arguments["push_to_hub"]["value"] is True


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, f"push_to_hub: {REPO} cannot be written: http://127.0.0.1:"),
        ({"HF_HUB_OFFLINE": "1"}, "push_to_hub: HF_HUB_OFFLINE is set; unset"),
    ],
)
def test_what_cannot_be_pushed_is_not_trained(flags, tmp_path, settings, said):
    cwd = tmp_path / "work"
    with HubServer({}) as server:  # it takes nothing
        known = env(tmp_path / "home", server) | settings
        done = process.run("classify", *flags, cwd=cwd, env=known)
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1].startswith(f"llmft: EnvironmentFault: {said}")
    assert ("answered 403; log in with" in done.stderr) == (not settings)
    assert not (cwd / "run").exists()


def test_a_push_that_fails_says_where_the_model_is(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with HubServer({}, into=tmp_path / "hub") as server:
        monkeypatch.setattr(upload.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(upload.constants, "HF_HUB_OFFLINE", False)
        api = HfApi(endpoint=server.url, token="hf_x")
        monkeypatch.setattr(upload, "HfApi", lambda: api)
        with pytest.raises(EnvironmentFault) as raised:
            upload.upload(folder, REPO, None)
    said = str(raised.value)
    assert f"{REPO} did not take the model: {server.url} answered 4" in said
    assert f"the model is in {folder}; `hf upload {REPO} {folder}` tries" in said
