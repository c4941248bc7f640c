"""Where the words of a row begin, and masks of whole words and of spans of words.

``DataCollatorForLanguageModeling(whole_word_mask=True)`` takes what no gap parts in the
offsets of the tokens for a word: a whole text where tokens include the space before
them (GPT-2, SentencePiece's Metaspace), a whole sentence of Chinese, a word with its
full stop, but each byte of a character where a token is one. And it masks all that it
chooses, where BERT keeps a tenth and replaces another. Here words come from the ids
alone, so that blocks need no offsets.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llmft.errors import ConfigError

# Kinds of character, each with an example to try the pre-tokenizer with.
_LETTER, _DIGIT, _OTHER, _UNSPACED, _BLANK, _SPACE = range(6)
_EXAMPLES = "a1.\u4e2d \n"
# What a token says itself: a word begins or ends here; it goes on here.
_EDGE, _INSIDE = 6, 7
_SCRIPTS_WITHOUT_SPACES = (
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO"),
    *("KHMER", "MYANMAR", "TIBETAN"),
)
_Reader = Callable[[str], tuple[int, int]]


@dataclass(frozen=True)
class WordEdges:
    """How the tokens of a vocabulary begin and end, to tell words apart.

    Args:
        first, last: by token id, the kind of its first and last character (int64).
        splits: bool (kinds, kinds): a word begins between these two.
        separators: by token id, whether it is special, not counting unknown tokens.
    """

    first: np.ndarray
    last: np.ndarray
    splits: np.ndarray
    separators: np.ndarray

    def begins(
        self, ids: np.ndarray, starts: Sequence[int] | np.ndarray = (0,)
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return where words, and where parts begin in ``ids`` (int64, (length,)).

        Both are bool (length,). Separators part a row: each begins a part and a word,
        and so does what follows it, and the row that begins at each of ``starts``.
        """
        parts = np.append(self.separators[ids], False)  # for a row without tokens
        parts[1:] |= parts[:-1].copy()
        parts[starts,] = True
        parts = parts[:-1]
        words = parts.copy()
        words[1:] |= self.splits[self.last[ids[:-1]], self.first[ids[1:]]]
        return words, parts


