"""Fixtures shared by all tests. No test of tests/unit reaches for a network."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# A shell starts its background jobs with Ctrl-C ignored; what tests start must not be.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Read by huggingface_hub when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import tiny
from transformers import PreTrainedTokenizerFast


@pytest.fixture(autouse=True)
def _own_cache(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give each test its own cache, unless it asks for the real assets."""
    if not request.node.get_closest_marker("assets"):
        monkeypatch.setenv("LLMFT_HOME", str(tmp_path / "llmft-home"))


@pytest.fixture(scope="session")
def wordpiece() -> PreTrainedTokenizerFast:
    """A small uncased WordPiece tokenizer. Do not change it: it is shared."""
    return tiny.wordpiece_tokenizer()


@pytest.fixture(scope="session")
def bpe() -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer without a pad token. It is shared too."""
    return tiny.bpe_tokenizer()


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 2-layer BERT for masked LM with its tokenizer."""
    return tiny.save(tmp_path_factory.mktemp("bert"), "bert", "masked-lm")


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 2-layer GPT-2 with its tokenizer."""
    return tiny.save(tmp_path_factory.mktemp("gpt2"), "gpt2", "causal-lm")
