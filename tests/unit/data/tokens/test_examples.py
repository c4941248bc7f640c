"""Blocks hold every token of the texts, and the cache never shows an old text."""

import copy
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
import tiny
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from llmft.config.fields import (
    ClassificationDataArguments,
    LanguageModelingDataArguments,
)
from llmft.data.read.labels import MULTI, SINGLE, LabelNames
from llmft.data.read.store import Source
from llmft.data.tokens import encode as encode_module
from llmft.data.tokens.encode import tokenizer_fingerprint
from llmft.data.tokens.examples import (
    classification_features,
    lm_blocks,
    unknown_by_text,
)
from llmft.errors import DataError, LabelError
from llmft.sources import catalog

SIZE = 16
TEXTS = [
    *tiny.sentences(30),
    "",
    "a film",
    *tiny.sentences(3, words=60),
    " ",
    "é 漢 👩\u200d💻",
]
CLS, SEP = 2, 3  # of the wordpiece tokenizer
EOS = 0  # of the bpe tokenizer


def dataset(texts, **columns):
    return Dataset.from_dict({"text": texts, **columns})


def blocks(texts, tokenizer, policy="pack", end_documents=False, **given):
    args = LanguageModelingDataArguments(
        **{"max_seq_length": SIZE, "block_policy": policy} | given
    )
    return lm_blocks(
        dataset(texts), tokenizer, args, "train", end_documents=end_documents
    )