def word_edges(tokenizer: PreTrainedTokenizerBase) -> WordEdges:
    """Read from a tokenizer what a word is: what its ``word_ids()`` calls one.

    - WordPiece: all up to the next token without ``##``. BERT makes each ideograph and
      each punctuation mark a word.
    - Byte-level BPE: a word begins at a space, and where the pre-tokenizer splits
      letters, digits and other characters, tried on a pair of each.
    - SentencePiece (Unigram, BPE): all up to the next \u2581, with its full stop.
    - BPE with ``</w>``: all up to the end of a token with it.

    Three things differ from ``word_ids()``, which takes a sentence without spaces for
    a word: in such scripts (Chinese, Japanese, Thai, ...) each token is one. A
    combining mark, or a part of a character's bytes, belongs to what stands before it.
    Of several spaces each token begins a word; the last goes with what follows.

    Raises ConfigError where the tokens do not tell where a word begins.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    read = _reader(backend, vocabulary)
    if read is None:
        raise ConfigError(
            f"the tokens of this {type(tokenizer).__name__} do not tell where a word"
            " begins, expected WordPiece, byte-level BPE, SentencePiece, or BPE with"
            " an end of words; use --mlm_masking token"
        )
    edges = [(_EDGE, _EDGE)] * (max(vocabulary.values()) + 1)
    for token in vocabulary.keys() - added.keys():
        edges[vocabulary[token]] = read(token)
    separators = np.zeros(len(edges), dtype=bool)
    separators[tokenizer.all_special_ids] = True
    named = [t for n, t in tokenizer.special_tokens_map.items() if n != "unk_token"]
    if tokenizer.unk_token not in (None, *named):  # GPT-2 calls its eos unknown
        separators[tokenizer.unk_token_id] = False
        if type(backend.model).__name__ != "WordPiece":  # there it is a whole word
            edges[tokenizer.unk_token_id] = _INSIDE, _LETTER
    first, last = np.array(edges).T.copy()
    return WordEdges(first, last, _splits(backend), separators)


def _reader(backend: Any, vocabulary: Mapping[str, int]) -> _Reader | None:
    """Return what reads the two edges off a token, None where nothing can."""
    model = getattr(backend, "model", None)
    prefix: str = getattr(model, "continuing_subword_prefix", None) or ""
    suffix: str = getattr(model, "end_of_word_suffix", None) or ""

    def by_prefix(token: str) -> tuple[int, int]:
        first, last = _edges((token.removeprefix(prefix) or token).encode())
        goes_on = token.startswith(prefix) and first != _UNSPACED
        return _INSIDE if goes_on else _EDGE, last

    def by_suffix(token: str) -> tuple[int, int]:
        first, last = _edges((token.removesuffix(suffix) or token).encode())
        begins = first if first == _UNSPACED else _INSIDE
        return begins, _EDGE if token.endswith(suffix) else last

    def by_bytes(token: str) -> tuple[int, int]:
        return _edges(bytes(byte_of[c] for c in token if c in byte_of) or b"?")

    def by_blank(token: str) -> tuple[int, int]:
        if len(token) == 6 and token.startswith("<0x"):
            return _edges(bytes.fromhex(token[3:5]))
        return _edges(token.replace("\u2581", " ").encode())

    if prefix:
        return by_prefix
    if suffix:
        return by_suffix
    if "ByteLevel" in f"{getattr(backend, 'pre_tokenizer', '')!r}":
        byte_of = {c: byte for byte, c in bytes_to_unicode().items()}
        return by_bytes
    if backend is not None and any(t.startswith("\u2581") for t in vocabulary):
        return by_blank
    return None


def _edges(token: bytes) -> tuple[int, int]:
    """Return the kinds of the first and last character of a token's UTF-8.

    A character that the token holds in part is completed, since its first bytes tell
    the script; where they do not, or are not there, it counts as a letter.
    """
    text = (token + b"\x81\x81\x81").decode("utf-8", "ignore") or "a"
    first = _kind(text[0])
    if b"\x80" <= token[:1] < b"\xc0" or unicodedata.category(text[0]).startswith("M"):
        first = _INSIDE
    elif first == _BLANK:
        first = _EDGE
    return first, _kind(text[-1])


@cache
def _kind(character: str) -> int:
    if character.isspace():
        return _BLANK if character == " " else _SPACE
    category = unicodedata.category(character)[0]
    if category == "L":
        name = unicodedata.name(character, "")
        return _UNSPACED if name.startswith(_SCRIPTS_WITHOUT_SPACES) else _LETTER
    return {"M": _LETTER, "N": _DIGIT}.get(category, _OTHER)


def _splits(backend: Any) -> np.ndarray:
    """Return between which kinds the tokenizer begins a new word (bool, 8 x 8)."""
    splits = np.zeros((8, 8), dtype=bool)
    for (i, one), (j, other) in product(enumerate(_EXAMPLES), repeat=2):
        pair = one + other
        if backend.normalizer is not None:
            pair = backend.normalizer.normalize_str(pair)
        if backend.pre_tokenizer is not None:
            splits[i, j] = len(backend.pre_tokenizer.pre_tokenize_str(pair)) > 1
    splits[:_BLANK, _UNSPACED] = splits[_UNSPACED, :_BLANK] = True
    splits[:, _EDGE] = splits[_EDGE] = True
    return splits


@dataclass(frozen=True)
class SpanLengths:
    """Lengths of spans in words, as chances that add up: see ``geometric``.

    ``whole`` has the chance of a length of at most 1, 2, ... (float64), ``left`` the
    same for what is left of a span from a word inside it on; ``mean`` is the mean.
    """

    whole: np.ndarray
    left: np.ndarray
    mean: float

    @classmethod
    def geometric(cls, p: float, longest: int) -> SpanLengths:
        """SpanBERT's: Geo(p), longer ones drawn again; 3.8 in the mean for 0.2, 10."""
        chances = (1 - p) ** np.arange(longest)
        chances /= chances.sum()
        reached = chances[::-1].cumsum()[::-1]
        return cls(chances.cumsum(), (reached / reached.sum()).cumsum(), reached.sum())


