"""Words are those of the tokenizer; masks cover whole words or spans of them."""

import collections
import itertools
import math
import random

import numpy as np
import pytest
import tiny
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llmft.data.tokens.collate import SeededDataCollatorForLanguageModeling
from llmft.data.tokens.masking import (
    Draws,
    SpanLengths,
    choose,
    word_edges,
)
from llmft.errors import ConfigError

CHINESE = "我喜欢看电影这部很好。"
# Not don't: GPT-2's pre-tokenizer has a rule for 't, which larger vocabularies have.
ODD = "zorgle x1 2,500 (well) $5.00 -- ... a.b/c?d Größe привет qx-qy é".split()
SPACES = [" ", " ", " ", " ", "  ", "   "]


def masked_bpe():
    """Byte-level BPE with the special tokens of RoBERTa."""
    tokenizer = tiny.bpe_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>", "mask_token": "<mask>"})
    return tokenizer


def suffix_bpe():
    """BPE that marks the end of a word, like those of XLM and CLIP."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        [*tiny.sentences(100), " ".join(ODD) + "!"],
        trainers.BpeTrainer(
            vocab_size=180,
            special_tokens=["<unk>", "<pad>", "<mask>"],
            end_of_word_suffix="</w>",
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
    )


MAKERS = {
    "wordpiece": lambda: tiny.wordpiece_tokenizer("äöüßé" + CHINESE),
    "byte_level": masked_bpe,
    "unigram": lambda: tiny.unigram_tokenizer(CHINESE),
    "suffix": suffix_bpe,
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request):
    return MAKERS[request.param]()


def texts(count, seed=0):
    """Random texts of known, unknown and odd words and of punctuation."""
    draw = random.Random(seed)
    for _ in range(count):
        words = draw.choices([*tiny.WORDS, *ODD * 2], k=draw.randrange(1, 30))
        ends = draw.choices(["", "", ".", ",", "!"], k=len(words))
        pairs = zip(words, ends, strict=True)
        yield "".join(w + end + draw.choice(SPACES) for w, end in pairs).strip()


def reference(tokenizer, text):
    """Ids and, for each token, its word as the tokenizer counts them; None: special.

    Each space begins a word, of which ``word_ids()`` joins several in byte-level BPE.
    """
    encoded = tokenizer(text)
    tokens, words = encoded.tokens(), encoded.word_ids()
    spaces = itertools.accumulate(token.startswith("Ġ") for token in tokens)
    of_word = [w if w is None else (w, n) for w, n in zip(words, spaces, strict=True)]
    order = {w: i for i, w in enumerate(dict.fromkeys(filter(None, of_word)))}
    return encoded["input_ids"], [order.get(word) for word in of_word]


def numbered(begins):
    return (np.cumsum(begins) - 1).tolist()


def test_words_are_those_that_the_tokenizer_made(tokenizer):
    edges = word_edges(tokenizer)
    pieces = 0
    for text in texts(300):
        ids, of_word = reference(tokenizer, text)
        begins, _ = edges.begins(np.array(ids))
        wanted = [
            i == 0 or word is None or word != of_word[i - 1]
            for i, word in enumerate(of_word)
        ]
        assert begins.tolist() == wanted, tokenizer.convert_ids_to_tokens(ids)
        pieces += wanted.count(False)
    assert pieces > 1000


def groups(tokenizer, text):
    """The words of a text as strings, by ``word_edges``."""
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
    begins, _ = word_edges(tokenizer).begins(ids)
    parts = np.split(ids, np.flatnonzero(begins)[1:])
    return [tokenizer.decode(part).strip() for part in parts]


@pytest.mark.parametrize("name", ["wordpiece", "byte_level"])
def test_each_ideograph_is_a_word(name):
    """Also where it is three tokens of one byte."""
    found = groups(MAKERS[name](), f"the {CHINESE} zorgle")
    assert found == ["the", *CHINESE, "zorgle"]


def test_each_token_of_a_script_without_spaces_is_a_word():
    """But a combining mark, which belongs to the letter before it."""
    tokenizer = tiny.unigram_tokenizer(f"{CHINESE} ดี มาก ดี มาก")
    pieces = tokenizer.tokenize(f"the movie. {CHINESE} the")
    assert "".join(pieces) == f"▁the▁movie.▁{CHINESE}▁the"
    wanted = [piece.strip("▁") for piece in pieces[3:-1] if piece != "▁"]
    assert pieces[2] == "."
    assert len(wanted) > 1
    found = groups(tokenizer, f"the movie. {CHINESE} the")
    assert found == ["the", "movie.", *wanted, "the"]
    pieces = tokenizer.tokenize("ดีมาก")
    assert groups(tokenizer, "ดีมาก") == ["ดี", "ม", "า", "ก"], pieces


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी है", ["हिन्दी", "है"]),  # GPT-2 splits before each vowel sign
        ("ありがとう", list("ありがとう")),
        ("한국 영화", ["한국", "영화"]),
        ("Größe 👍🏽 1!", ["Größe", "👍🏽", "1", "!"]),
    ],
)
def test_characters_of_several_bytes(text, words):
    assert groups(masked_bpe(), text) == words


def test_sentencepiece_without_pre_tokenizer_and_bytes_for_unknown_characters():
    pieces = ["▁", "▁the", "z", "o", ".", *(f"<0x{i:02X}>" for i in range(256))]
    vocabulary = {p: i for i, p in enumerate(["<unk>", "<mask>", *pieces])}
    model = models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", mask_token="<mask>"
    )
    ids = np.array(tokenizer("zo zé. 中中")["input_ids"])
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens == [
        *("▁", "z", "o", "▁", "z", "<0xC3>", "<0xA9>", ".", "▁"),
        *("<0xE4>", "<0xB8>", "<0xAD>") * 2,
    ]
    begins, _ = word_edges(tokenizer).begins(ids)
    assert numbered(begins) == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]


def test_unknown_tokens_are_part_of_their_word_and_separators_are_not():
    tokenizer = MAKERS["unigram"]()
    ids = np.array(tokenizer("the zo☃rgle", "a film")["input_ids"])
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens.count("<unk>") == 1
    begins, parts = word_edges(tokenizer).begins(ids)
    at = tokens.index("<unk>")
    assert not begins[at - 1 : at + 2].any()
    ends = [i for i, token in enumerate(tokens) if token in ("<s>", "</s>")]
    wanted = {*ends, *(i + 1 for i in ends[:-1])}
    assert set(np.flatnonzero(parts)) == wanted
    assert begins[parts].all()


def test_tokens_that_tell_no_words_are_refused():
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "[MASK]": 2}, []))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]")
    with pytest.raises(ConfigError) as caught:
        SeededDataCollatorForLanguageModeling(tokenizer, mlm_masking="span")
    assert str(caught.value) == (
        f"ConfigError: the tokens of this {type(tokenizer).__name__} do not tell where"
        " a word begins, expected WordPiece, byte-level BPE, SentencePiece, or BPE with"
        " an end of words; use --mlm_masking token"
    )
    SeededDataCollatorForLanguageModeling(tokenizer)


def masked_rows(tokenizer, mode, count, **options):
    """Yield (ids, words, inputs, labels) of ``count`` rows, in plain lists."""
    collator = SeededDataCollatorForLanguageModeling(
        tokenizer, mlm_masking=mode, **options
    )
    for row, text in enumerate(texts(count, seed=1)):
        ids, of_word = reference(tokenizer, text)
        batch = collator([{"input_ids": ids, "row": row}])
        yield ids, of_word, batch["input_ids"][0].tolist(), batch["labels"][0].tolist()


def assert_share(hits, p, variance):
    """Within four standard deviations."""
    count, total = hits
    assert abs(count - p * total) < 4 * math.sqrt(variance)


def test_whole_words_in_the_proportions_of_bert(tokenizer):
    """Never half a word; 15 % of the tokens; 80, 10, 10 % of the words."""
    special = set(tokenizer.all_special_ids)
    kinds, tokens, squares, picked, longest = collections.Counter(), 0, 0, 0, 0
    for ids, of_word, inputs, labels in masked_rows(tokenizer, "whole_word", 1500):
        by_word = collections.defaultdict(list)
        for i, (token, word) in enumerate(zip(ids, of_word, strict=True)):
            assert labels[i] in (-100, token)
            if word is None or token in special:
                assert (inputs[i], labels[i]) == (token, -100)
            else:
                by_word[word].append(i)
            assert labels[i] != -100 or inputs[i] == token
        if len(by_word) < 25:  # short rows have one word at least: not 15 %
            continue
        for places in by_word.values():
            chosen = {labels[i] != -100 for i in places}
            assert len(chosen) == 1
            tokens, squares = tokens + len(places), squares + len(places) ** 2
            if chosen == {True}:
                picked, longest = picked + len(places), max(longest, len(places))
                kinds[fate(tokenizer, ids, inputs, places)] += 1
    assert longest > 2
    words = sum(kinds.values())
    assert words > 500
    # A row without any has one: for 25 words 0.85 ** 25 = 1.7 % of the rows.
    assert_share((picked, tokens), 0.15, squares * 0.15 * 0.85 + (0.0007 * tokens) ** 2)
    for kind, p in {"masked": 0.8, "kept": 0.1, "random": 0.1}.items():
        # A random token is [MASK], or the token itself, once in a vocabulary each.
        variance = words * p * (1 - p) + (0.2 / len(tokenizer) * words) ** 2
        assert_share((kinds[kind], words), p, variance)


def fate(tokenizer, ids, inputs, places):
    """What became of the tokens at ``places``, which is the same for all of them."""
    masked = [inputs[i] == tokenizer.mask_token_id for i in places]
    kept = [inputs[i] == ids[i] for i in places]
    if all(masked):
        return "masked"
    return "kept" if all(kept) else "random"


def test_all_of_a_unit_has_one_fate(tokenizer):
    """Of words with three tokens, none is masked in part, but by a rare random one."""
    for mode in ("whole_word", "span"):
        units = partly = 0
        for _, of_word, inputs, labels in masked_rows(tokenizer, mode, 600):
            for word in {w for w, x in zip(of_word, labels, strict=True) if x != -100}:
                places = [i for i, w in enumerate(of_word) if w == word]
                places = [i for i in places if labels[i] != -100]
                masked = sum(inputs[i] == tokenizer.mask_token_id for i in places)
                units += len(places) > 1
                partly += 0 < masked < len(places)
        assert units > 100
        assert partly <= 0.02 * units


def draws_of(lengths, epoch=0, seed=0, first=0):
    rows = np.arange(first, first + len(lengths))
    return Draws(seed, np.full(len(lengths), epoch), rows, np.array(lengths))


@pytest.mark.parametrize("share", [0.0, 2.0**-53, 1e-9, 0.15, 0.5, 1 - 2**-53, 1.0])
def test_what_is_below_a_share_is_told_without_the_numbers(share):
    draws, use = draws_of([3000, 0, 2000], epoch=-1, seed=3), 2
    for at in (slice(None), np.arange(0, 5000, 7)):
        wanted = draws.of_tokens(use, at) < share
        assert (draws.are_below(share, use, at) == wanted).all()
    number = draws.of_tokens(use, slice(4, 5))  # just there, and the next above
    for limit in (*number, np.nextafter(number[0], 1)):
        found = draws.are_below(float(limit), use, slice(4, 5))
        assert (found == (number < limit)).all()


def rows_of_words(wordpiece, rows, words, spans, probability=0.15):
    """Return what is chosen in rows of words of one token each, and the units."""
    edges = word_edges(wordpiece)
    ids = np.full(rows * words, wordpiece.convert_tokens_to_ids("film"))
    maskable, draws = np.ones(len(ids), dtype=bool), draws_of([words] * rows)
    chosen, unit = choose(ids, maskable, probability, draws, edges, spans)
    return chosen.reshape(rows, words), unit.reshape(rows, words)


@pytest.mark.parametrize(("p", "longest"), [(0.2, 10), (1.0, 10), (0.05, 4)])
def test_lengths_of_spans(wordpiece, p, longest):
    """A geometric distribution up to the longest, as SpanBERT's code has it."""
    weights = [p * (1 - p) ** (i - 1) for i in range(1, longest + 1)]
    wanted = {i: w / sum(weights) for i, w in enumerate(weights, 1)}
    mean = sum(i * w for i, w in wanted.items())
    spans = SpanLengths.geometric(p, longest)
    assert spans.mean == pytest.approx(mean, rel=1e-12)
    assert (p, longest) != (0.2, 10) or round(mean, 1) == 3.8  # the paper's figure
    (chosen,), (unit,) = rows_of_words(wordpiece, 1, 200_000, spans)
    lengths = collections.Counter(collections.Counter(unit[chosen].tolist()).values())
    count = sum(lengths.values())
    assert count > 5000
    assert set(lengths) <= set(wanted)
    for length, w in wanted.items():
        assert_share((lengths[length], count), w, count * w * (1 - w) + 1)
    assert abs(chosen.mean() - 0.15) < 0.005
    for begin in set(unit[chosen].tolist()):  # a span is one run
        (places,) = np.nonzero(unit[begin : begin + longest + 1] == begin)
        assert (np.diff(places) == 1).all()


