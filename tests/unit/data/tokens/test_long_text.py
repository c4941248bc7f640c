"""Texts of more tokens than an example may have: cut, split or refused; and pairs."""

import numpy as np
import pytest
import tiny
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from llmft.config.fields import ClassificationDataArguments
from llmft.data.read.labels import MULTI, REGRESSION, SINGLE, LabelNames
from llmft.data.read.store import Source
from llmft.data.tokens import long_text
from llmft.data.tokens.examples import classification_features
from llmft.data.tokens.long_text import described
from llmft.errors import ConfigError, LengthError

SIZE = 16
CLS, SEP = 2, 3
WORDS = [3, 14, 15, 40, 29, 0]
TEXTS = [" ".join((tiny.WORDS[1:] * 2)[:n]) for n in WORDS]  # a token a word


def source(texts, **columns):
    places = {"file": [0] * len(texts), "line": list(range(2, len(texts) + 2))}
    return Source(
        Dataset.from_dict({"text": texts, **columns, **places}),
        *("a.csv", [], ("a.csv",)),
    )


def features(texts, tokenizer, labels=None, names=None, columns=None, **given):
    columns = columns or {}
    if labels is not None:
        columns["label"] = labels
    return classification_features(
        source(texts, **columns),
        tokenizer,
        ClassificationDataArguments(**{"max_seq_length": SIZE, **given}),
        "train",
        names or LabelNames(("neg", "pos")),
    )


@pytest.fixture
def bert(wordpiece):
    """A tokenizer of its own, which makes token types for pairs."""
    tokenizer = tiny.wordpiece_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


@pytest.mark.parametrize("stride", [0, 5, 13])
def test_a_text_is_split_into_windows(wordpiece, capsys, stride):
    labels = ["pos", "neg", "pos", "neg", "pos", "neg"]
    made = features(TEXTS, wordpiece, labels, long_text="split", stride=stride)
    room = SIZE - 2
    wanted, rows = [], []
    for i, text in enumerate(TEXTS):
        tokens = wordpiece(text, add_special_tokens=False)["input_ids"]
        start = 0
        while True:
            wanted.append([CLS, *tokens[start : start + room], SEP])
            rows.append(i)
            if start + room >= len(tokens):
                break
            start += room - stride
    assert made["input_ids"][:] == wanted
    assert made["row"][:] == rows
    assert made["labels"][:] == [1 - i % 2 for i in rows]
    assert made["length"][:] == [len(ids) for ids in wanted]
    count = len(rows) - 3
    said = f"; 3 texts split into {count} examples of up to 16 tokens\n"
    assert capsys.readouterr().out.endswith(said)


@pytest.mark.parametrize("how", ["split", "truncate"])
@pytest.mark.parametrize("paired", [False, True])
def test_long_texts_are_tokenized_a_few_at_once(bert, monkeypatch, how, paired):
    """The tokenizer takes 30 times the memory of what it is given."""
    columns = {"text_pair": [text[:9] for text in TEXTS]} if paired else {}
    given = {"columns": columns, "long_text": how, "stride": 3 * (how == "split")}
    whole = features(TEXTS, bert, **given).to_dict()
    monkeypatch.setattr(long_text, "_CHARACTERS", 60)
    sizes, real = [], type(bert).__call__

    def counted(self, texts, *args, **options):
        sizes.append(len(texts))
        return real(self, texts, *args, **options)

    monkeypatch.setattr(type(bert), "__call__", counted)
    assert features(TEXTS, bert, **given).to_dict() == whole
    assert len(sizes) > 1
    assert {*sizes} == {1}


def test_an_error_names_the_line_and_what_would_help(wordpiece):
    with pytest.raises(LengthError) as caught:
        features(TEXTS, wordpiece, long_text="error")
    assert str(caught.value) == (
        "LengthError a.csv:4: a text of 17 tokens; 2 more texts of train are longer;"
        " expected at most 16; raise --max_seq_length; or --long_text truncate cuts"
        " them, --long_text split makes several examples of each"
    )
    assert caught.value.exit_code == 3
    made = features(TEXTS[:2], wordpiece, long_text="error")
    assert made.column_names == ["input_ids", "length"]


def test_windows_that_cannot_be(wordpiece):
    with pytest.raises(ConfigError, match="stride is 14, expected less than 14: max_"):
        features(TEXTS, wordpiece, long_text="split", stride=14)