_GAMMA = 0x9E3779B97F4A7C15
# What the random numbers of a token are for, and those of a row.
_CHOSEN, FATE, TOKEN, _LENGTH, _USES = range(5)
_PLACE, _INSIDE_SPAN, _LENGTH_OF_ONE = range(3)


class Draws:
    """Random numbers for rows that lie one behind the other.

    Each is a hash, that of SplitMix64, of seed, epoch, row, place within the row and
    what it is for: it is the same in whatever batch the row stands.

    Args:
        epochs, rows: int64, one for each row. lengths: their tokens, int64.

    Attributes:
        row: of each token, the number of its row from 0. starts: where rows begin.
    """

    def __init__(
        self, seed: int, epochs: np.ndarray, rows: np.ndarray, lengths: np.ndarray
    ) -> None:
        keys = np.array([_key_of(seed, epoch) for epoch in epochs.tolist()])
        self._rows = _mixed((keys ^ rows.view(np.uint64)) + _step(1))
        self.row = np.repeat(np.arange(len(rows)), lengths)
        self.starts = np.cumsum(lengths) - lengths
        # The place of a token, times _USES steps, counted from the place of its row.
        steps = np.arange(len(self.row), dtype=np.uint64) * _step(_USES)
        before = self._rows - self.starts.view(np.uint64) * _step(_USES)
        self._tokens = steps + np.repeat(before, lengths)

    def of_tokens(self, use: int, at: np.ndarray | slice) -> np.ndarray:
        """Return numbers from [0, 1) for the tokens at these places, float64."""
        return _uniform(self._tokens[at] + _step(use))

    def are_below(self, share: float, use: int, at: np.ndarray | slice) -> np.ndarray:
        """Return where ``of_tokens`` is below ``share`` (bool), without the numbers."""
        if share >= 1:
            return np.ones(len(self._tokens[at]), bool)
        limit = np.uint64(math.ceil(share * 2**53) << 11)
        return _mixed(self._tokens[at] + _step(use)) < limit

    def of_rows(self, use: int) -> np.ndarray:
        """Return numbers from [0, 1) for the rows, float64."""
        return _uniform(self._rows - _step(use + 1))


@cache
def _step(count: int) -> np.uint64:
    return np.uint64(count * _GAMMA % 2**64)


@cache
def _key_of(seed: int, epoch: int) -> np.uint64:
    """Return what the rows of an epoch are mixed with."""
    key = _mixed(np.array([seed]).view(np.uint64) + _step(1))
    key ^= np.array([epoch]).view(np.uint64)
    return _mixed(key + _step(1))[0]


_BY_30, _BY_27, _BY_31 = np.uint64(30), np.uint64(27), np.uint64(31)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mixed(values: np.ndarray) -> np.ndarray:
    values = values ^ (values >> _BY_30)
    values *= _FIRST
    values ^= values >> _BY_27
    values *= _SECOND
    values ^= values >> _BY_31
    return values


def _uniform(values: np.ndarray) -> np.ndarray:
    return (_mixed(values) >> np.uint64(11)) * 2.0**-53


