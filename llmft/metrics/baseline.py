"""What no pretraining at all reaches on the same split: TF-IDF and a linear model."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.special import logit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from llmft.data.read.labels import MULTI, REGRESSION, SINGLE, LabelNames
from llmft.metrics.ladder import Rung

_LEAST = 1e-6  # a probability
# Letters of scripts without spaces (Thai, Lao, Tibetan, Myanmar, Khmer, Japanese,
# Chinese) are words of their own, pairs of them then most of what is a word; all other
# words are sklearn's. Of Chinese, sklearn takes a whole clause for a word.
_UNSPACED = (
    "\u0e01-\u0f8c\u1000-\u109f\u1780-\u17f9\u3005-\u312f\u31a0-\u31ff\u3400-\u9fff"
    "\uf900-\ufad9\U00020000-\U0002fa1d"
)
_WORD = rf"(?u)[{_UNSPACED}]|[^\W{_UNSPACED}]{{2,}}"


def tfidf(train: Dataset, test: Dataset, labels: LabelNames) -> Rung:
    """Return the rung of a linear model on TF-IDF of words and pairs of words.

    It takes seconds. The texts of a pair are joined. Of numbers it is a ridge
    regression, else a logistic one of each label.

    Raises:
        ValueError: train has no word of two letters, or a single class.
    """
    start = time.perf_counter()
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORD)
    # Of all classes at once, 150 of them would take 1.3 GiB instead of 60 MiB, and 19 s
    # instead of 4, for an accuracy of 0.910 instead of 0.911 (CLINC150, 2 cores).
    logistic = OneVsRestClassifier(LogisticRegression(C=10.0, solver="liblinear"))
    texts, others = _texts(train), _texts(test)
    targets = labels.targets(train["label"][:], "train")
    if labels.problem_type == SINGLE and len(np.unique(targets)) < 2:
        raise ValueError("a single class to learn")
    last: Any = Ridge() if labels.problem_type == REGRESSION else logistic
    model = make_pipeline(words, last).fit(texts, targets)
    if labels.problem_type == REGRESSION:
        scores = model.predict(others)[:, None]
    else:
        found = model.predict_proba(others).clip(_LEAST, 1 - _LEAST)
        scores = np.full((len(others), len(labels.names)), np.log(_LEAST))
        if labels.problem_type == MULTI:
            scores[:] = logit(found)[:, -scores.shape[1] :]  # of one, no and yes
        else:
            scores[:, model.classes_] = np.log(found)
    regression = "ridge" if labels.problem_type == REGRESSION else "logistic"
    name = f"TF-IDF + {regression} regression"
    return Rung(name, scores, time.perf_counter() - start)


def _texts(data: Dataset) -> list[str]:
    if "text_pair" not in data.column_names:
        return data["text"][:]
    pairs = zip(data["text"], data["text_pair"], strict=True)
    return [f"{one}\n{other}" for one, other in pairs]