def one_by_one(texts, tokenizer, end=()):
    """Ids of each text on its own, by the backend alone, with ``end`` behind it."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    return [[*backend.encode(text).ids, *end] for text in texts]


@pytest.fixture
def calls(monkeypatch):
    """Counts the texts that go through a tokenizer."""
    seen, real = [], encode_module.encode_batch

    def counted(batch, *args):
        seen.extend(batch["text"])
        return real(batch, *args)

    monkeypatch.setattr(encode_module, "encode_batch", counted)
    return seen


def test_pack_is_the_plain_concatenation(wordpiece, capsys):
    documents = one_by_one(TEXTS, wordpiece)
    assert all(ids[0] == CLS and ids[-1] == SEP for ids in documents)
    tokens = list(chain(*documents))
    whole = len(tokens) // SIZE
    made = blocks(TEXTS, wordpiece)
    assert [len(block) for block in made["input_ids"]] == [SIZE] * whole
    assert list(chain(*made["input_ids"])) == tokens[: whole * SIZE]
    assert made["row"][:] == list(range(whole))
    left = len(tokens) - whole * SIZE
    assert left > 0
    assert capsys.readouterr().out == (
        f"  train      {len(tokens):,} tokens in {whole} blocks of up to {SIZE};"
        f" {left} tokens of the last partial block left out; 2 documents without a"
        " token; 2 unknown tokens ([UNK]); 1 text loses accents\n"
    )


def test_documents_of_a_causal_model_end_with_eos(bpe):
    """Also the empty one; and one that has its eos already gets no second."""
    texts = [*TEXTS, "a film<|endoftext|>", "", "the end"]
    documents = one_by_one(texts, bpe, end=[EOS])
    documents[-3].pop()
    tokens = list(chain(*documents))
    assert tokens.count(EOS) == len(texts)
    made = blocks(texts, bpe, end_documents=True)
    assert list(chain(*made["input_ids"])) == tokens[: len(tokens) // SIZE * SIZE]
    without = list(chain(*blocks(texts, bpe)["input_ids"]))
    plain = list(chain(*one_by_one(texts, bpe)))
    assert without == plain[: len(plain) // SIZE * SIZE]


@pytest.mark.parametrize("end_documents", [False, True])
def test_row_starts_a_block_with_each_document(bpe, capsys, end_documents):
    documents = one_by_one(TEXTS, bpe, end=[EOS] if end_documents else [])
    expected = [
        ids[start : start + SIZE]
        for ids in documents
        for start in range(0, len(ids), SIZE)
    ]
    made = blocks(TEXTS, bpe, "row", end_documents)
    assert made["input_ids"][:] == expected
    assert list(chain(*made["input_ids"])) == list(chain(*documents))
    assert made["row"][:] == list(range(len(expected)))
    tokens = sum(map(len, documents))
    assert capsys.readouterr().out == (
        f"  train      {tokens:,} tokens in {len(expected)} blocks of up to {SIZE};"
        " 1 document without a token\n"
    )


@pytest.mark.parametrize("policy", ["pack", "row"])
@pytest.mark.parametrize("end_documents", [False, True])
def test_a_block_knows_its_documents(bpe, policy, end_documents):
    """The first and the last that it has tokens of, by counting them one by one."""
    texts = [*TEXTS, "", *tiny.sentences(9, words=30)]
    found = blocks(texts, bpe, policy, end_documents)
    rows = one_by_one(texts, bpe, [EOS] if end_documents else [])
    owners = [i for i, ids in enumerate(rows) for _ in ids]
    start = 0
    for ids, documents in zip(found["input_ids"], found["documents"], strict=True):
        of_block = owners[start : start + len(ids)]
        assert documents == [of_block[0], of_block[-1]]
        start += len(ids)
    assert len(found) > 20


def test_row_at_the_edge_of_a_block(wordpiece):
    texts = [" ".join(["film"] * n) for n in (SIZE - 2, SIZE - 1, 2 * SIZE - 2, 1)]
    lengths = [len(block) for block in blocks(texts, wordpiece, "row")["input_ids"]]
    assert lengths == [SIZE, SIZE, 1, SIZE, SIZE, 3]


@pytest.mark.parametrize("policy", ["pack", "row"])
def test_less_than_a_block_is_kept(wordpiece, capsys, policy):
    made = blocks(["a film"], wordpiece, policy)
    assert made["input_ids"][:] == one_by_one(["a film"], wordpiece)
    assert "4 tokens in 1 block of up to 16" in capsys.readouterr().out


def test_exactly_one_block(wordpiece):
    text = " ".join(["film"] * (SIZE - 2))
    assert blocks([text], wordpiece)["input_ids"][:] == one_by_one([text], wordpiece)


@pytest.mark.parametrize("end_documents", [False, True])
@pytest.mark.parametrize("policy", ["pack", "row"])
def test_no_tokens(bpe, policy, end_documents):
    with pytest.raises(DataError, match="train has no tokens; expected text"):
        blocks(["", ""], bpe, policy, end_documents)


@pytest.mark.parametrize("policy", ["pack", "row"])
def test_special_tokens_alone_are_no_text(wordpiece, policy):
    with pytest.raises(DataError, match="train has no tokens; expected text"):
        blocks(["", " \n", "\u200b\x00"], wordpiece, policy)


def test_blocks_of_one_token_predict_nothing(bpe):
    with pytest.raises(DataError, match="train has a single token in a block; expect"):
        blocks(["a", "b"], bpe, "row")
    assert len(blocks(["a", "b"], bpe, "row", end_documents=True)) == 2


def test_offsets_have_room_for_more_than_two_to_the_31_tokens(bpe):
    made = blocks(TEXTS, bpe)
    assert made.data.schema.field("input_ids").type == pa.large_list(pa.int32())


def test_a_first_batch_of_empty_texts_is_no_trouble(bpe):
    made = blocks([""] * 1500 + ["a film"], bpe, "row")
    assert made["input_ids"][:] == one_by_one(["a film"], bpe)


def test_the_second_call_takes_the_cache(bpe, calls):
    first = blocks(TEXTS, bpe)["input_ids"][:]
    assert calls == TEXTS
    files = {p: p.stat().st_mtime_ns for p in catalog.cache_home().rglob("tokens")}
    assert [p.parent.parent.name for p in files] == ["tokenized"]
    assert blocks(TEXTS, bpe)["input_ids"][:] == first
    assert blocks(TEXTS, bpe, max_seq_length=8, policy="row")["row"][:]
    assert calls == TEXTS  # neither length nor policy takes the tokenizer again
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert blocks(TEXTS, bpe, overwrite_cache=True)["input_ids"][:] == first
    assert len(calls) == 2 * len(TEXTS)


def noise(raw):
    half = len(raw) // 2
    return raw[:half] + b"\1" * 8 + raw[half + 8 :]


@pytest.mark.parametrize("name", ["tokens", "lengths.npy", "facts.json"])
@pytest.mark.parametrize(
    "change",
    [
        *(lambda raw: b"", lambda raw: raw[: len(raw) // 2], noise),
        lambda raw: b'{"xxh3": []}',
    ],
)
def test_a_damaged_cache_is_made_anew(bpe, capsys, change, name):
    first = blocks(TEXTS, bpe)["input_ids"][:]
    (path,) = catalog.cache_home().rglob(name)
    path.write_bytes(change(path.read_bytes()))
    capsys.readouterr()
    assert blocks(TEXTS, bpe)["input_ids"][:] == first
    warned = capsys.readouterr().err
    assert "llmft: warning: " in warned
    assert f"{path.parent.name}: damaged (" in warned
    assert "); tokenizing train again" in warned
    assert blocks(TEXTS, bpe)["input_ids"][:] == first
    assert "damaged" not in capsys.readouterr().err


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], noise])
def test_damaged_types_of_pairs_are_made_anew(wordpiece, capsys, change):
    """They say what is learnt of a completion, and which text of a pair a token is."""
    data = dataset(["a film", "good"], text_pair=["a dull story", "bad"])
    first = encode_module.encode(data, wordpiece, "train").types.tolist()
    assert first == [0] * 4 + [1] * 4 + [0] * 3 + [1] * 2
    (path,) = catalog.cache_home().rglob("types")
    path.write_bytes(change(path.read_bytes()))
    assert encode_module.encode(data, wordpiece, "train").types.tolist() == first
    assert "damaged (" in capsys.readouterr().err


def test_two_processes_may_tokenize_the_same_at_once(bpe, monkeypatch):
    """One finishes while the other is at work; each has its own file until then."""
    expected = list(chain(*one_by_one(TEXTS, bpe)))
    real, inner = encode_module.encode_batch, []

    def interrupted(*args):
        if not inner:
            inner.append(None)
            inner[0] = list(chain(*blocks(TEXTS, bpe, "row")["input_ids"]))
        return real(*args)

    monkeypatch.setattr(encode_module, "encode_batch", interrupted)
    outer = list(chain(*blocks(TEXTS, bpe, "row")["input_ids"]))
    assert outer == inner[0] == expected
    (folder,) = (catalog.cache_home() / "tokenized").iterdir()
    assert sorted(p.name for p in folder.iterdir()) == [
        *("facts.json", "lengths.npy", "tokens", "types")
    ]


@pytest.mark.parametrize(
    "changed",
    [
        [*TEXTS[:-1], TEXTS[-1] + "."],
        [TEXTS[1], TEXTS[0], *TEXTS[2:]],
        TEXTS[:-1],
        [TEXTS[0] + TEXTS[1], "", *TEXTS[2:]],
    ],
)
def test_a_changed_text_is_seen(bpe, calls, changed):
    blocks(TEXTS, bpe)
    made = blocks(changed, bpe, "row")["input_ids"]
    assert calls == TEXTS + changed
    assert list(chain(*made)) == list(chain(*one_by_one(changed, bpe)))


def test_another_tokenizer_is_seen(bpe, wordpiece):
    assert blocks(["a film"], bpe)["input_ids"][:] == one_by_one(["a film"], bpe)
    made = blocks(["a film"], wordpiece)["input_ids"][:]
    assert made == one_by_one(["a film"], wordpiece)


PAIRS = ["of it", "", "x " * 40, "caf\u00e9 [SEP] </s>", "\U0001f44d \u4e2d\u6587"]


@pytest.mark.parametrize("pairs", [None, PAIRS])
@pytest.mark.parametrize("end", [None, 3])
@pytest.mark.parametrize("split", [False, True])
def test_ids_are_those_of_a_call_of_the_tokenizer(wordpiece, bpe, pairs, end, split):
    """Also where it was used with truncation and padding before."""
    texts = ["", "the film " * 30, "[MASK] <|endoftext|> x", "\u00e9\u0301 \0\n", "a"]
    for tokenizer in map(copy.deepcopy, (wordpiece, bpe)):
        tokenizer(texts, truncation=True, max_length=4, padding=False)
        tokenizer.split_special_tokens = split
        batch = {"text": texts} | ({"text_pair": pairs} if pairs else {})
        ids, lengths, types = encode_module.encode_batch(batch, tokenizer, end)
        made = tokenizer(texts, pairs, return_token_type_ids=True)
        wanted = [row + [end] * (end is not None) for row in made["input_ids"]]
        wanted = [w[:-1] if w[-2:] == [end, end] else w for w in wanted]
        assert [x.tolist() for x in np.split(ids, np.cumsum(lengths)[:-1])] == wanted
        if pairs:
            assert types.tolist() == list(chain(*made["token_type_ids"]))
        else:
            assert types is None


def test_a_tokenizer_that_adds_something_of_its_own_is_called(wordpiece):
    class Own(type(wordpiece)):
        def __call__(self, texts, *args, **options):
            return super().__call__([f"{t} film" for t in texts], *args, **options)

    own = copy.deepcopy(wordpiece)
    own.__class__ = Own
    ids = encode_module.encode_batch({"text": ["a"]}, own)[0]
    assert ids.tolist() == wordpiece("a film")["input_ids"]


def test_workers_give_the_same(bpe):
    many = blocks(TEXTS, bpe, preprocessing_num_workers=2)["input_ids"][:]
    assert many == blocks(TEXTS, bpe)["input_ids"][:]


def test_the_fingerprint_does_not_change_with_use(wordpiece, bpe, tmp_path):
    wordpiece.save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a film " * 9, "x"], truncation=True, max_length=4, padding=True)
    assert tokenizer_fingerprint(tokenizer) == before
    assert len(tokenizer("a film " * 9)["input_ids"]) == 20
    other = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert tokenizer_fingerprint(other) == before
    tokenizer.add_tokens(["newword"])
    assert tokenizer_fingerprint(tokenizer) != before
    assert tokenizer_fingerprint(copy.deepcopy(bpe)) != before


def warned(said):
    """What was warned of, without the bars of datasets."""
    start = "llmft: warning: "
    lines = said.err.splitlines()
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


def features(texts, tokenizer, labels=None, kind=SINGLE):
    columns = {} if labels is None else {"label": labels}
    data = dataset(texts, **columns)
    places = {"file": [0] * len(data), "line": list(range(2, len(data) + 2))}
    for name, values in places.items():
        data = data.add_column(name, values)
    return classification_features(
        Source(data, "a.csv", files=("a.csv",), problem_type=kind),
        tokenizer,
        ClassificationDataArguments(max_seq_length=SIZE),
        "test",
        LabelNames(("neg", "pos"), kind),
    )


def test_long_texts_are_cut_and_counted(wordpiece, capsys):
    texts = [" ".join(["film"] * n) for n in (3, 14, 15, 40)]
    made = features(texts, wordpiece, ["pos", "neg", "neg", "pos"])
    whole = one_by_one(texts, wordpiece)
    assert [len(ids) for ids in whole] == [5, 16, 17, 42]
    expected = [ids if len(ids) <= SIZE else [*ids[:15], SEP] for ids in whole]
    assert made["input_ids"][:] == expected
    assert made["length"][:] == [5, 16, 16, 16]
    assert made["labels"][:] == [1, 0, 0, 1]
    assert capsys.readouterr().out == (
        "  test       53 tokens; lengths 50 % up to 16, 90 % up to 42, 99 % up to 42,"
        " longest 42; 2 texts cut to 16 tokens, 27 tokens left out (long_text auto)\n"
    )
    again = features(texts, wordpiece, ["pos", "neg", "neg", "pos"])
    assert again.to_dict() == made.to_dict()


def test_where_some_rows_have_a_label_it_is_looked_at_before_all_are_predicted(
    wordpiece,
):
    assert "labels" not in features(["a", "b"], wordpiece, [None, "pos"]).column_names
    with pytest.raises(LabelError, match=r"a\.csv:3.*'posi'"):
        features(["a", "b"], wordpiece, [None, "posi"])
    none = Dataset.from_dict({"label": ["x", None, None]}).select([1, 2])["label"][:]
    for kind in (SINGLE, MULTI):  # of those that were drawn, none has one
        assert "labels" not in features(["a", "b"], wordpiece, none, kind).column_names


def test_short_texts_without_labels(wordpiece, capsys):
    made = features(["a film", ""], wordpiece)
    assert made.column_names == ["input_ids", "length"]
    assert made["input_ids"][:] == [*one_by_one(["a film"], wordpiece), [CLS, SEP]]
    said = capsys.readouterr()
    assert said.out == (
        "  test       6 tokens; lengths 50 % up to 2, 90 % up to 4, 99 % up to 4,"
        " longest 4\n"
    )
    assert "llmft: warning: test: 1 text is empty, used all th" in said.err


def test_a_tokenizer_without_special_tokens_gives_an_empty_text_its_padding(capsys):
    """A row without any token has no place to classify."""
    tokenizer = tiny.bpe_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    made = features(["", "a film"], tokenizer)
    assert made["input_ids"][:] == [[EOS], *one_by_one(["a film"], tokenizer)]
    assert made["length"][:] == [1, len(made[1]["input_ids"])]
    said = "test: 1 text is empty, used as a single padding token"
    assert warned(capsys.readouterr()) == [said]


def test_unknown_tokens_are_counted(wordpiece, bpe, capsys):
    known, strange = tiny.sentences(10), ["\u6f22\u5b57\u6f22\u5b57 good"]
    features(known, wordpiece)
    said = capsys.readouterr()
    assert ("unknown" in said.out, warned(said)) == (False, [])
    features(known * 10 + strange, wordpiece)  # 4 in about 1,300
    said = capsys.readouterr()
    assert said.out.endswith("; 4 unknown tokens ([UNK])\n")
    assert warned(said) == []
    blocks([*known, *strange], wordpiece)
    said = capsys.readouterr()
    assert "; 4 unknown tokens ([UNK])\n" in said.out
    assert warned(said) == [
        "train: 2.9 % of the tokens are unknown to this model, which cannot tell them"
        " apart; choose one whose vocabulary was made for this language, or, for"
        " classify.py and generate.py, pypi:gemma-3-270m, which knows every character"
    ]
    assert catalog.get("pypi:gemma-3-270m")
    assert unknown_by_text(features([*known, *strange], wordpiece), wordpiece) == {
        len(known): 4
    }
    features(strange, wordpiece)
    assert "test: 80 % of the tokens are unknown" in capsys.readouterr().err
    blocks(strange, bpe)
    assert "unknown" not in "".join(capsys.readouterr())


def test_lost_accents_are_counted(wordpiece, bpe, capsys):
    texts = tiny.sentences(20)
    features([*texts, "caf\u00e9"], wordpiece)
    said = capsys.readouterr()
    assert (said.out[-23:], warned(said)) == ("; 1 text loses accents\n", [])
    blocks(["\u00fcber die gro\u00dfe Stra\u00dfe", "o\u0308l", "fein"], wordpiece)
    said = capsys.readouterr()
    assert "; 2 texts lose accents\n" in said.out
    accents = (
        "train: this tokenizer strips the accents that 2 of 3 texts have ('\u00fc',"
        " '\u0308'); choose a model that keeps them if words differ by them only"
    )
    assert accents in warned(said)
    blocks(["\u00fcber"], bpe)
    assert "accents" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "2", "2", "-1"], ("-1", "2", "10")),
        (["pos", "neg", "Pos"], ("Pos", "neg", "pos")),
        (["10", "2", "x"], ("10", "2", "x")),
        (["true", "false"], ("false", "true")),
        (["1", "01", "0"], ("0", "01", "1")),
        (["--1", "1"], ("--1", "1")),
        (["1.5", "10"], ("1.5", "10")),
        (["1" + "0" * 5000, "2"], ("1" + "0" * 5000, "2")),
    ],
)
def test_the_order_of_classes(labels, names):
    found = LabelNames.of(labels, ["similar_labels"])
    assert found.names == names
    assert found.ids(list(names), "train") == list(range(len(names)))


def test_one_class_is_an_error():
    with pytest.raises(DataError) as caught:
        LabelNames.of(["x"] * 1200)
    assert str(caught.value) == (
        "LabelError: all 1,200 training rows have the label 'x'; expected at least two"
        " classes; give rows of another class; --allow one_class trains all the same"
    )
    assert LabelNames.of(["x", "x"], ["one_class"]).names == ("x",)


def test_a_class_for_nearly_each_row_looks_like_an_id():
    ids = [*map(str, range(190)), *"ababababab"]
    with pytest.raises(DataError) as caught:
        LabelNames.of(ids)
    assert str(caught.value) == (
        "LabelError: 200 training rows have 192 classes, nearly one each: it looks like"
        " an id; expected classes of several rows; is --label_column_name right?"
        " --allow many_classes trains on them"
    )
    assert len(LabelNames.of(ids, ["many_classes"]).names) == 192


def test_labels_that_train_has_not(wordpiece):
    with pytest.raises(DataError) as caught:
        features(["a", "b", "c"], wordpiece, ["pos", "Neg", "??"])
    assert str(caught.value) == (
        "LabelError a.csv:3: test has labels that train has not: '??' (1 row), 'Neg'"
        " (1 row); known are 'neg', 'pos'; correct them, name other data, or add"
        " rows with them to train"
    )


def test_long_texts_come_in_small_batches(bpe, monkeypatch):
    """A tokenizer takes 30 times the memory of its texts: books come a few at once."""
    monkeypatch.setattr("llmft.data.tokens.encode.CHARACTERS", 300)
    sizes, real = [], encode_module.encode_batch

    def counted(batch, *args):
        sizes.append(sum(map(len, batch["text"])))
        return real(batch, *args)

    monkeypatch.setattr(encode_module, "encode_batch", counted)
    long = tiny.sentences(40)
    made = blocks(long, bpe, "row")["input_ids"]
    assert list(chain(*made)) == list(chain(*one_by_one(long, bpe)))
    assert len(sizes) > 5
    assert max(sizes) < 300 + max(map(len, long))


def test_what_else_changes_the_fingerprint(bpe):
    before = tokenizer_fingerprint(bpe)
    other = copy.deepcopy(bpe)
    other.split_special_tokens = True
    assert tokenizer_fingerprint(other) != before
    other = copy.deepcopy(bpe)
    other.pad_token = "x"
    assert tokenizer_fingerprint(other) != before
