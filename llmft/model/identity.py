"""What pins a model and its tokenizer, for the record of a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from llmft.data.tokens.encode import tokenizer_fingerprint
from llmft.files import file_sha256
from llmft.sources.hub import Located


def fingerprint(located: Located, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return what pins model and tokenizer: the hub commit, or sha256 of the files."""
    hashes = {"name": located.name, "tokenizer": tokenizer_fingerprint(tokenizer)}
    if template := tokenizer.chat_template:
        text = json.dumps(template)
        hashes["chat_template"] = hashlib.sha256(text.encode()).hexdigest()
    if located.commit:
        return {**hashes, "commit": located.commit}
    for path in sorted(Path(located.path_or_id).glob("*.safetensors")):
        hashes[path.name] = file_sha256(path)
    return hashes
