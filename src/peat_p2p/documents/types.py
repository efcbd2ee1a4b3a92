"""The words of the room: documents, parts, updates, outcomes, feed events.

Owns the frozen values that cross the room's border. A document is the union of parts, one per writer; a part travels as
an update; applying an update has an outcome. Must not know about pycrdt, SQLite, sockets or asyncio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from peat_p2p.trust.identity import Identity, Role


class PartKey(NamedTuple):
    """Names one part: what one writer says about one document.

    `origin` is the endpoint id of the sidecar that signs the part. `incarnation` tells apart the databases that one
    node has had: a wiped node comes back as a new writer and can never contradict what it signed before.
    """

    collection: str
    doc_id: str
    origin: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Document:
    """What readers see of a document. `json` keeps every value's text exactly as it was written."""

    collection: str
    doc_id: str
    json: str
    version: int


@dataclass(frozen=True, slots=True)
class Beat:
    """A proof of life: the preimage at `position` of the hash chain whose end the part's signature covers."""

    position: int
    preimage: bytes


class Version(NamedTuple):
    """How new a replica's copy of a part is; the greater of two is the newer."""

    generation: int
    version: int
    position: int


@dataclass(frozen=True, slots=True)
class CertificateUpdate:
    """The certificate that proves who `key.origin` is. It goes ahead of any part of that origin."""

    key: PartKey
    certificate: bytes


@dataclass(frozen=True, slots=True)
class PartUpdate:
    """A change of one part, or the whole of it.

    `payload` is a pycrdt update: what follows the first `since` operations of `generation` (0: the whole part). The
    signature is over the content that results, so an update that does not fit what the receiver has is noticed.
    """

    key: PartKey
    generation: int
    version: int
    since: int
    payload: bytes
    signature: bytes
    beat: Beat | None = None

    @property
    def full(self) -> bool:
        """Whether a receiver that has nothing of the part can apply this."""
        return self.since == 0


@dataclass(frozen=True, slots=True)
class BeatUpdate:
    """Only a newer proof of life of a part whose signed content the receiver has."""

    key: PartKey
    beat: Beat

    @property
    def full(self) -> bool:
        """Never: a proof of life says nothing without the part."""
        return False


Update = CertificateUpdate | PartUpdate | BeatUpdate


@dataclass(frozen=True, slots=True)
class CursorMove:
    """We now have all that the database `epoch` of `peer` holds of class `klass` up to its change number `seq`."""

    peer: str
    epoch: bytes
    klass: int
    seq: int


class Verdict(StrEnum):
    """What became of an update."""

    APPLIED = "applied"
    STALE = "stale"
    NEED_FULL = "need_full"
    NEED_CERTIFICATE = "need_certificate"
    REJECTED = "rejected"
    PURGED = "purged"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on the update of the part `key`.

    NEED_FULL: ask the sender for the whole part. NEED_CERTIFICATE: ask it for `certificate_key(key.origin)`, then for
    the whole part. PURGED: the part was deleted and forgotten here; tell the sender `key` and `floor`, so that it
    forgets too. REJECTED: not what an honest peer sends, or not allowed to its origin; `reason` says why.
    """

    verdict: Verdict
    key: PartKey
    reason: str = ""
    floor: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """A document is now as `document` says, or gone (None)."""

    collection: str
    doc_id: str
    document: Document | None


@dataclass(frozen=True, slots=True)
class SnapshotComplete:
    """Everything that was there when the subscription began (or began anew) has been given."""


@dataclass(frozen=True, slots=True)
class Lagged:
    """The reader was too slow: changes were dropped. A fresh snapshot follows; what it does not name is gone."""


FeedEvent = Change | SnapshotComplete | Lagged


@dataclass(frozen=True, slots=True)
class Limits:
    """What one write may hold, and what all parts of one node may: an agent's, or one that orders or publishes."""

    document_bytes: int = 256 * 1024
    doc_id_bytes: int = 512
    fields: int = 4096
    agent_bytes: int = 16 * 1024 * 1024
    other_bytes: int = 256 * 1024 * 1024

    def of(self, identity: Identity) -> int:
        """How many bytes of parts a node may have."""
        return self.agent_bytes if identity.roles == {Role.AGENT} else self.other_bytes


@dataclass(frozen=True, slots=True)
class Counts:
    """How much a replica holds, for status pages and benchmarks."""

    documents: int
    parts: int
    certificates: int
    by_class: Mapping[int, int]