def test_lengths_are_described():
    lengths = np.arange(1, 201)
    said = "lengths 50 % up to 100, 90 % up to 180, 99 % up to 198, longest 200"
    assert described(lengths) == said
    for share, most in ((0.5, 100), (0.9, 180), (0.99, 198)):
        assert (lengths <= most).mean() >= share > (lengths < most).mean()


def test_pairs_keep_their_token_types_and_are_cut_at_the_longer_text(bert):
    texts, others = ["a film " * 9, "good"], ["a plot", "a plot " * 9]
    made = features(texts, bert, columns={"text_pair": others})
    for i in (0, 1):
        wanted = bert(texts[i], others[i], truncation="longest_first", max_length=SIZE)
        assert made[i]["input_ids"] == wanted["input_ids"]
        assert made[i]["token_type_ids"] == wanted["token_type_ids"]
        assert len(wanted["input_ids"]) == SIZE
    assert sum(made[0]["token_type_ids"]) == 3  # a plot [SEP]
    assert sum(made[1]["token_type_ids"]) == 13
    short = features(["a film"], bert, columns={"text_pair": ["a plot"]})
    assert short[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_a_model_without_token_types_gets_none_from_the_cache(bert, wordpiece):
    """Both tokenizers have the same vocabulary, and so the same entry of the cache."""
    pair = {"columns": {"text_pair": ["the plot"]}}
    for tokenizer in (wordpiece, bert, wordpiece):
        made = features(["a film"], tokenizer, **pair)
        assert ("token_type_ids" in made.column_names) == (tokenizer is bert)


def test_labels_of_each_kind(wordpiece):
    names = LabelNames(("a", "b", "c"), MULTI)
    labels = ['["c", "a"]', "[]"]
    made = features(["x", "y " * 30], wordpiece, labels, names, long_text="split")
    assert made["labels"][0] == [1, 0, 1]
    assert set(map(tuple, made["labels"][1:])) == {(0, 0, 0)}
    assert str(made.data.schema.field("labels").type) == "list<item: float>"
    numbers = LabelNames(("LABEL_0",), REGRESSION)
    made = features(["x", "y"], wordpiece, ["0.5", "-100"], numbers)
    assert made["labels"][:] == [0.5, -100]
    assert str(made.data.schema.field("labels").type) == "float"
    one = features(["x", "y"], wordpiece, ["pos", "neg"], LabelNames(("neg", "pos")))
    assert LabelNames(("neg", "pos")).problem_type == SINGLE
    assert str(one.data.schema.field("labels").type) == "int64"


def test_a_text_without_tokens_is_padding_also_among_windows():
    tokenizer = tiny.bpe_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    made = features(["", "a film " * 30, ""], tokenizer, long_text="split")
    rows = made["row"][:]
    assert rows == sorted(rows)
    assert made["length"][0] == made["length"][len(rows) - 1] == 1
    assert rows.count(1) == len(rows) - 2 > 1


PAIRED = {"text_pair": TEXTS}


@pytest.mark.parametrize(
    ("split", "most", "columns", "becomes", "said"),
    [
        ("train", 11, None, "split", "split into 8 examples of up to 16 tokens"),
        ("train", 10, None, "truncate", "auto, as split would make 11 examples)"),
        ("train", 11, PAIRED, "truncate", "tokens left out (long_text auto)"),
        ("test", 11, None, "truncate", "tokens left out (long_text auto)"),
    ],
)
def test_long_texts_are_split_by_themselves_for_training(
    bert, monkeypatch, capsys, split, most, columns, becomes, said
):
    monkeypatch.setattr(long_text, "MOST", most)
    args = ClassificationDataArguments(max_seq_length=SIZE)
    labels = LabelNames(("neg", "pos"))
    given = source(TEXTS, **(columns or {}))
    made = classification_features(given, bert, args, split, labels)
    assert args.long_text == becomes
    assert said in capsys.readouterr().out
    assert len(made) == (11 if becomes == "split" else len(TEXTS))


def test_what_no_text_needs_is_not_decided(wordpiece):
    args = ClassificationDataArguments(max_seq_length=SIZE)
    labels = LabelNames(("neg", "pos"))
    made = classification_features(source(["x"]), wordpiece, args, "train", labels)
    assert (args.long_text, "row" in made.column_names) == ("auto", False)
