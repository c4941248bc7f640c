"""A stream gives the blocks that reading everything first would give."""

import gzip
import json
import os
from dataclasses import replace
from itertools import islice

import pytest
import tiny
from datasets import Dataset, IterableDataset, Value
from torch.utils.data import DataLoader

from llmft.config.fields import LanguageModelingDataArguments
from llmft.config.parse import parse
from llmft.data.read import rows as rows_module
from llmft.data.read.columns import Columns
from llmft.data.read.files import Reading
from llmft.data.read.rows import streamed_files
from llmft.data.split import splits as splits_module
from llmft.data.split.splits import load_splits
from llmft.data.tokens import encode, stream
from llmft.data.tokens.examples import lm_blocks
from llmft.data.tokens.stream import Stream, held_out
from llmft.errors import ConfigError, DataError, LeakageError, LlmftError
from llmft.process import as_fault

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


def rows_of(file):
    return streamed_files(str(file), Columns(), Reading())


def blocks_of(args, tokenizer, seed=1, skip=0, **given):
    rows = streamed_files(args.train_file, Columns(), Reading.of(args))
    return Stream(rows, args, tokenizer, seed, skip, **given)


@pytest.mark.parametrize("policy", ["pack", "row"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_same_blocks_as_read_before(file, wordpiece, bpe, policy, causal):
    args = arguments(file, block_policy=policy)
    tokenizer = bpe if causal else wordpiece
    parts = load_splits(args, 1, {"train"}).parts
    expected = lm_blocks(parts["train"], tokenizer, args, "train", end_documents=causal)
    blocks = blocks_of(args, tokenizer, end_documents=causal)
    # A stream does not know the number of a row in its file.
    assert {*blocks.column_names, "documents"} == {*expected.column_names}
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
    (block,) = blocks_of(arguments(tmp_path / "a.txt"), wordpiece)
    assert block["input_ids"].tolist() == wordpiece("a film")["input_ids"]


def test_rows_held_out_are_left_out(file, wordpiece):
    source = held_out(rows_of(file), 7)
    assert source.dataset["text"][:] == TEXTS[:7]
    assert source.place(6) == f"{file}:8"
    assert source.notes == ["the first 7 rows, which training leaves out"]
    args = arguments(file, block_policy="row")
    first = next(iter(blocks_of(args, wordpiece, skip=7)))
    assert first["input_ids"].tolist() == wordpiece(TEXTS[7])["input_ids"][:SIZE]


def test_blocks_are_shuffled_by_seed_and_epoch(file, wordpiece):
    def rows(seed, epoch):
        blocks = blocks_of(arguments(file, buffer_size=50), wordpiece, seed)
        blocks.set_epoch(epoch)
        return [b["row"] for b in blocks]

    orders = {tuple(rows(s, e)) for s, e in [(1, 0), (1, 0), (1, 1), (2, 0)]}
    assert len(orders) == 3
    assert all(sorted(order) == list(range(len(order))) for order in orders)


def test_a_fault_is_named_when_it_is_reached(file, wordpiece):
    lines = file.read_text().split("\n")
    lines[2200] = '"a","b"'
    file.write_text("\n".join(lines))
    blocks = iter(blocks_of(arguments(file), wordpiece))
    assert len(list(islice(blocks, 100))) == 100
    with pytest.raises(DataError, match=r"texts\.csv:2201: 2 fields; expected 1"):
        list(blocks)


def test_a_fault_in_a_worker_is_one_line(file, wordpiece):
    file.write_text(file.read_text() + '"a","b"\n')
    blocks = blocks_of(arguments(file), wordpiece)
    with pytest.raises(DataError) as caught:
        list(DataLoader(blocks, batch_size=None, num_workers=1))
    said = str(as_fault(caught.value))
    line = f"{file}:{len(TEXTS) + 2}: 2 fields; expected 1 as in the header"
    assert said.startswith(f"DataFormatError: {line}")
    assert "Traceback" not in said


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_file_that_changes_between_two_epochs(file, wordpiece, change):
    blocks = blocks_of(arguments(file), wordpiece)
    list(blocks)
    if change == "content":
        file.write_text("text\nanother\n")
    else:
        os.utime(file, (1, 1))
    with pytest.raises(DataError, match="the file changed since the run began"):
        list(blocks)


def test_nothing_left_is_an_error(tmp_path, wordpiece):
    (tmp_path / "a.txt").write_text("a film\n")
    blocks = blocks_of(arguments(tmp_path / "a.txt"), wordpiece, skip=1)
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
    # The same rows where a trained model is evaluated later.
    splits = load_splits(args, 1, {"validation"})
    assert splits.parts["validation"]["text"][:] == TEXTS[:5]
    assert splits.rows is None


def test_what_does_not_go_with_a_stream():
    from llmft.config.fields import ModelArguments

    def problems(flags):
        with pytest.raises(ConfigError) as caught:
            parse(
                f"--do_train --streaming {flags}".split(),
                ModelArguments,
                LanguageModelingDataArguments,
                description="x",
                metrics={"loss": False},
            )
        return caught.value.problems

    found = problems("--train_file - --max_train_samples 5 --split_group_column g")
    assert found == (
        "streaming needs max_steps or time_limit: the length of a pass is not known",
        "streaming reads its file again: not from - (standard input)",
        "streaming does not know all rows: leave max_train_samples, split_group_column"
        " out",
    )
    assert problems("--max_steps 1 --dataset_name pypi:rotten-tomatoes") == (
        "streaming reads files or the hub, not pypi:",
    )
    flags = "--dataloader_num_workers 1 --dataloader_persistent_workers"
    flags += " --validation_split_percentage 0 --train_file a.txt --max_steps 1"
    assert problems(flags) == (
        "streaming with dataloader_persistent_workers has the same order in every"
        " epoch",
        "streaming sets rows aside, max_eval_samples, and no"
        " validation_split_percentage",
    )


def test_a_file_that_is_all_held_out(file, tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError) as caught:
        held_out(rows_of(tmp_path / "a.txt"), 2)
    assert "all of its 2 rows are held out for validation" in str(caught.value)
    assert "lower --max_eval_samples, or give --validation_file" in str(caught.value)


def test_what_is_left_out_is_said_after_a_pass(tmp_path, wordpiece, capsys):
    rows = '{"text": "a film"}\n\n{"txt": "b"}\n{"text": "good"}\n'
    (tmp_path / "a.jsonl").write_text(rows)
    args = arguments(tmp_path / "a.jsonl", max_bad_rows=1, block_policy="row")
    assert len(list(blocks_of(args, wordpiece))) == 2
    said = capsys.readouterr().err
    assert "a.jsonl: 1 empty line passed over; 1 bad row left out (" in said


def test_what_is_left_of_the_last_block_is_told_once(file, wordpiece, capsys):
    blocks = blocks_of(arguments(file), wordpiece)
    taken = sum(len(block["input_ids"]) for block in blocks)
    blocks.set_epoch(1)
    list(blocks)
    whole = sum(len(ids) for ids in wordpiece(TEXTS)["input_ids"])
    assert capsys.readouterr().err == (
        f"llmft: warning: {file}: {whole - taken} tokens of the last partial block left"
        " out, in every epoch\n"
    )


def test_a_validation_on_the_stream_itself_is_leakage(file):
    other = f"{file.parent}/../{file.parent.name}/{file.name}"
    args = arguments(file, streaming=True, validation_file=other)
    with pytest.raises(
        LeakageError, match="validation is read from what is trained on"
    ):
        load_splits(args, 1, {"train", "validation"})
    allowed = replace(args, allow=["leakage"])
    splits = load_splits(allowed, 1, {"train", "validation"})
    assert "not looked for in train" in splits.provenance["validation"]["notes"][-1]


def test_books_are_tokenized_a_few_at_once(tmp_path, wordpiece, monkeypatch):
    books = tiny.sentences(30, words=40)
    (tmp_path / "a.txt").write_text("\n".join(books))
    monkeypatch.setattr(stream, "CHARACTERS", 300)
    sizes, real = [], encode.encode_batch

    def counted(batch, *args):
        sizes.append(sum(map(len, batch["text"])))
        return real(batch, *args)

    monkeypatch.setattr(encode, "encode_batch", counted)
    args = arguments(tmp_path / "a.txt", block_policy="row")
    assert sum(len(b["input_ids"]) for b in blocks_of(args, wordpiece)) == (
        sum(map(len, wordpiece(books)["input_ids"]))
    )
    assert len(sizes) > 5
    assert max(sizes) < 300 + max(map(len, books))


def test_a_guessed_encoding_is_said(tmp_path, wordpiece, capsys):
    (tmp_path / "a.txt").write_bytes("schön und süß\n".encode("cp1252") * 9)
    args = arguments(tmp_path / "a.txt", encoding="auto")
    assert list(blocks_of(args, wordpiece))
    assert "a.txt: looks like cp1252, read so" in capsys.readouterr().err


def hub_rows(data):
    return rows_module.hub_rows("owner/films[train]", Columns(), data, "a")


def test_rows_left_out_are_told_where_a_pass_is_not_ended(tmp_path, capsys):
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[30:30] = ['{"text": 5}', "nope"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = streamed_files(str(tmp_path / "a.jsonl"), Columns(), Reading(max_bad_rows=2))
    for count, said in ((20, ""), (100, "2 bad rows left out")):
        passing = iter(rows)
        assert len(list(islice(passing, count))) == count
        passing.close()
        assert said in capsys.readouterr().err


def test_a_split_of_the_hub_that_is_trained_on(monkeypatch):
    data = Dataset.from_dict({"text": TEXTS})
    found = {"train": data, "test": data}
    monkeypatch.setattr(
        splits_module.hub_data, "load_dataset_dict", lambda *args: (found, "default a")
    )
    args = LanguageModelingDataArguments(
        dataset_name="owner/films", streaming=True, validation_split_name="train"
    )
    with pytest.raises(
        LeakageError, match=r"films\[train\]: validation is read from w"
    ):
        load_splits(args, 1, {"train", "validation"})
    splits = load_splits(
        replace(args, max_eval_samples=3, validation_split_name="test"),
        *(1, {"train", "validation"}),
    )
    assert splits.provenance["validation"]["notes"] == [
        "the first 3 rows of more; --max_eval_samples N takes N",
        "its texts are not looked for in train, which is a stream",
    ]


@pytest.mark.parametrize("lazy", [False, True])
def test_rows_of_the_hub(lazy, wordpiece):
    data = Dataset.from_dict({"text": TEXTS, "id": range(len(TEXTS))})
    rows = hub_rows(data.to_iterable_dataset() if lazy else data)
    for _ in range(2):
        found = list(rows)
        assert [values["text"] for values in found] == TEXTS
        assert [values["line"] for values in found] == list(range(1, len(TEXTS) + 1))
    source = held_out(rows, 7)
    assert source.place(6) == "owner/films[train]:7"
    args = arguments("none", block_policy="row")
    first = next(iter(Stream(rows, args, wordpiece, 1, 7)))
    assert first["input_ids"].tolist() == wordpiece(TEXTS[7])["input_ids"][:SIZE]


def test_a_bad_row_of_the_hub(capsys):
    """It ends the pass before more is fetched, or is left out, counted."""
    fetched = []

    def texts():
        for i, text in enumerate([*TEXTS[:1001], None, *TEXTS, *TEXTS]):
            fetched.append(i)
            yield {"text": text}

    rows = hub_rows(IterableDataset.from_generator(texts))
    with pytest.raises(DataError) as caught:
        list(rows)
    assert str(caught.value) == (
        "SchemaError owner/films[train]:1002: 'text' is None (NoneType); expected text"
        " in every row; --max_bad_rows N leaves bad rows out"
    )
    assert len(fetched) <= 2000
    found = [v["text"] for v in replace(rows, max_bad_rows=1)]
    assert found == [*TEXTS[:1001], *TEXTS, *TEXTS]
    said = capsys.readouterr().err
    assert "owner/films[train]: 1 bad row left out (owner/films[train]:1002)" in said


def test_the_columns_of_the_hub():
    data = Dataset.from_dict({"title": [None] * 1500, "body": ["x"] * 1500})
    data = data.cast_column("title", Value("string"))
    for lazy in (data, data.to_iterable_dataset()):
        with pytest.raises(DataError, match="cannot tell the text column among 'title"):
            list(hub_rows(lazy))
        rows = replace(hub_rows(lazy), columns=Columns("body"))
        assert {v["text"] for v in rows} == {"x"}
        unused = "columns not used: 'title'"
        assert rows.column_notes() == ["text = 'body'", unused]
    rows = hub_rows(IterableDataset.from_generator(lambda: iter(data)))  # of JSON
    rows = replace(rows, columns=Columns("body"))
    assert rows.column_notes() == ["text = 'body'", unused]
    assert {v["text"] for v in rows} == {"x"}
    talks = Dataset.from_list([{"messages": [{"role": "user", "content": "x"}]}])
    rows = replace(hub_rows(talks), columns=Columns(chat=True))
    with pytest.raises(ConfigError, match="and the data are messages: leave --stream"):
        list(rows)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ValueError("Couldn't cast\narray of type x"),
            "DataError owner/films[train]: cannot be read after 1,000 rows: Couldn't"
            " cast array of type x",
        ),
        (
            EOFError("Compressed file ended"),
            "DataError owner/films[train]: cannot be read after 1,000 rows: Compressed"
            " file ended",
        ),
        (
            ConnectionError("the line is dead"),
            "EnvironmentFault owner/films[train]: the hub failed after 1,000 rows (the"
            " line is dead); try again, or --resume_from_checkpoint",
        ),
    ],
)
def test_a_hub_that_fails_on_the_way(error, said):
    def texts():
        yield from ({"text": text} for text in TEXTS[:1500])
        raise error

    with pytest.raises(LlmftError) as caught:
        list(hub_rows(IterableDataset.from_generator(texts)))
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "ending", ["csv", "jsonl", "txt", "utf16.txt", "txt.gz", "json"]
)
@pytest.mark.parametrize("policy", ["pack", "row"])
def test_a_stream_goes_on_behind_any_block(ending, policy, tmp_path, wordpiece):
    """Lines that stand before are passed over, of two files of 2,000 rows."""
    texts = [f"{text} {i}" for i, text in enumerate(tiny.sentences(4000, words=4))]
    texts[1500] = ""
    for name, part in (("a", texts[:2000]), ("b", texts[2000:])):
        lines = part
        if ending == "csv":
            lines = ["text", *(f'"{text}\n{text}"' for text in part if text)]
        elif ending == "jsonl":
            lines = [json.dumps({"text": text}) for text in part if text]
        elif ending == "json":  # a list on one line
            lines = [json.dumps([{"text": text} for text in part if text])]
        coded = "\n".join([*lines, ""]).encode("utf-16" if "16" in ending else "utf-8")
        packed = gzip.compress(coded) if ending.endswith("gz") else coded
        (tmp_path / f"{name}.{ending}").write_bytes(packed)
    args = arguments(f"{tmp_path}/*.{ending}", block_policy=policy, buffer_size=100)
    made = blocks_of(args, wordpiece, skip=3)
    whole = list(made.going_on())
    assert len(whole) > 2000
    for place in (0, 99, 100, 750, len(whole) - 2, len(whole) - 1):
        *window, within = whole[place][1]
        rest = list(made.going_on(window, within + 1))
        assert [where for _, where in rest] == [w for _, w in whole[place + 1 :]]
        for (found, _), (wanted, _) in zip(rest, whole[place + 1 :], strict=True):
            assert found["row"] == wanted["row"]
            assert found["input_ids"].tolist() == wanted["input_ids"].tolist()
