"""What a store tells about itself: its packages, chunks and space.

Owns the types only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peat_p2p.content.index import Index
from peat_p2p.content.manifest import Manifest


@dataclass(frozen=True, slots=True)
class StoredPackage:
    """A package all of whose chunks are, or were, here. `info` is the torrent's info dict."""

    manifest: Manifest
    manifest_digest: str
    envelope: dict[str, Any]
    info: bytes
    index: Index


@dataclass(frozen=True, slots=True)
class PackageSummary:
    """A package in brief. Times are Unix seconds."""

    manifest: Manifest
    manifest_digest: str
    pinned: bool
    added: float
    used: float


@dataclass(frozen=True, slots=True)
class GcResult:
    """What a garbage collection removed: journaled chunks, their bytes, and files the journal did not know."""

    chunks: int
    bytes: int
    strays: int


@dataclass(frozen=True, slots=True)
class StoreStat:
    """What is in the store. Loose chunks belong to no package; `gc` removes them."""

    packages: int
    chunks: int
    chunk_bytes: int
    loose_chunks: int
    loose_bytes: int
    reserved_bytes: int
    free_bytes: int


@dataclass(slots=True)
class Reservation:
    """Space set aside; `left` is what of it has not been written yet."""

    left: int


@dataclass(frozen=True, slots=True)
class Rotten:
    """A chunk whose file no longer has its content, and the packages (manifest digests) that need it again."""

    digest: str
    size: int
    packages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """What a look at stored chunks found; `rotten` ones are removed and have to be fetched again."""

    chunks: int
    bytes: int
    rotten: tuple[Rotten, ...]