@pytest.mark.parametrize(("probability", "p"), [(0.15, 0.2), (0.9, 0.2), (0.5, 0.01)])
def test_each_place_is_as_often_in_a_span(wordpiece, probability, p):
    spans, rows, words = SpanLengths.geometric(p, 10), 4000, 40
    found, _ = rows_of_words(wordpiece, rows, words, spans, probability)
    by_place = np.mean(found, axis=0)
    # A row without any, for which no gap may end, has a span: these are added.
    ends = probability / (probability + spans.mean * (1 - probability))
    none = (1 - probability) * (1 - ends) ** (words - 1)
    sd = math.sqrt(probability * (1 - probability) / rows)
    assert (by_place > probability - 4.5 * sd).all()
    assert (by_place < probability + 4.5 * sd + none * spans.mean / 10).all()


def test_spans_are_whole_words_and_end_at_separators(tokenizer):
    """Two texts in a row: no span has tokens of both, and each is one run of words."""
    edges, spans = word_edges(tokenizer), SpanLengths.geometric(0.2, 10)
    separator = tokenizer.sep_token_id or tokenizer.mask_token_id
    two = list(texts(300, seed=2))
    several = 0
    for row in range(0, 300, 2):
        a, words_a = reference(tokenizer, two[row])
        b, words_b = reference(tokenizer, two[row + 1])
        ids = np.array([*a, separator, *b])
        most = max([-1, *(w for w in words_a if w is not None)]) + 1
        of_word = [*words_a, None, *(w if w is None else w + most for w in words_b)]
        maskable = ~np.isin(ids, tokenizer.all_special_ids)
        draws = draws_of([len(ids)], first=row)
        chosen, unit = choose(ids, maskable, 0.4, draws, edges, spans)
        for begin in set(unit[chosen].tolist()):
            places = np.flatnonzero(chosen & (unit == begin))
            assert places.max() < len(a) or places.min() > len(a)
            first, last = of_word[places[0]], of_word[places[-1]]
            within = [w is not None and first <= w <= last for w in of_word]
            assert np.flatnonzero(within & maskable).tolist() == places.tolist()
            assert last - first < 10
            several += last > first
    assert several > 100


