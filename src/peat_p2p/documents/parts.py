"""A replica's copy of a part, and the row it is kept in.

Owns the record and its bytes on disk. Keeps the rule that a record never changes: a newer one takes its place, so that
readers, links and the disk can hold the same object. Must not know where rows are kept.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from peat_p2p.documents.chain import VALUE_BYTES
from peat_p2p.documents.content import Content, decode
from peat_p2p.documents.types import Beat, PartKey, Version
from peat_p2p.documents.ymap import BadContentError

_HEAD = struct.Struct(">BQQQQIBHH32sQ")
_ROW_FORM = 1
_BEAT = struct.Struct(f">I{VALUE_BYTES}s")
# How many earlier states are remembered for deltas; a peer further behind gets the whole part.
_MARKS = 4


@dataclass(frozen=True, slots=True)
class Part:
    """What this replica has of one part.

    `seq` is the number of the local change that brought it here, `content_seq` of the one that last changed what is
    signed (a proof of life does not). `peers` name the links at whose other end this state is too, `marks` are
    (content_seq, operations) of earlier states; both are only in memory.
    """

    key: PartKey
    generation: int
    version: int
    count: int
    state: bytes
    signature: bytes
    beat: Beat | None
    seq: int
    content_seq: int
    accepted: int
    peers: tuple[str, ...] = ()
    marks: tuple[tuple[int, int], ...] = ()

    @property
    def newness(self) -> Version:
        """How this copy compares with another replica's."""
        return Version(self.generation, self.version, self.beat.position if self.beat else 0)

    def content(self) -> Content:
        """What the part says. The state was checked when it came, so it can be read."""
        return decode(self.state)

    def older_marks(self) -> tuple[tuple[int, int], ...]:
        """The marks of a state of the same generation that follows this one."""
        return (*self.marks[-_MARKS + 1 :], (self.content_seq, self.count))

    def operations_at(self, base_seq: int) -> int:
        """How many operations a peer has that has everything up to our change `base_seq`; 0 if that is not known."""
        if base_seq >= self.content_seq:
            return self.count
        known = [count for seq, count in self.marks if seq <= base_seq]
        return known[-1] if known else 0

    def to_row(self) -> bytes:
        """The record as bytes."""
        collection, doc_id = self.key.collection.encode(), self.key.doc_id.encode()
        head = _HEAD.pack(
            _ROW_FORM,
            self.generation,
            self.version,
            self.seq,
            self.content_seq,
            self.count,
            self.beat is not None,
            len(collection),
            len(doc_id),
            bytes.fromhex(self.key.origin),
            self.key.incarnation,
        )
        beat = _BEAT.pack(self.beat.position, self.beat.preimage) if self.beat else b""
        accepted = struct.pack(">Q", self.accepted)
        return b"".join((head, accepted, self.signature, beat, collection, doc_id, self.state))


def from_row(row: bytes, intern: dict[str, str]) -> Part:
    """Read what `to_row` wrote; equal names share one string through `intern`. Raises BadContentError."""
    try:
        head = _HEAD.unpack_from(row)
        form, generation, version, seq, content_seq, count, has_beat, n, m, origin, incarnation = head
        if form != _ROW_FORM:
            raise BadContentError(f"row form {form} is not known")
        at = _HEAD.size
        (accepted,) = struct.unpack_from(">Q", row, at)
        at += 8
        signature = row[at : at + 64]
        at += 64
        beat = None
        if has_beat:
            beat = Beat(*_BEAT.unpack_from(row, at))
            at += _BEAT.size
        collection = row[at : at + n].decode()
        doc_id = row[at + n : at + n + m].decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise BadContentError(f"row cannot be read: {error}") from None
    origin_hex = origin.hex()
    key = PartKey(
        intern.setdefault(collection, collection), doc_id, intern.setdefault(origin_hex, origin_hex), incarnation
    )
    return Part(key, generation, version, count, row[at + n + m :], signature, beat, seq, content_seq, accepted)
