"""What pins a model and its tokenizer, for the record of a run, and its terms."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from llmft.data.tokens.encode import tokenizer_fingerprint
from llmft.files import file_sha256
from llmft.sources.hub import Located

_TERMS = re.compile(r"(licen[cs]e|notice|use_policy|(.*_)?terms)\b.*", re.IGNORECASE)


def terms_files(folder: str | Path) -> list[Path]:
    """Return the files beside a model that say on what terms it may be passed on.

    Licence, notice, terms of use: what is made of the model is to have them, too.
    ``folder`` is the ``name_or_path`` of the model; none where that is no folder.
    """
    found = Path(folder).glob("*") if folder else ()
    return sorted(p for p in found if p.is_file() and _TERMS.fullmatch(p.name))


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