@pytest.mark.parametrize("mode", ["token", "whole_word", "span"])
def test_a_row_has_a_masked_token_where_it_can(tokenizer, mode):
    never = {"mlm_probability": 1e-12}
    special, places = set(tokenizer.all_special_ids), collections.Counter()
    for ids, of_word, _, labels in masked_rows(tokenizer, mode, 300, **never):
        chosen = [i for i, label in enumerate(labels) if label != -100]
        assert not special & {ids[i] for i in chosen}
        if not set(ids) - special:
            assert not chosen
            continue
        words = {of_word[i] for i in chosen}
        assert len(chosen) == 1 or mode != "token"
        assert len(words) == 1 or (mode == "span" and len(words) <= 10)
        places[chosen[0]] += 1
        if mode != "token":
            whole = [i for i, w in enumerate(of_word) if w in words]
            assert chosen == [i for i in whole if ids[i] not in special]
    assert len(places) > 10
    collator = SeededDataCollatorForLanguageModeling(tokenizer, mlm_masking=mode)
    bare = collator([{"input_ids": [tokenizer.pad_token_id] * 3, "row": 0}])
    assert bare["labels"].tolist() == [[-100] * 3]
    assert bare["input_ids"].tolist() == [[tokenizer.pad_token_id] * 3]


