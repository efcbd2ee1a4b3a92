"""A replica as the link core sees it.

Owns the wire form of part keys and the adaptation of `documents.Replica` to the `Store` port. Must not decide anything.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.documents.codec import decode_update, encode_update
from peat_p2p.documents.keys import certificate_key
from peat_p2p.documents.replica import Replica
from peat_p2p.documents.rules import CERTIFICATES
from peat_p2p.documents.types import BeatUpdate, CertificateUpdate, CursorMove, Outcome, PartKey, PartUpdate, Update
from peat_p2p.documents.types import Version as PartVersion
from peat_p2p.mesh.frames import Version
from peat_p2p.mesh.ports import Encoded

_COLLECTION_BYTES = 128
_ID_BYTES = 512


class ReplicaStore:
    """The `Store` port over a replica."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    @property
    def epoch(self) -> bytes:
        """See Store."""
        return self._replica.epoch

    def head(self, klass: int) -> int:
        """See Store."""
        return self._replica.head(klass)

    def changed_since(self, klass: int, seq: int, limit: int, *, peer: str = "") -> Sequence[tuple[int, PartKey]]:
        """See Store."""
        return self._replica.changed_since(klass, seq, limit, peer=peer)

    def seq(self, key: PartKey) -> int:
        """See Store."""
        return self._replica.seq(key)

    def version(self, key: PartKey) -> Version | None:
        """See Store."""
        if key.collection == CERTIFICATES:
            identity = self._replica.certificate(key.origin)
            return None if identity is None else (int(identity.not_before), int(identity.not_after), 0)
        return self._replica.version(key)

    def encode_key(self, key: PartKey) -> bytes:
        """See Store."""
        return encode_key(key)

    def decode_key(self, data: bytes) -> PartKey:
        """See Store."""
        return decode_key(data)

    def encode(self, key: PartKey, base: Version | None, base_seq: int) -> Encoded | None:
        """See Store."""
        update = self._replica.make_update(key, base_seq, None if base is None else PartVersion(*base))
        if update is None:
            return None
        return Encoded(encode_update(update), isinstance(update, CertificateUpdate) or update.full)

    def decode(self, key: PartKey, body: bytes) -> Update:
        """See Store."""
        return decode_update(key, body)

    def version_of(self, update: Update) -> Version | None:
        """See Store."""
        match update:
            case PartUpdate():
                return (update.generation, update.version, 0 if update.beat is None else update.beat.position)
            case BeatUpdate():
                held = self._replica.version(update.key)
                return None if held is None else (held.generation, held.version, update.beat.position)
            case CertificateUpdate():
                held_here = self._replica.certificate(update.key.origin)
                same = held_here is not None and held_here.certificate == update.certificate
                return self.version(update.key) if same else None

    def certificate_key(self, key: PartKey) -> PartKey | None:
        """See Store."""
        return certificate_key(key.origin)


def encode_key(key: PartKey) -> bytes:
    """The wire form: lengths of collection and id, both, the origin's 32 bytes, the incarnation if there is one."""
    collection, doc_id = key.collection.encode(), key.doc_id.encode()
    incarnation = struct.pack(">Q", key.incarnation).lstrip(b"\0")
    return b"".join(
        (struct.pack(">BH", len(collection), len(doc_id)), collection, doc_id, bytes.fromhex(key.origin), incarnation)
    )


def decode_key(data: bytes) -> PartKey:
    """Read a key. Raises InvalidInputError."""
    try:
        collection_bytes, id_bytes = struct.unpack_from(">BH", data)
        origin_at = 3 + collection_bytes + id_bytes
        if collection_bytes > _COLLECTION_BYTES or id_bytes > _ID_BYTES or not 32 <= len(data) - origin_at <= 40:
            raise InvalidInputError("part key of a wrong length")
        return PartKey(
            data[3 : 3 + collection_bytes].decode(),
            data[3 + collection_bytes : origin_at].decode(),
            data[origin_at : origin_at + 32].hex(),
            int.from_bytes(data[origin_at + 32 :], "big"),
        )
    except (struct.error, UnicodeDecodeError) as error:
        raise InvalidInputError(f"not a part key: {error}") from error


class ReplicaSink:
    """What links write to a replica.

    Remembers the cursors of this process: the replica commits cursors with the next data, and until then does not show
    them, but a link that comes back at once shall not repeat what its predecessor brought.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._cursors: dict[str, tuple[bytes, dict[int, int]]] = {}

    async def apply(self, updates: Sequence[Update], source: str, cursors: Sequence[CursorMove] = ()) -> list[Outcome]:
        """See Sink."""
        outcomes = await self._replica.apply(updates, source, cursors)
        for move in cursors:
            epoch, held = self._cursors.get(move.peer, (b"", {}))
            if epoch != move.epoch:
                held = {}
                self._cursors[move.peer] = (move.epoch, held)
            held[move.klass] = move.seq
        return outcomes

    def cursors(self, peer: str, epoch: bytes) -> dict[int, int]:
        """See Sink."""
        known, held = self._cursors.get(peer, (b"", {}))
        return {**self._replica.cursors(peer, epoch), **(held if known == epoch else {})}

    def known(self, peer: str) -> tuple[bytes, dict[int, int]]:
        """The database that the peer had when it was last met, and how far it is held; of no name if it never was."""
        if peer in self._cursors:
            return self._cursors[peer]
        return self._replica.met(peer)

    async def forget(self, purged: Iterable[tuple[PartKey, int]], peer: str) -> list[tuple[PartKey, int]]:
        """See Sink."""
        return await self._replica.forget(purged, peer)

    async def caught_up(self, peer: str) -> None:
        """See Sink."""
        await self._replica.caught_up(peer)

    def take_reoffer(self, peer: str) -> bool:
        """See Sink."""
        return self._replica.take_reoffer(peer)
