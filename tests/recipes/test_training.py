"""What training promises: the same again, going on, stopping, planning, testing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import recipe_process as process
import tiny

from llmft.train.trainer import LlmftTrainer

ROWS = 80


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, texts, and labelled texts."""
    root = tmp_path_factory.mktemp("given")
    tiny.save(root / "bert", "bert", "masked-lm")
    (root / "texts.txt").write_text("\n".join(tiny.sentences(200)))
    for name, seed in (("train", 0), ("valid", 1)):
        rows = process.keyword_rows(["a", "b"], ["good", "bad"], ROWS, seed)
        lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
        (root / f"{name}.csv").write_text("\n".join(lines))
    return root


def classify(given: Path, *flags: object) -> tuple[object, ...]:
    return (
        "classify",
        *process.QUICK,
        *("--model_name_or_path", given / "bert", "--train_file"),
        *(given / "train.csv", "--validation_file", given / "valid.csv"),
        *("--per_device_train_batch_size", 4, "--learning_rate", 1e-3),
        # A probe that is better than so short a training would be saved each time.
        *("--ladder", "false", "--metric_for_best_model", "loss", *flags),
    )


@pytest.fixture(scope="module")
def runs(given: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return run folders by name: seeds 1, 1 and 2; masked LM with dropout."""
    root = tmp_path_factory.mktemp("runs")
    mlm = (
        "mlm",
        *process.QUICK,
        *("--model_name_or_path", given / "bert", "--train_file"),
        *(given / "texts.txt", "--max_steps", 6, "--dropout", 0.1),
        *("--per_device_train_batch_size", 4, "--logging_steps", 1),
    )
    accumulated = classify(given, "--gradient_accumulation_steps", 3)
    commands = {
        "mlm 1": (*mlm, "--seed", 1),
        "mlm 1 again": (*mlm, "--seed", 1),
        "mlm 2": (*mlm, "--seed", 2),
        "accumulated": (*accumulated, "--num_train_epochs", 2, "--seed", 3),
    }
    process.run_all(
        {
            name: lambda name=name, flags=flags: process.run_well(
                *flags, "--output_dir", "run", cwd=root / name
            )
            for name, flags in commands.items()
        }
    )
    return {name: root / name / "run" for name in commands}


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_the_same_seed_gives_the_same_bytes(runs: dict[str, Path]) -> None:
    first, again, other = (runs[name] for name in ("mlm 1", "mlm 1 again", "mlm 2"))
    assert weights(first) == weights(again)
    assert weights(first) != weights(other)
    assert process.losses(first) == process.losses(again)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (first / "model" / name).read_bytes() == (
            again / "model" / name
        ).read_bytes()
    one, two = (process.read_json(run / "metrics.json") for run in (first, again))
    assert one["eval"] == two["eval"]


def test_accumulation_and_resume(runs: dict[str, Path], given: Path) -> None:
    """Seven steps an epoch; the run goes on from the end of the first epoch."""
    run = runs["accumulated"]
    before = process.read_json(run / "metrics.json")
    steps = -(-ROWS // (4 * 3))
    assert before["run"]["steps"] == 2 * steps
    # One evaluation an epoch: the last of validation serves for the results, too.
    assert len(process.losses(run, "eval_loss")) == 2
    assert {entry["split"] for entry in before["eval"].values()} == {"validation"}
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {f"checkpoint-{steps}", f"checkpoint-{2 * steps}"}
    weights_before = weights(run)
    shutil.rmtree(run / "model")  # as if the run had been killed at its end

    def command(epochs: int, *more: object) -> tuple[object, ...]:
        flags = ("--gradient_accumulation_steps", 3, "--num_train_epochs", epochs)
        return (
            *classify(given, *flags, "--seed", 3, *more),
            *("--resume_from_checkpoint", f"run/checkpoints/checkpoint-{steps}"),
        )

    def resume(epochs: int, *more: object) -> dict:
        said = process.run_well(*command(epochs, *more), cwd=run.parent)
        assert f"resume     run/checkpoints/checkpoint-{steps}, in run\n" in said
        assert "\nbest       checkpoint-" in said
        assert process.read_json(run / "run.json")["status"] == "complete"
        return process.read_json(run / "metrics.json")

    after = resume(2, "--output_dir", "run")
    assert after["run"]["steps"] == 2 * steps
    assert weights(run) == weights_before
    assert after["eval"] == before["eval"]
    # The run has two legs now; what the first one said is still there.
    record = process.read_json(run / "run.json")
    (first,) = record["legs"]
    assert first["status"] == "complete"
    assert first["arguments"]["output_dir"]["value"] == "run"
    assert record["resumed"] == str(run / "checkpoints" / f"checkpoint-{steps}")
    assert set(process.losses(run, "leg")) == {1, 2}
    seconds = [before["run"]["wall_seconds"], after["run"]["wall_seconds"]]
    assert seconds[1] > seconds[0]
    assert after["run"]["legs"] == 2
    assert after["run"]["train_seconds"] > before["run"]["train_seconds"] / 2
    held = process.tree(run)
    wrong = {
        "another seed": (*command(3, "--output_dir", "run"), "--seed", 4),
        "planned": (*command(3), "--learning_rate", 1, "--dry_run"),
    }
    done = process.run_all(
        {
            name: lambda flags=flags: process.run(*flags, cwd=run.parent)
            for name, flags in wrong.items()
        }
    )
    for name, found in (("another seed", "seed was 3, is 4"), ("planned", "rate was")):
        assert done[name].returncode == 4, done[name].stderr
        (said,) = process.problems(done[name].stderr)
        assert "it does not belong to this run: " in said
        assert found in said
    assert process.tree(run) == held
    after = resume(3)  # of a complete run, for longer, in its own folder
    assert after["run"]["steps"] == max(process.losses(run, "step")) == 3 * steps
    assert weights(run) != weights_before


def test_a_dry_run_writes_nothing(given: Path, tmp_path: Path) -> None:
    cwd = tmp_path / "work"
    flags = ("--gradient_accumulation_steps", 2, "--num_train_epochs", 3, "--dry_run")
    said = process.run_well(*classify(given, *flags), cwd=cwd)
    assert not list(cwd.iterdir())
    for text in (
        f"  train             {ROWS} rows of {given / 'train.csv'}",
        "BertForSequenceClassification",
        "new weights, to be trained: bert.pooler.dense, classifier",
        "threads    1 (num_threads was given)",
        "precision  fp32 (was given)",
        "30 steps of 8 examples, 3 epochs, learning rate 0.001",
    ):
        assert text in said
    assert "results" not in said


def test_early_stopping(given: Path, tmp_path: Path) -> None:
    """Nothing can be learnt at this learning rate: two evaluations, and no more."""
    said = process.run_well(
        *classify(given, "--num_train_epochs", 9, "--early_stopping_patience", 1),
        *("--learning_rate", 1e-12, "--output_dir", "run"),
        *("--metric_for_best_model", "accuracy"),
        cwd=tmp_path / "work",
    )
    run = tmp_path / "work" / "run"
    found = process.read_json(run / "metrics.json")["run"]
    assert found["epochs"] == 2
    assert found["steps"] == 2 * ROWS // 4
    assert "180 steps" in said
    assert (
        "\nstopped    at step 40 of 180: accuracy did not improve in 1 evaluations"
        " (early_stopping_patience, early_stopping_threshold)\n"
    ) in said


def test_prediction_with_a_trained_model(
    runs: dict[str, Path], given: Path, tmp_path: Path
) -> None:
    model = runs["accumulated"] / "model"
    said = process.run_well(
        "classify",
        *process.QUICK,
        *("--model_name_or_path", model, "--do_predict"),
        *("--test_file", given / "valid.csv", "--output_dir", "run"),
        cwd=tmp_path / "work",
    )
    run = tmp_path / "work" / "run"
    assert not (run / "model").exists()
    assert "steps of" not in said
    found = process.read_json(run / "metrics.json")
    assert set(found) - {"weak_classes", "weak_segments"} == {"test", "run"}
    trained = process.read_json(runs["accumulated"] / "metrics.json")
    assert process.values(found["test"]) == process.values(trained["eval"])
    now, before = (
        process.read_jsonl(folder / "predictions.jsonl")
        for folder in (run, runs["accumulated"])
    )
    assert {row["split"] for row in before} == {"validation"}
    assert now == [row | {"split": "test"} for row in before]


def test_help(tmp_path: Path) -> None:
    recipes = ("mlm", "classify", "generate")
    done = process.run_all(
        {
            name: lambda name=name: process.run(
                name, "--help_all", cwd=tmp_path / "work"
            )
            for name in recipes
        }
    )
    for name in recipes:
        assert done[name].returncode == 0, done[name].stderr
        text = done[name].stdout
        groups = ["\nModel:", "\nData:", "\nTraining:", "\nEverything else of "]
        places = [text.index(group) for group in groups]
        assert places == sorted(places)
        for flag in ("--model_name_or_path", "--train_file", "--learning_rate"):
            assert f"{flag} VALUE" in text
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("recipe", ["mlm", "classify", "generate"])
def test_the_model_is_there_before_anything_is_predicted(
    given: Path, tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails after a training, as a text of the test does, costs no model."""

    loop = LlmftTrainer.evaluation_loop

    def fails(trainer: LlmftTrainer, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 2 and not trainer.is_in_train:
            raise IndexError("of the test")
        return loop(trainer, *args, **kwargs)

    tiny.save(tmp_path / "gpt2", "gpt2", "causal-lm")
    name = tmp_path / "gpt2" if recipe == "generate" else given / "bert"
    flags = ["--model_name_or_path", name, "--output_dir", tmp_path / "run"]
    data = "train.csv" if recipe == "classify" else "texts.txt"
    flags += ["--train_file", given / data, "--do_train", "--max_steps", 2]
    flags += ["--ladder", "false"] if recipe == "classify" else []
    monkeypatch.setattr(LlmftTrainer, "evaluation_loop", fails)
    with pytest.raises(IndexError, match="of the test"):
        process.main_of(recipe)([*map(str, flags), *process.QUICK])
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert process.read_json(tmp_path / "run" / "run.json")["status"] == "failed"
    # Two steps are fewer than logging_steps; the last one is logged.
    assert len(process.losses(tmp_path / "run")) == 1