def plain_number(seed, epoch, row, count):
    """A number of ``Draws``, with Python's own integers: SplitMix64 of a chain."""
    most, gamma = 2**64, 0x9E3779B97F4A7C15

    def mixed(value):
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % most
        value = (value ^ value >> 27) * 0x94D049BB133111EB % most
        return value ^ value >> 31

    key = seed
    for value in (epoch, row):
        key = mixed((key + gamma) % most) ^ value % most
    return (mixed((mixed((key + gamma) % most) + count * gamma) % most) >> 11) / 2**53


def test_numbers_are_those_of_splitmix64():
    """Also of epoch -1 and of rows beyond 32 bits; no two of a row are the same."""
    draws = Draws(
        42, np.array([0, -1, 7]), np.array([0, 3, 2**40]), np.array([3, 0, 2])
    )
    of_row = [(0, 0), (0, 0), (0, 0), (7, 2**40), (7, 2**40)]
    seen = set()
    for use in range(4):
        wanted = [
            plain_number(42, *which, 4 * place + use)
            for which, place in zip(of_row, (0, 1, 2, 0, 1), strict=True)
        ]
        assert draws.of_tokens(use, np.arange(5)).tolist() == wanted
        seen |= {*wanted}
    for use in range(3):
        wanted = [
            plain_number(42, *which, -1 - use)
            for which in ((0, 0), (-1, 3), (7, 2**40))
        ]
        assert draws.of_rows(use).tolist() == wanted
        seen |= {*wanted}
    assert len(seen) == 4 * 5 + 3 * 3


