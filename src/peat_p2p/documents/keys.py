"""Names of rows and records.

Owns how part keys, certificates, cursors and the like are named on disk, and the key under which a certificate travels.
Must not know what the rows hold.
"""

from __future__ import annotations

import struct

from peat_p2p.documents.rules import CERTIFICATES
from peat_p2p.documents.types import PartKey

PART, CERTIFICATE, CURSOR, CHAIN, META, COVER = b"p", b"c", b"u", b"h", b"m", b"v"


def certificate_key(origin: str) -> PartKey:
    """The key under which the certificate of `origin` is replicated."""
    return PartKey(CERTIFICATES, origin, origin, 0)


def part_row(key: PartKey) -> bytes:
    """The row of a part."""
    return PART + _key_bytes(key)


def chain_row(key: PartKey) -> bytes:
    """The row of the secret chain of one of our own parts."""
    return CHAIN + _key_bytes(key)


def certificate_row(origin: str) -> bytes:
    """The row of a certificate."""
    return CERTIFICATE + bytes.fromhex(origin)


def cursor_row(peer: str, epoch: bytes, klass: int) -> bytes:
    """The row of a cursor."""
    return CURSOR + bytes.fromhex(peer) + struct.pack(">BB", klass, len(epoch)) + epoch


def read_cursor_row(row: bytes) -> tuple[str, bytes, int]:
    """Peer, epoch and class of a cursor's row."""
    return row[1:33].hex(), row[35 : 35 + row[34]], row[33]


def cover_row(origin: str, incarnation: int, klass: int) -> bytes:
    """The row that says how much of a writer's class was here."""
    return COVER + bytes.fromhex(origin) + struct.pack(">QB", incarnation, klass)


def read_cover_row(row: bytes) -> tuple[str, int, int]:
    """Origin, incarnation and class of such a row."""
    incarnation, klass = struct.unpack(">QB", row[33:42])
    return row[1:33].hex(), incarnation, klass


def meta_row(name: str) -> bytes:
    """The row of a single value of the database's own."""
    return META + name.encode()


def _key_bytes(key: PartKey) -> bytes:
    collection, doc_id = key.collection.encode(), key.doc_id.encode()
    return b"".join(
        (
            struct.pack(">HH", len(collection), len(doc_id)),
            collection,
            doc_id,
            bytes.fromhex(key.origin),
            struct.pack(">Q", key.incarnation),
        )
    )


def read_chain_row(row: bytes) -> PartKey:
    """The part whose chain a row holds."""
    n, m = struct.unpack_from(">HH", row, 1)
    at = 5
    collection, doc_id = row[at : at + n].decode(), row[at + n : at + n + m].decode()
    at += n + m
    (incarnation,) = struct.unpack_from(">Q", row, at + 32)
    return PartKey(collection, doc_id, row[at : at + 32].hex(), incarnation)
