"""A run within a time, as a user starts it: it ends, and the learning rate with it."""

import re
import time

import pytest
import tiny
from recipe_process import (
    QUICK,
    keyword_rows,
    only_run,
    read_json,
    read_jsonl,
    run_well,
)

RECIPES = {
    "mlm": ("--num_examples", 2),
    "classify": ("--train_sampling_strategy", "group_by_length", "--ladder", "no"),
    "generate": ("--prompt", "a film", "--max_new_tokens", 4),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_within_a_time(recipe, tiny_bert, tiny_gpt2, tmp_path):
    """15 seconds, most of which are the start; loosely, as others work here, too."""
    if recipe == "classify":
        rows = keyword_rows(["a", "b"], ["good", "bad"], 400)
        lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
    else:
        lines = ["text", *tiny.sentences(400)]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    began = time.monotonic()
    said = run_well(
        *(recipe, *QUICK, "--do_train", "--train_file", tmp_path / "train.csv"),
        *("--model_name_or_path", tiny_gpt2 if recipe == "generate" else tiny_bert),
        *("--time_limit", "15s", "--early_stopping_patience", "none", *RECIPES[recipe]),
        cwd=tmp_path / "w",
    )
    assert time.monotonic() - began < 60
    planned = said.split("\nplan\n")[1]  # importing may have taken half of the time
    gone = r"(, \S+ s of which are gone)?"
    assert re.search(f" examples as fit into 15s{gone}: about ", planned)
    run = only_run(tmp_path / "w", recipe)
    assert (run / "model" / "model.safetensors").is_file()
    steps = read_json(run / "metrics.json")["run"]["steps"]
    logged = [e for e in read_jsonl(run / "metrics.jsonl") if "learning_rate" in e]
    # The last line of the log is at most ten steps before the end.
    if steps >= 20:
        rates = [e["learning_rate"] for e in logged]
        assert rates[-1] <= max(rates) * 11 / (0.9 * steps)
    state = sorted((run / "checkpoints").glob("checkpoint-*"), key=lambda p: p.name)
    saved = [read_json(folder / "trainer_state.json") for folder in state]
    assert {s["max_steps"] for s in saved if s["global_step"] == steps} == {steps}