def test_neighbours_are_independent():
    """Rows, epochs, seeds, places and uses that are next to each other.

    The pairs of two neighbours fill a grid of 16 x 16 evenly (chi-square), and so do
    the low bits; what both choose at 15 % is 2.25 %.
    """
    lengths, count = [128] * 800, 800 * 128
    at = np.arange(count)
    plain = draws_of(lengths).of_tokens(0, at)
    others = {
        "row": draws_of(lengths, first=1).of_tokens(0, at),
        "far row": draws_of(lengths, first=2**32).of_tokens(0, at),
        "epoch": draws_of(lengths, epoch=1).of_tokens(0, at),
        "evaluation": draws_of(lengths, epoch=-1).of_tokens(0, at),
        "seed": draws_of(lengths, seed=1).of_tokens(0, at),
        "place": np.roll(plain, 1),
        "use": draws_of(lengths).of_tokens(1, at),
        "epoch for row": draws_of(lengths, epoch=1, first=-1).of_tokens(0, at),
    }
    assert abs(plain.mean() - 0.5) < 4 * math.sqrt(1 / 12 / count)
    for name, other in others.items():
        for one, two in ((plain, other), (plain * 2**40 % 1, other * 2**40 % 1)):
            cells = (one * 16).astype(int) * 16 + (two * 16).astype(int)
            seen, even = np.bincount(cells, minlength=256), count / 256
            chi2 = ((seen - even) ** 2 / even).sum()
            assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255), (name, chi2)
        r = np.corrcoef(plain, other)[0, 1]
        assert abs(r) < 5 / math.sqrt(count), (name, r)
        both = int(((plain < 0.15) & (other < 0.15)).sum())
        assert_share((both, count), 0.15**2, count * 0.15**2 * (1 - 0.15**2))


def test_rows_of_a_batch_are_chosen_as_each_by_itself(tokenizer):
    """Of unequal length, some without a token, some that would have no mask."""
    edges, spans = word_edges(tokenizer), SpanLengths.geometric(0.2, 10)
    rows = [np.array(reference(tokenizer, text)[0]) for text in texts(60, seed=4)]
    rows[7:7], rows[0:0] = [rows[0][:0], rows[0][:1]], [rows[0][:0]]
    lengths = [*map(len, rows)]
    starts = np.cumsum(lengths) - lengths
    for how in ((None, None), (edges, None), (edges, spans)):
        for share in (0.15, 1e-12):
            ids = np.concatenate(rows)
            maskable = ~np.isin(ids, tokenizer.all_special_ids)
            chosen, unit = choose(ids, maskable, share, draws_of(lengths), *how)
            for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
                part = slice(start, start + len(row))
                one = draws_of(lengths[i : i + 1], first=i)
                alone, begins = choose(row, maskable[part], share, one, *how)
                assert chosen[part].tolist() == alone.tolist()
                assert (unit[part] - start)[alone].tolist() == begins[alone].tolist()
                assert alone.any() == maskable[part].any()