def choose(
    ids: np.ndarray,
    maskable: np.ndarray,
    probability: float,
    draws: Draws,
    edges: WordEdges | None,
    spans: SpanLengths | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose tokens, with ``edges`` whole words, or with ``spans`` spans of words.

    Each is chosen with ``probability``, so that this is the share of tokens too,
    however long words are; where that leaves none of a row, one of its is. Words that
    are cut by the end of a row count as far as they are there. A span ends where its
    text does, at a separator.

    Args:
        ids: int64, of the rows of ``draws`` one behind the other.
        maskable: bool, the same: only these are chosen.

    Returns:
        chosen (bool) and, for each token, the place where its word or span begins
        (int64), both like ``ids``. None is chosen where none is maskable.
    """
    begins, part = np.arange(len(ids)), draws.row
    if not maskable.any():
        return maskable, begins
    word = begins
    if edges is not None:
        first, parts = edges.begins(ids, draws.starts)
        begins, word, part = first.nonzero()[0], first.cumsum() - 1, parts.cumsum()
    if spans is not None:
        interval = _intervals(begins, probability, draws, spans)[word]
        parts[1:] |= interval[1:] != interval[:-1]
        chosen, unit = interval % 2 == 1, parts.nonzero()[0][parts.cumsum() - 1]
    elif edges is not None:
        unit = begins[word]
        chosen = draws.are_below(probability, _CHOSEN, begins)[word]
    else:
        unit = begins
        chosen = draws.are_below(probability, _CHOSEN, slice(None))
    chosen &= maskable
    rows = draws.row[chosen.nonzero()[0]]
    bare = np.bincount(rows, minlength=len(draws.starts)) == 0
    if bare.any():
        counts = np.bincount(draws.row[maskable], minlength=len(bare))
        bare &= counts > 0
        one = np.cumsum(counts) - counts + (draws.of_rows(_PLACE) * counts).astype(int)
        place = np.zeros(len(counts), np.int64)
        place[bare] = maskable.nonzero()[0][one[bare]]
        size = _lengths(spans.whole, draws.of_rows(_LENGTH_OF_ONE)) if spans else 1
        after, within = (word[place] + size)[draws.row], bare[draws.row] & maskable
        place = place[draws.row]
        within &= (word >= word[place]) & (word < after) & (part == part[place])
        chosen, unit = chosen | within, np.where(within, place, unit)
    return chosen, unit


def _lengths(chances: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    return chances[:-1].searchsorted(drawn, "right") + 1


def _intervals(
    begins: np.ndarray, probability: float, draws: Draws, spans: SpanLengths
) -> np.ndarray:
    """Return for each word, by where it begins, the number of its gap or span, int64.

    In each row gaps (even) and spans (odd) take turns; gaps are geometric, of the mean
    length that leaves ``probability`` to the spans. The row begins somewhere within, so
    that the first word is chosen as often as any other.
    """
    row, words = draws.row[begins], len(begins)
    first = np.flatnonzero(np.diff(row, prepend=-1))  # word of each row
    ends = probability / (probability + spans.mean * (1 - probability))
    gaps = np.log1p(-draws.of_tokens(_CHOSEN, begins))
    gaps = np.minimum(gaps / math.log1p(-min(ends, 1 - 1e-12)), words)
    drawn = draws.of_tokens(_LENGTH, begins)
    lengths = np.stack([gaps.astype(np.int64), _lengths(spans.whole, drawn)])
    inside = (draws.of_rows(_INSIDE_SPAN) < probability)[row[first]]
    left = _lengths(spans.left, drawn[first])
    lengths[0, first] = np.where(inside, 0, lengths[0, first] + 1)
    lengths[1, first] = np.where(inside, left, lengths[1, first])
    # One search for all rows: each begins far behind the one before.
    rank = np.repeat(np.arange(len(first)), np.diff(np.append(first, words)))
    reach = lengths.T.ravel().cumsum()
    far, before = reach[-1] + words, reach[2 * first] - lengths[0, first]
    reach = (reach.reshape(-1, 2) + (rank * far - before[rank])[:, None]).ravel()
    wanted = np.arange(words) - first[rank] + rank * far
    return reach.searchsorted(wanted, "right") - 2 * first[rank]
