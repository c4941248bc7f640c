"""Ids made of words are those of the tokenizer, whatever a text holds."""

import random
import unicodedata

import pytest
import tiny
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers
from tokenizers.normalizers import BertNormalizer

from llmft.data.tokens import words as words_module
from llmft.data.tokens.words import word_ids

PLANE = [chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000]
ODD = [c for c in PLANE if unicodedata.category(c)[0] in "ZCMP"][:2_000]
ODD += [*map(chr, range(1, 256)), *"\u0130\u00df\u03a3\u6f22\U0001f468\U000e0041"]
PIECES = [
    "a",
    "film",
    "The",
    "it's",
    "WE'LL",
    "he'd",
    "I'm",
    "12",
    " 120",
    " ",
    "  ",
    "\n\n",
]
PIECES += ["\t", "\r\n", " 's", "'", '"', "[MASK]", "[mask]", "<|endoftext|>", "##s"]


def texts():
    """Return texts of English with odd characters, and each character in a word."""
    draw = random.Random(3)
    made = ["", " ", "\n", "x" * 300, "a " * 200, *tiny.sentences(50)]
    for _ in range(5_000):
        parts = draw.choices(PIECES, k=draw.randrange(1, 9))
        parts += draw.choices(ODD, k=draw.randrange(4))
        draw.shuffle(parts)
        made += ["".join(parts), "a film " * draw.randrange(4) + " ".join(parts)]
    return made + [f"a film of it: the film{c}of {c}, it" for c in PLANE[1:]]


def bert(**settings):
    """Return a backend that knows each character by itself."""
    backend = tiny.wordpiece_tokenizer("".join(PLANE[33:])).backend_tokenizer
    backend.normalizer = BertNormalizer(**settings)
    return backend


def byte_level(**settings):
    """Return a backend that merges digits, blanks and marks, too, where it may."""
    backend = tiny.bpe_tokenizer().backend_tokenizer
    odd = [
        " 12 120  7!! 'd 's,\n\n\t\t (--) it's 5.5%\n",
        "he'd I'm 12  12\n \n 120 ...  !",
    ]
    backend.train_from_iterator(
        [*tiny.sentences(50), *odd * 50],
        trainers.BpeTrainer(
            vocab_size=1_000,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    if settings:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(**settings)
    return backend


def no_normalizer():
    backend = bert()
    backend.normalizer = normalizers.Sequence([])
    return backend


@pytest.mark.parametrize(
    "make",
    [
        lambda: bert(lowercase=True),
        lambda: bert(lowercase=False),
        lambda: bert(lowercase=False, strip_accents=True, handle_chinese_chars=False),
        lambda: bert(clean_text=False),
        byte_level,
    ],
)
def test_ids_are_those_of_the_tokenizer(make):
    backend, given = make(), texts()
    words = word_ids(backend)
    wanted = [encoding.ids for encoding in backend.encode_batch_fast(given)]
    ids, lengths = words.encode(given)
    assert lengths.tolist() == [*map(len, wanted)]
    assert ids.tolist() == [i for row in wanted for i in row]
    assert ids.dtype == "int32"
    assert ids.flags.writeable
    assert 100 < len(words) <= words_module._MOST
    for end in (3, 7):  # some end with it
        ended = [row if row[-1:] == [end] else [*row, end] for row in wanted]
        assert words.encode(given, end)[0].tolist() == [i for row in ended for i in row]


def test_few_words_are_kept(monkeypatch):
    backend = byte_level()
    monkeypatch.setattr(words_module, "_MOST", 20)
    words = word_ids(backend)
    given = [*tiny.sentences(20), " ".join(map(str, range(100))), "x" * 65, "x" * 64]
    wanted = [i for row in backend.encode_batch_fast(given) for i in row.ids]
    assert words.encode(given)[0].tolist() == wanted
    assert len(words) <= 20
    assert "x" * 64 in words
    assert "x" * 65 not in words


@pytest.mark.parametrize("text", ["\u6f22\u5b57\u3002" * 20, "a [MASK] film"])
def test_what_is_left_to_the_tokenizer(text):
    backend = bert()
    words = word_ids(backend)
    before = len(words)
    assert words.encode([text])[0].tolist() == backend.encode(text).ids
    assert len(words) == before


def dropout():
    backend = byte_level()
    backend.model = models.BPE(dropout=0.1)
    return backend


def added_word():
    backend = bert()
    backend.add_tokens([AddedToken("covid", normalized=True)])
    return backend


def other_normalizer():
    backend = byte_level()
    backend.normalizer = normalizers.Lowercase()
    return backend


@pytest.mark.parametrize(
    "make",
    [
        dropout,
        added_word,
        other_normalizer,
        no_normalizer,
        lambda: byte_level(add_prefix_space=True),
        lambda: byte_level(add_prefix_space=False, use_regex=False),
        lambda: tiny.unigram_tokenizer().backend_tokenizer,
    ],
)
def test_no_words_where_ids_may_differ(make):
    assert word_ids(make()) is None
