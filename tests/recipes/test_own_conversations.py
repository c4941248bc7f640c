"""generate.py on conversations, and on prompts with completions."""

from __future__ import annotations

import csv
import json
import math
import re
import runpy
import shlex
from pathlib import Path

import pytest
import recipe_process as process
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmft.errors import LlmftError

EOS = "<|endoftext|>"
TRAIN = (
    *process.QUICK,
    *("--do_train", "--do_eval", "--num_train_epochs", 3, "--learning_rate", 5e-3),
    *("--max_new_tokens", 12, "--do_sample", "false", "--max_seq_length", 48),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, with a chat template in a file beside it."""
    folder = tmp_path_factory.mktemp("llama")
    (folder / "chat.jinja").write_text(tiny.CHAT_TEMPLATE)
    tiny.save(folder / "model", "llama", "causal-lm", max_position_embeddings=128)
    return folder


def write_talks(path: Path, count: int, seed: int) -> list[tuple[str, str]]:
    """Write conversations of a turn each, with the same answer to all."""
    asked = [f"say {text.split()[0]}" for text in tiny.sentences(count, seed)]
    talks = [(ask, "film town") for ask in asked]
    lines = []
    for ask, answer in talks:
        turns = {"user": ask, "assistant": answer}
        said = [{"role": role, "content": text} for role, text in turns.items()]
        lines.append(json.dumps({"messages": said}))
    path.write_text("\n".join(lines), "utf-8")
    return talks


def test_conversations(folder: Path, tmp_path: Path) -> None:
    cwd = tmp_path / "work"
    write_talks(tmp_path / "train.jsonl", 200, 1)
    with open(tmp_path / "train.jsonl", "a") as stream:
        stream.write('\n{"messages": []}\n')
        long = [{"role": "user", "content": "a film " * 40}]
        long.append({"role": "assistant", "content": "a"})
        stream.write(json.dumps({"messages": long}))
    talks = write_talks(tmp_path / "valid.jsonl", 40, 2)
    said = process.run_well(
        "generate",
        *("--model_name_or_path", folder / "model", "--output_dir", "run"),
        *("--chat_template_path", folder / "chat.jinja", "--max_bad_rows", 1),
        *("--train_file", tmp_path / "train.jsonl"),
        *("--validation_file", tmp_path / "valid.jsonl", "--prompt", "say film"),
        *("--allow", "leakage"),
        *TRAIN,
        cwd=cwd,
    )
    bad = f"1 bad row left out ({tmp_path / 'train.jsonl'}:201)"
    assert f"rows of {tmp_path / 'train.jsonl'} (format = messages; {bad};" in said
    assert "1 row without a completion in their first 48 tokens left out" in said
    assert "  loss       on turns of the assistant only (assistant_only_loss" in said
    assert f"[user]say film{EOS}\\n[assistant]' (by the chat template)" in said
    assert "before     [user] say film [assistant]" in said
    assert "after      [user] say film [assistant] film town" in said

    found = process.read_json(cwd / "run" / "metrics.json")["eval"]
    count, nll = measured(cwd / "run" / "model", talks)
    assert found["loss"]["n"] == count
    assert found["loss"]["value"] == pytest.approx(nll, rel=1e-4)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(nll), rel=1e-4)
    losses = process.losses(cwd / "run")
    assert losses[-1] < losses[0] - 1

    words = shlex.split(said.splitlines()[-1].removeprefix("next").strip())
    assert "--chat_template_path" not in words
    before = process.tree(cwd)
    said = process.run_well("generate", *words[2:], cwd=cwd)
    assert "[user] say film [assistant] film town" in said
    assert process.tree(cwd) == before


def measured(folder: Path, talks: list[tuple[str, str]]) -> tuple[int, float]:
    """Return the tokens of all answers, and the mean of their losses, one by one."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    total, count = 0.0, 0
    for ask, answer in talks:
        asked = [{"role": "user", "content": ask}]
        before = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, tokenize=False
        )
        start = len(tokenizer(before)["input_ids"])
        ids = torch.tensor(tokenizer(f"{before}{answer}{EOS}")["input_ids"])
        with torch.no_grad():
            scores = model(ids[None]).logits[0].double().log_softmax(-1)
        places = range(start, len(ids))
        total -= sum(float(scores[i - 1, ids[i]]) for i in places)
        count += len(places)
    return count, total / count


def test_prompts_with_completions(folder: Path, tmp_path: Path) -> None:
    cwd = tmp_path / "work"
    talks = write_talks(tmp_path / "unused.jsonl", 200, 1)
    with open(tmp_path / "train.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "completion"])
        writer.writerows((f"{ask}:", f" {answer}") for ask, answer in talks)
    flags = ("--model_name_or_path", folder / "model", "--output_dir", "run")
    flags += ("--train_file", tmp_path / "train.csv", "--prompt", "say film:", *TRAIN)
    said = process.run_well(
        "generate", *flags, "--prompt_column_name", "question", cwd=cwd
    )
    assert "(format = prompt-completion, prompt = 'question')" in said.replace(";", ",")
    assert "on the completion only (completion_only_loss is true)" in said
    assert "after      say film: film town" in said
    words = shlex.split(said.splitlines()[-1].removeprefix("next").strip())
    assert "--apply_chat_template" not in words
    assert "say film: film town" in process.run_well("generate", *words[2:], cwd=cwd)


def test_what_cannot_be_trained_on_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    main = runpy.run_path(str(process.RECIPES / "generate.py"))["main"]
    write_talks(tmp_path / "train.jsonl", 20, 1)
    (tmp_path / "valid.csv").write_text("prompt,completion\na,b\n")
    train = ("--train_file", tmp_path / "train.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "user", "content": "q"}]}\n')
    calls = {
        "no chat template to write conversations with": train,
        "SchemaError: the format of train is messages; the format of validation is"
        " prompt-completion; expected one for all; name the columns": (
            *(*train, "--validation_file", tmp_path / "valid.csv"),
        ),
        f"DataFormatError {bad}:1: 'messages' has no turn of the assistant": (
            *("--train_file", bad),
        ),
        "text_column_name, prompt_column_name and completion_column_name exclude each"
        " other; completion_only_loss and assistant_only_loss differ": (
            *(*train, "--text_column_name", "a", "--completion_column_name", "b"),
            *("--completion_only_loss", "true", "--assistant_only_loss", "false"),
        ),
    }
    for message, flags in calls.items():
        model = ("--model_name_or_path", folder / "model", *TRAIN, *flags)
        with pytest.raises(LlmftError, match=re.escape(message)):
            main([str(flag) for flag in model])
        assert not list(Path.cwd().iterdir())
