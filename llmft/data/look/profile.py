"""What the texts of a data set are like: lengths, scripts, and what looks odd."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmft.data.read.messages import MESSAGES
from llmft.data.read.store import Source
from llmft.data.split.duplicates import row_texts

# What a text may hold, each with its pattern of RE2 and with what follows from it.
DAMAGE = {
    "UTF-8 that was read as another encoding": (
        r"[ÂÃ][\x{80}-\x{BF}]|Ã[€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â€[\x{80}-\x{BF}™œž˜“”¦¢]|ï»¿",
        "é has become Ã©: leave --encoding out, mend the texts (as ftfy does), or"
        " export them anew as UTF-8",
    ),
    "characters lost to U+FFFD": (
        r"\x{FFFD}",
        "some program could not decode them: export anew; --encoding names another",
    ),
    "control characters": (
        r"[\x{01}-\x{08}\x0B\x0C\x0E-\x1F\x7F\x{80}-\x{9F}]",
        "U+0080 to U+009F: read as latin-1, was cp1252 (--encoding cp1252); others:"
        " take them out",
    ),
}
SIGNS = DAMAGE | {
    "HTML entities": (
        r"&(#[0-9]+|#x[0-9A-Fa-f]+|[A-Za-z]{2,8}[0-9]{0,2});",
        "the model learns them as words: unescape them (html.unescape)",
    ),
    "HTML tags": (
        r"</?[A-Za-z][A-Za-z0-9]*(\s[^<>]*)?/?>",
        "they take tokens, and may give a label away: take them out",
    ),
    "backslash escapes": (
        r"\\(n|t|\"|u[0-9A-Fa-f]{4})",
        "a line break became two characters: the export escaped the texts twice",
    ),
    "invisible characters": (
        r"[\x{AD}\x{200B}\x{200E}\x{200F}\x{202A}-\x{202E}\x{2060}\x{2066}-\x{2069}"
        r"\x{FEFF}]",
        "the same word gets other tokens: take them out",
    ),
    "letters with their accents apart": (
        r"\p{Latin}[\x{300}-\x{36F}]",
        "é in two characters has other tokens than é in one: normalise to NFC",
    ),
    "letters of two alphabets in a word": (
        r"\p{Latin}[\p{Cyrillic}\p{Greek}]|[\p{Cyrillic}\p{Greek}]\p{Latin}",
        "look-alikes, as in spam, or damage by text recognition",
    ),
    "words for a missing value, and nothing else": (
        r"^\s*(?i:na|n/a|nan|null|none|nil|#n/a|\(null\)|undefined)\s*$",
        "kept as text: take these rows out where they mean that there is none",
    ),
    "a number, date or id, and nothing else": (
        r"^\s*([A-Za-z]{0,5}[-_#:]?[0-9][0-9\s.,:;/%+_-]*|[0-9A-Fa-f-]{16,})\s*$",
        "little to learn from; is --text_column_name right?",
    ),
    "capitals throughout": (
        r"^\P{Ll}*(\p{Lu}\P{Ll}*){10,}$",
        "an uncased model does not mind; a cased one cuts them into many tokens",
    ),
    "words of 80 characters or more": (
        r"[^\s\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]{80}",
        "long addresses, encoded data, or lost spaces: many tokens, little sense",
    ),
    "web addresses": (
        r"https?://|www\.[a-z]",
        "they take many tokens, and may give a label away",
    ),
    "e-mail addresses": (
        r"[\w.+-]+@[\w-]+\.[A-Za-z]{2,}",
        "personal data: a model can repeat them; replace them by a word",
    ),
    "white space at an end": (
        r"^[\s\p{Z}]|[\s\p{Z}]$",
        "kept as it is; GPT-like models read it as tokens",
    ),
}


@dataclass(frozen=True)
class Profile:
    """What the texts of a source are like.

    Attributes:
        lengths: int32, characters of each row.
        blank: int64, the rows of white space or nothing.
        scripts: letters by script, the most frequent first.
        signs: the rows (int64) that show one, in the order of ``SIGNS``.
    """

    lengths: np.ndarray
    blank: np.ndarray
    scripts: dict[str, int]
    signs: dict[str, np.ndarray]


def profile(source: Source) -> Profile:
    """Look at every text once, a part at a time."""
    lengths, at = np.empty(len(source.dataset), np.int32), 0
    patterns = ["^[\\s\\p{Z}]*$", *(pattern for pattern, _ in SIGNS.values())]
    found: list[list[np.ndarray]] = [[] for _ in patterns]
    characters: Counter[int] = Counter()
    for texts in row_texts(source, "\n"):
        if source.format == MESSAGES:
            texts = ["\n".join(m["content"] for m in json.loads(t)) for t in texts]
        column = pa.array(texts, pa.large_string())
        part = pc.utf8_length(column).to_numpy()
        lengths[at : at + len(part)] = part
        for rows, pattern in zip(found, patterns, strict=True):
            shows = pc.match_substring_regex(column, pattern)
            rows.append(at + np.flatnonzero(shows.to_numpy(zero_copy_only=False)))
        codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        counts = np.bincount(codes)
        characters.update({c: int(counts[c]) for c in np.flatnonzero(counts).tolist()})
        at += len(part)
    blank, *shown = map(np.concatenate, found)
    signs = {sign: rows for sign, rows in zip(SIGNS, shown, strict=True) if len(rows)}
    return Profile(lengths, blank, _scripts(characters), signs)


def _scripts(characters: Counter[int]) -> dict[str, int]:
    """Return letters by the first word of their Unicode name: Latin, Cyrillic, CJK."""
    scripts: Counter[str] = Counter()
    for character, count in characters.items():
        if unicodedata.category(chr(character)).startswith("L"):
            name = unicodedata.name(chr(character), "unnamed").split()[0]
            scripts[name if name == "CJK" else name.capitalize()] += count
    return dict(scripts.most_common())
