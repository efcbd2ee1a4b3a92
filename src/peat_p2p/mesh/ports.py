"""What the link core needs of a replica.

Owns the port `Store`, so that the core runs against a real replica, and against a small one in memory in simulations of
thousands of nodes. Reads are synchronous and cheap. Must not import a replica.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from peat_p2p.documents.types import PartKey
from peat_p2p.mesh.frames import Version

Key = PartKey
"""Names one part. The core only stores, compares and encodes it."""

Update = Any
"""A decoded change of one part. The core only passes it on to be applied."""


class Encoded(NamedTuple):
    """A part's state for the wire. `whole`: it can be taken by a peer that has nothing of the part."""

    body: bytes
    whole: bool


class Store(Protocol):
    """The parts of one replica, in the order of its own sequence numbers, per class."""

    @property
    def epoch(self) -> bytes:
        """16 bytes that name the database the sequence numbers belong to."""
        ...

    def head(self, klass: int) -> int:
        """The newest sequence number of the class; 0 if nothing was ever in it."""
        ...

    def changed_since(self, klass: int, seq: int, limit: int, *, peer: str = "") -> Sequence[tuple[int, Key]]:
        """Parts whose newest change is after `seq`, oldest first, at most `limit`; without those that `peer` gave."""
        ...

    def seq(self, key: Key) -> int:
        """The sequence number of the part's newest change; 0 if it is not here."""
        ...

    def version(self, key: Key) -> Version | None:
        """How new the part is here; None if it is not here."""
        ...

    def encode_key(self, key: Key) -> bytes:
        """The key's wire form."""
        ...

    def decode_key(self, data: bytes) -> Key:
        """Read a key. Raises InvalidInputError."""
        ...

    def encode(self, key: Key, base: Version | None, base_seq: int) -> Encoded | None:
        """The part's newest state for a peer that has it at `base` (None: unknown).

        The peer also holds, at least as new, everything whose sequence number was at most `base_seq`. None if the part
        is gone.
        """
        ...

    def decode(self, key: Key, body: bytes) -> Update:
        """Read what `encode` made. Raises InvalidInputError."""
        ...

    def version_of(self, update: Update) -> Version | None:
        """How new the part is at who sent this update; None if the update does not tell."""
        ...

    def certificate_key(self, key: Key) -> Key | None:
        """The key under which the certificate of the part's writer travels, if it travels as a part of its own."""
        ...
