"""generate.py without training: it continues prompts, and leaves nothing behind."""

from __future__ import annotations

import functools
import io
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import recipe_process as process
import tiny

from llmft.errors import CheckpointError, ConfigError, DataError, escape
from llmft.tasks import generate


@pytest.fixture(scope="module")
def said(
    tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, str, str]]:
    """Return exit code, standard output and standard error of some commands."""
    cwd = tmp_path_factory.mktemp("prompts") / "work"
    model = ("--model_name_or_path", tiny_gpt2, "--num_threads", 1)
    model += ("--precision", "fp32", "--max_new_tokens", 12)
    two = ("--prompt", "the old man", "a 🎬 story", "--seed", 7)
    commands = {
        "two": (*model, *two),
        "two again": (*model, *two),
        "several": (*model, *two, "--num_return_sequences", 2),
        "greedy": (*model, "--prompt=the man", "--do_sample", "false", "--seed", 8),
        "none": model,
        "most below least": (*model, "--min_new_tokens", 9, "--max_new_tokens", 8),
    }
    done = process.run_all(
        {
            name: lambda flags=flags: process.run("generate", *flags, cwd=cwd)
            for name, flags in commands.items()
        }
    )
    assert not list(cwd.iterdir())
    return {n: (d.returncode, d.stdout, d.stderr) for n, d in done.items()}


def texts(stdout: str) -> str:
    """Return what stands between the plan and the line with the speed."""
    written, last, speed = stdout.rpartition("\nwritten    ")
    assert last
    assert re.fullmatch(r"\d+ tokens, [\d.]+ tokens/s, \d+ MiB peak\n", speed)
    return written.partition("\nplan\n")[2].partition("\n\n")[2]


def test_each_prompt_is_continued(said: dict[str, tuple[int, str, str]]) -> None:
    code, stdout, stderr = said["two"]
    assert (code, process.problems(stderr)) == (0, [])
    first, second = texts(stdout).strip("\n").split("\n\n")
    assert first.startswith("the old man")
    assert second.startswith("a 🎬 story")
    assert len(first) > len("the old man")


def test_the_same_seed_gives_the_same_text(
    said: dict[str, tuple[int, str, str]],
) -> None:
    assert texts(said["two"][1]) == texts(said["two again"][1])


def test_several_texts_for_each(said: dict[str, tuple[int, str, str]]) -> None:
    code, stdout, _ = said["several"]
    assert code == 0
    starts = ["[1] the old man", "[2] the old man", "[1] a 🎬 story", "[2] a 🎬 story"]
    places = [texts(stdout).index(start) for start in starts]
    assert places == sorted(places)
    one, two = texts(stdout).splitlines()[:2]
    assert one[4:] != two[4:]


def test_greedy(said: dict[str, tuple[int, str, str]]) -> None:
    code, stdout, stderr = said["greedy"]
    assert (code, process.problems(stderr)) == (0, [])
    assert texts(stdout).startswith("the man")


def test_fewest_tokens_above_the_most(said: dict[str, tuple[int, str, str]]) -> None:
    code, stdout, stderr = said["most below least"]
    assert (code, stdout) == (2, "")
    assert process.problems(stderr) == [
        "llmft: ConfigError: 2 problems: min_new_tokens is 9, above max_new_tokens 8;"
        ' nothing to do: give --prompt "...", or --do_train with data; in a JSON'
        ' file, add "do_train": true'
    ]


def test_without_a_prompt(said: dict[str, tuple[int, str, str]]) -> None:
    code, stdout, stderr = said["none"]
    assert (code, stdout) == (2, "")
    assert process.problems(stderr) == [
        'llmft: ConfigError: nothing to do: give --prompt "...", or --do_train with'
        ' data; in a JSON file, add "do_train": true'
    ]


def test_an_evaluation_continues_the_prompts_too(
    tiny_gpt2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(tiny.sentences(60)))
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(process.RECIPES / "generate.py"))["main"]
    flags = ["--model_name_or_path", str(tiny_gpt2), "--train_file", "texts.txt"]
    flags += ["--do_eval", "--prompt", "the man", "a film", "--max_new_tokens", "8"]
    flags += ["--num_return_sequences", "2", "--max_seq_length", "32"]
    main([*flags, "--num_threads", "1", "--precision", "fp32", "--disable_tqdm"])
    said = capsys.readouterr().out
    starts = ["[1] the man", "[2] the man", "[1] a film", "[2] a film"]
    places = [said.index(f"written {start}") for start in starts]
    assert places == sorted(places)
    following = said.splitlines()[-1]
    assert following.endswith(
        f"--model_name_or_path {tiny_gpt2} --prompt 'the man' 'a film'"
    )


