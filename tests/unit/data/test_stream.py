"""A stream gives the blocks that reading everything first would give."""

import os
from dataclasses import replace
from itertools import islice

import pytest
import tiny

from llmft.arguments import LanguageModelingDataArguments
from llmft.config import parse
from llmft.data import stream
from llmft.data.columns import Columns
from llmft.data.formats import Reading
from llmft.data.splits import load_splits
from llmft.data.stream import held_out, stream_blocks
from llmft.data.tokenize import lm_blocks
from llmft.errors import ConfigError, DataError, LeakageError

SIZE = 16
TEXTS = [*tiny.sentences(2300, words=5), *tiny.sentences(40, words=60), "", "a film"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("\n".join(["text", *(f'"{text}"' for text in TEXTS), ""]))
    return path


def arguments(file, **given):
    return LanguageModelingDataArguments(
        **{"train_file": str(file), "max_seq_length": SIZE, "buffer_size": 0} | given
    )


@pytest.mark.parametrize("policy", ["pack", "row"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_same_blocks_as_read_before(file, wordpiece, bpe, policy, causal):
    args = arguments(file, block_policy=policy)
    tokenizer = bpe if causal else wordpiece
    parts = load_splits(args, 1, {"train"}).parts
    expected = lm_blocks(parts["train"], tokenizer, args, "train", end_documents=causal)
    blocks = stream_blocks(args, tokenizer, 1, 0, end_documents=causal)
    assert blocks.column_names == expected.column_names
    assert {name for block in blocks for name in block} == {*blocks.column_names}
    for _ in range(2):  # it can be read again
        found = list(blocks)
        ids = [b["input_ids"].tolist() for b in found]
        assert ids == expected["input_ids"][:]
        assert [b["row"] for b in found] == list(range(len(expected)))
        if "seq_lengths" in expected.column_names:
            lengths = [b["seq_lengths"].tolist() for b in found]
            assert lengths == expected["seq_lengths"][:]


def test_less_than_a_block_is_a_block(tmp_path, wordpiece):
    (tmp_path / "a.txt").write_text("a film\n")
    (block,) = stream_blocks(arguments(tmp_path / "a.txt"), wordpiece, 1, 0)
    assert block["input_ids"].tolist() == wordpiece("a film")["input_ids"]


def test_rows_held_out_are_left_out(file, wordpiece):
    source = held_out(str(file), Columns(), Reading(), 7)
    assert source.dataset["text"][:] == TEXTS[:7]
    assert source.place(6) == f"{file}:8"
    assert source.notes == ["the first 7 rows, which training leaves out"]
    args = arguments(file, block_policy="row")
    first = next(iter(stream_blocks(args, wordpiece, 1, 7)))
    assert first["input_ids"].tolist() == wordpiece(TEXTS[7])["input_ids"][:SIZE]


def test_blocks_are_shuffled_by_seed_and_epoch(file, wordpiece):
    def rows(seed, epoch):
        blocks = stream_blocks(arguments(file, buffer_size=50), wordpiece, seed, 0)
        blocks.set_epoch(epoch)
        return [b["row"] for b in blocks]

    orders = {tuple(rows(s, e)) for s, e in [(1, 0), (1, 0), (1, 1), (2, 0)]}
    assert len(orders) == 3
    assert all(sorted(order) == list(range(len(order))) for order in orders)


def test_a_fault_is_named_when_it_is_reached(file, wordpiece):
    lines = file.read_text().split("\n")
    lines[2200] = '"a","b"'
    file.write_text("\n".join(lines))
    blocks = iter(stream_blocks(arguments(file), wordpiece, 1, 0))
    assert len(list(islice(blocks, 100))) == 100
    with pytest.raises(DataError, match=r"texts\.csv:2201: 2 fields; expected 1"):
        list(blocks)


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_file_that_changes_between_two_epochs(file, wordpiece, change):
    blocks = stream_blocks(arguments(file), wordpiece, 1, 0)
    list(blocks)
    if change == "content":
        file.write_text("text\nanother\n")
    else:
        os.utime(file, (1, 1))
    with pytest.raises(DataError, match="the file changed since the run began"):
        list(blocks)


def test_nothing_left_is_an_error(tmp_path, wordpiece):
    (tmp_path / "a.txt").write_text("a film\n")
    blocks = stream_blocks(arguments(tmp_path / "a.txt"), wordpiece, 1, skip=1)
    with pytest.raises(DataError, match="0 tokens to train on"):
        list(blocks)


def test_the_splits_beside_a_stream(file, tmp_path, capsys):
    (tmp_path / "v.csv").write_text("text\none\ntwo\n")
    args = arguments(file, streaming=True, max_eval_samples=5)
    splits = load_splits(args, 1, {"train", "validation"})
    assert splits.parts["validation"]["text"][:] == TEXTS[:5]
    assert (splits.skip, list(splits.parts)) == (5, ["validation"])
    assert splits.provenance["train"]["rows"] is None
    assert "read and tokenized on the way" in capsys.readouterr().out
    given = arguments(file, streaming=True, validation_file=str(tmp_path / "v.csv"))
    splits = load_splits(given, 1, {"train", "validation"})
    assert splits.parts["validation"]["text"][:] == ["one", "two"]
    assert splits.skip == 0
    with pytest.raises(ConfigError, match="no test data: give --test_file"):
        load_splits(args, 1, {"train", "test"})


def test_what_does_not_go_with_a_stream():
    from llmft.arguments import ModelArguments

    flags = "--do_train --streaming --train_file - --max_train_samples 5"
    with pytest.raises(ConfigError) as caught:
        parse(
            flags.split(),
            ModelArguments,
            LanguageModelingDataArguments,
            description="x",
            metrics={"loss": False},
        )
    assert len(caught.value.problems) == 3
    assert "streaming needs max_steps" in str(caught.value)


def test_a_file_that_is_all_held_out(file, tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError) as caught:
        held_out(str(tmp_path / "a.txt"), Columns(), Reading(), 2)
    assert "all of its 2 rows are held out for validation" in str(caught.value)
    assert "lower --max_eval_samples, or give --validation_file" in str(caught.value)


def test_what_is_left_out_is_said_after_a_pass(tmp_path, wordpiece, capsys):
    rows = '{"text": "a film"}\n\n{"txt": "b"}\n{"text": "good"}\n'
    (tmp_path / "a.jsonl").write_text(rows)
    args = arguments(tmp_path / "a.jsonl", max_bad_rows=1, block_policy="row")
    assert len(list(stream_blocks(args, wordpiece, 1, 0))) == 2
    said = capsys.readouterr().err
    assert "a.jsonl: 1 empty lines passed over; 1 bad rows left out (" in said


def test_a_validation_on_the_stream_itself_is_leakage(file):
    args = arguments(file, streaming=True, validation_file=str(file))
    with pytest.raises(LeakageError, match="validation is read from the file that is"):
        load_splits(args, 1, {"train", "validation"})
    allowed = replace(args, allow=["leakage"])
    splits = load_splits(allowed, 1, {"train", "validation"})
    assert "not looked for in train" in splits.provenance["validation"]["notes"][-1]


def test_books_are_tokenized_a_few_at_once(tmp_path, wordpiece, monkeypatch):
    books = tiny.sentences(30, words=40)
    (tmp_path / "a.txt").write_text("\n".join(books))
    monkeypatch.setattr(stream, "CHARACTERS", 300)
    sizes, real = [], stream.encode_batch

    def counted(batch, *args):
        sizes.append(sum(map(len, batch["text"])))
        return real(batch, *args)

    monkeypatch.setattr(stream, "encode_batch", counted)
    args = arguments(tmp_path / "a.txt", block_policy="row")
    assert sum(len(b["input_ids"]) for b in stream_blocks(args, wordpiece, 1, 0)) == (
        sum(map(len, wordpiece(books)["input_ids"]))
    )
    assert len(sizes) > 5
    assert max(sizes) < 300 + max(map(len, books))


def test_a_guessed_encoding_is_said(tmp_path, wordpiece, capsys):
    (tmp_path / "a.txt").write_bytes("schön und süß\n".encode("cp1252") * 9)
    args = arguments(tmp_path / "a.txt", encoding="auto")
    assert list(stream_blocks(args, wordpiece, 1, 0))
    assert "a.txt: looks like cp1252, read so" in capsys.readouterr().err
