"""What no pretraining at all reaches on the same split: TF-IDF and a linear model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score, r2_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from llmft.data.read.labels import MULTI, REGRESSION, LabelNames

# Letters of scripts without spaces (Thai, Lao, Tibetan, Myanmar, Khmer, Japanese,
# Chinese) are words of their own, pairs of them then most of what is a word; all other
# words are sklearn's. Of Chinese, sklearn takes a whole clause for a word.
_UNSPACED = (
    "\u0e01-\u0f8c\u1000-\u109f\u1780-\u17f9\u3005-\u312f\u31a0-\u31ff\u3400-\u9fff"
    "\uf900-\ufad9\U00020000-\U0002fa1d"
)
_WORD = rf"(?u)[{_UNSPACED}]|[^\W{_UNSPACED}]{{2,}}"
_NAMES = {MULTI: "logistic regression of each label", REGRESSION: "ridge regression"}


@dataclass(frozen=True)
class Baseline:
    """The line of a report with a ``tfidf_baseline``, or why there is none."""

    line: str
    metric: str = ""
    value: float = -math.inf

    @classmethod
    def of(
        cls,
        train: Dataset,
        test: Dataset,
        split: str,
        labels: LabelNames,
        threshold: float,
    ) -> Baseline:
        """Train it, and measure it on ``test``, which is called ``split``."""
        try:
            metric, value = tfidf_baseline(train, test, labels, threshold)
        except ValueError as error:  # no word in train, or a single class
            return cls(f"baseline   not computed: {error}")
        name = _NAMES.get(labels.problem_type, "logistic regression")
        line = f"baseline   TF-IDF + {name}, on {split}: {metric} {value:.4g}"
        return cls(line, metric, value)

    def beside(self, reached: Mapping[str, float]) -> str:
        """Return the line, beside what the trained model has ``reached``, by metric."""
        if self.value <= reached.get(self.metric, math.inf):
            return self.line
        return (
            f"{self.line}, more than the model has; more epochs may help, or a model"
            " that was made for this language and subject"
        )


def tfidf_baseline(
    train: Dataset, test: Dataset, labels: LabelNames, threshold: float = 0.5
) -> tuple[str, float]:
    """Return what a linear model on TF-IDF of words and pairs reaches on ``test``.

    It takes seconds. That is the accuracy, the micro F1 of several labels at
    ``threshold``, or the R2 of a regression; the texts of a pair are joined. Raises
    ValueError where train has no word of two letters, or a single class.
    """
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORD)
    logistic = LogisticRegression(C=10.0, max_iter=1000)
    texts, others = _texts(train), _texts(test)
    if labels.problem_type == MULTI:
        # A class that all rows have, or none, is told by itself.
        model: Any = make_pipeline(words, OneVsRestClassifier(logistic))
        model.fit(texts, labels.targets(train["label"][:], "train"))
        guesses = model.predict_proba(others) >= threshold
        wanted = labels.targets(test["label"][:], "test")
        f1 = f1_score(wanted, guesses, average="micro", zero_division=0.0)
        return "f1_micro", float(f1)
    if labels.problem_type == REGRESSION:
        numbers, wanted = (np.array(d["label"][:], float) for d in (train, test))
        model = make_pipeline(words, Ridge()).fit(texts, numbers)
        return "r2", float(r2_score(wanted, model.predict(others)))
    model = make_pipeline(words, logistic).fit(texts, train["label"][:])
    return "accuracy", float(model.score(others, test["label"][:]))


def _texts(data: Dataset) -> list[str]:
    if "text_pair" not in data.column_names:
        return data["text"][:]
    pairs = zip(data["text"], data["text_pair"], strict=True)
    return [f"{one}\n{other}" for one, other in pairs]