@pytest.fixture
def prompts(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the recipe here and returns what it wrote."""
    monkeypatch.chdir(tmp_path)
    main = process.main_of("generate")

    def write(
        *flags: object, stdin: bytes | None = None, sample: str = "false"
    ) -> list[dict[str, str]]:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        model = ["--model_name_or_path", str(tiny_gpt2), "--precision", "fp32"]
        model += ["--max_new_tokens", "6", "--do_sample", sample]
        # Padding must not count as what is there: it may be the eos.
        main([*model, "--repetition_penalty", "2", *map(str, flags)])
        found = Path("out.jsonl")
        return process.read_jsonl(found) if found.exists() else []

    return write


def test_prompts_of_a_file_are_continued_in_batches(prompts: Any, capsys: Any) -> None:
    """As each by itself: what is put before the short ones is not seen."""
    given = [*tiny.sentences(20, words=3), "the", *tiny.sentences(3, 1, words=14)]
    Path("p.txt").write_text("\n".join([*given[:5], "", *given[5:]]) + "\n")
    rows = [json.dumps({"id": i, "prompt": text}) for i, text in enumerate(given)]
    Path("p.jsonl").write_text("\n".join(rows))
    found = prompts("--prompt_file", "p.txt", "--output_file", "out.jsonl")
    said = capsys.readouterr().out
    assert "1 empty line passed over" in said
    assert "output     out.jsonl, 24 texts" in said
    assert [row["prompt"] for row in found] == given
    prompts("--prompt", *given)
    alone = capsys.readouterr().out
    for row in found:
        assert f"\n{escape(row['prompt'] + row['completion'])}\n" in alone
    with pytest.raises(ConfigError, match=r"out.jsonl: output_file is there"):
        prompts("--prompt_file", "p.jsonl", "--output_file", "out.jsonl")
    with pytest.raises(ConfigError, match=r"x.jsonl: output_file: its folder is not"):
        prompts("--prompt_file", "p.jsonl", "--output_file", "no/x.jsonl")
    Path("out.jsonl").unlink()
    Path("P.v2.TXT").write_text("the\n")
    prompts("--prompt_file", "P.v2.TXT")
    flags = ("--prompt_file", "p.jsonl", "--output_file", "out.jsonl")
    assert prompts(*flags, "--per_device_eval_batch_size", 5) == found
    prompts("--prompt_file", "p.jsonl")
    assert (
        f"\n{found[0]['prompt']}{found[0]['completion']}\n" in capsys.readouterr().out
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_texts_that_are_written_are_not_lost(
    prompts: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The sixth batch of eight fails; four are a window, which is written whole."""
    Path("p.txt").write_text("\n".join([*tiny.sentences(14, words=3), "the", "a"]))
    flags = ("--prompt_file", "p.txt", "--per_device_eval_batch_size", 2)
    flags += ("--temperature", 1, "--num_return_sequences", 2, "--num_threads", 1)
    write, batches = generate.write, iter(range(99))

    def failing(*args: Any) -> Any:
        if args[2].max_new_tokens == 6 and next(batches) == 5:
            raise error
        return write(*args)

    sampled = functools.partial(prompts, *flags, sample="true")
    with monkeypatch.context() as during:
        during.setattr(generate, "write", failing)
        with pytest.raises(type(error)):
            sampled("--output_file", "out.jsonl")
    assert (
        "stopped    the same command goes on after 16 rows" in capsys.readouterr().out
    )
    assert len(process.read_jsonl(Path("out.jsonl.part"))) == 16
    with pytest.raises(
        CheckpointError, match="made with other arguments; give the same"
    ):
        sampled("--output_file", "out.jsonl", "--top_k", 7)
    found = sampled("--output_file", "out.jsonl")
    said = capsys.readouterr().out
    assert "going on   after 16 texts, which are there already" in said
    assert "output     out.jsonl, 32 texts" in said
    assert not [*Path().glob("*.part*")]
    Path("out.jsonl").unlink()
    assert sampled("--output_file", "out.jsonl") == found
    assert len({row["completion"] for row in found}) > 16


def test_standard_input_is_a_prompt(prompts: Any, capsys: Any) -> None:
    prompts("--prompt", "-", stdin="the film\n  was né\n".encode())
    assert "\nthe film\n  was né" in capsys.readouterr().out
    for stdin, said in ((b"\n", "is empty"), (b"\xff", "not UTF-8")):
        with pytest.raises(DataError, match=f"-: .*{said}"):
            prompts("--prompt", "-", stdin=stdin)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--prompt_file", "p", "--prompt", "a"), "prompt_file and prompt exclude"),
        (("--prompt_file", "p", "--do_train"), "prompt_file and training or evalua"),
        (("--prompt", "a", "--output_file", "o"), "output_file needs prompt_file"),
        (
            ("--prompt", "-", "--do_train", "--train_file", "-"),
            "prompt and a file are both standard input",
        ),
    ],
)
def test_ways_to_give_prompts_that_exclude_each_other(
    prompts: Any, flags: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        prompts(*flags)
