"""The frames of a link: bytes <-> frozen dataclasses.

Owns the record format (a varint length, then one protobuf `Frame`), the limits on what a peer may send, and
compression. Keeps the rule that anything malformed raises FrameError before any of it is acted on. Must not know what a
frame means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import zstandard
from protobuf import Oneof

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.wire.gen.peat.mesh.v1 import mesh_pb as pb

VERSION = 1
MAX_FRAME = 1024 * 1024
MAX_UNPACKED = 4 * 1024 * 1024
CLASSES = range(4)
_MAX_ITEMS = 65536
MAX_NODES = 64
FANOUT = 16
LEAF_DEPTH = 3
DIGEST = 8
EXPRESS_ID, EXPRESS_KEY = 8, 16
_MAX_KEY = 2048
_PACK_ABOVE = 200
# Made once: that takes longer than packing a small batch. Frames are made and read in one thread.
_COMPRESSOR = zstandard.ZstdCompressor(level=3, write_checksum=False)
_DECOMPRESSOR = zstandard.ZstdDecompressor(max_window_size=MAX_UNPACKED * 2)


class FrameError(InvalidInputError):
    """The peer sent something that is not a frame, or breaks a limit. The link ends."""


class Reason(IntEnum):
    """Why a link is ended on purpose; the numbers are the wire's."""

    UNSPECIFIED = 0
    SHUTDOWN = 1
    STOPPED = 2
    DUPLICATE = 3
    REFUSED = 4
    PROTOCOL = 5
    DISCONNECTED = 6
    BUSY = 7


Heads = tuple[tuple[int, int], ...]
"""Pairs of class and seq."""

Version = tuple[int, int, int]
"""How new a part is; a greater one replaces a lesser."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame of each side; see the proto for each field. `holds` is about the database `holds_epoch`."""

    site: str
    epoch: bytes
    addresses: tuple[str, ...] = ()
    instance: bytes = b""
    optional: bool = False
    holds_epoch: bytes = b""
    holds: Heads = ()
    express: bool = False
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Resume:
    """Answers a Hello that named another database of the receiver, or none: what the sender holds of its own."""

    cursors: Heads


@dataclass(frozen=True, slots=True)
class Batch:
    """State of parts of one class; `items` pairs a ref with an encoded update (empty: the sender no longer has it).

    `through` is how far the receiver then is; with `more`, a step on the way to all that the sender holds.
    """

    klass: int
    number: int
    items: tuple[tuple[int, bytes], ...]
    new_keys: tuple[bytes, ...] = ()
    through: int | None = None
    reset_refs: bool = False
    more: bool = False


@dataclass(frozen=True, slots=True)
class Ack:
    """Batches up to `number` are durable.

    `need_full` are refs whose update did not fit, `need_certificate` those whose writer is not known here, `purged`
    those of parts forgotten here together with the floor below which nothing of them is taken. `held_ms`: how long the
    batch took to become durable here.
    """

    number: int
    need_full: tuple[int, ...] = ()
    heads: Heads = ()
    need_certificate: tuple[int, ...] = ()
    purged: tuple[tuple[int, int], ...] = ()
    held_ms: int = 0


@dataclass(frozen=True, slots=True)
class Purged:
    """Encoded keys of parts forgotten elsewhere, each with its floor."""

    floors: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a Pong with the same nonce."""

    nonce: int
    heads: Heads = ()


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers a Ping. `current`: classes, as bits, in which the receiver's Resume named the newest."""

    nonce: int
    heads: Heads = ()
    current: int = 0


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The last frame of a link that is ended on purpose."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Want:
    """Asks what the peer holds below `nodes` of its hash tree of one class; answered by a Summary or a Listing."""

    klass: int
    depth: int
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """Digests of the children of `nodes`, 16 for each."""

    klass: int
    depth: int
    nodes: tuple[int, ...]
    digests: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """The parts held below `nodes`: fingerprint of the key, version."""

    klass: int
    depth: int
    nodes: tuple[int, ...]
    parts: tuple[tuple[int, Version], ...]


@dataclass(frozen=True, slots=True)
class Express:
    """Where the sender also takes urgent batches as datagrams: a UDP port, and what they are named and sealed with."""

    port: int
    id: bytes
    key: bytes = field(repr=False)


Frame = Hello | Resume | Batch | Ack | Ping | Pong | Goodbye | Summary | Want | Listing | Purged | Express


def encode_frame(frame: Frame) -> bytes:
    """The record that carries `frame`, length included."""
    body = _encode_body(frame)
    return _varint(len(body)) + body


def decode_frame(body: bytes) -> Frame:
    """Read one frame from the content of a record. Raises FrameError for anything that is not exactly one."""
    try:
        kind = pb.Frame.from_binary(body).kind
    except Exception as error:  # the parser raises several kinds for hostile input
        raise FrameError(f"not a frame: {error}") from error
    if kind is None:
        raise FrameError("frame of no known kind")
    return _DECODERS[kind.field](kind.value)


class RecordReader:
    """Cuts a byte stream into records, holding no more than one record's bytes."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take `data`; yield the content of every record complete now. Raises FrameError for one over the limit."""
        self._buffer += data
        while True:
            header = self._header()
            if header is None:
                return
            start, length = header
            if length > self._limit:
                raise FrameError(f"record of {length} bytes is over the limit of {self._limit}")
            if len(self._buffer) < start + length:
                return
            record = bytes(self._buffer[start : start + length])
            del self._buffer[: start + length]
            yield record

    def _header(self) -> tuple[int, int] | None:
        length = 0
        for index in range(4):
            if index >= len(self._buffer):
                return None
            byte = self._buffer[index]
            length |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return index + 1, length
        raise FrameError("record length is over four bytes")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _heads(heads: Heads) -> list[pb.Cursor]:
    return [pb.Cursor(klass=klass, seq=seq) for klass, seq in heads]


def _encode_body(frame: Frame) -> bytes:
    kind: Any
    match frame:
        case Batch():
            message = pb.Batch(
                klass=frame.klass,
                number=frame.number,
                new_keys=list(frame.new_keys),
                reset_refs=frame.reset_refs,
                more=frame.more,
            )
            if frame.through is not None:
                message.through = frame.through
            message.refs = [ref for ref, _ in frame.items]
            bodies = [body for _, body in frame.items]
            together = [*frame.new_keys, *bodies]
            if sum(map(len, together)) > _PACK_ABOVE:
                plain = b"".join(_varint(len(one)) + one for one in together)
                packed = _COMPRESSOR.compress(plain)
                if len(packed) < len(plain):
                    message.packed = packed
                    message.packed_keys = len(frame.new_keys)
                    message.new_keys = []
                    bodies = []
            message.bodies = bodies
            kind = Oneof(field="batch", value=message)
        case Resume():
            kind = Oneof(field="resume", value=pb.Resume(cursors=_heads(frame.cursors)))
        case Ack():
            ack = pb.Ack(
                number=frame.number,
                need_full=list(frame.need_full),
                heads=_heads(frame.heads),
                need_certificate=list(frame.need_certificate),
                purged=[ref for ref, _ in frame.purged],
                floors=[floor for _, floor in frame.purged],
                held_ms=frame.held_ms,
            )
            kind = Oneof(field="ack", value=ack)
        case Purged():
            keys = [key for key, _ in frame.floors]
            kind = Oneof(field="purged", value=pb.Purged(keys=keys, floors=[floor for _, floor in frame.floors]))
        case Ping():
            kind = Oneof(field="ping", value=pb.Ping(nonce=frame.nonce, heads=_heads(frame.heads)))
        case Pong():
            kind = Oneof(
                field="pong", value=pb.Pong(nonce=frame.nonce, heads=_heads(frame.heads), current=frame.current)
            )
        case Goodbye():
            reason = pb.GoodbyeReason(int(frame.reason))
            kind = Oneof(field="goodbye", value=pb.Goodbye(reason=reason, detail=frame.detail[:200]))
        case Want():
            kind = Oneof(field="want", value=pb.Want(klass=frame.klass, depth=frame.depth, nodes=list(frame.nodes)))
        case Summary():
            digests = b"".join(digest.to_bytes(DIGEST, "big") for digest in frame.digests)
            summary = pb.Summary(klass=frame.klass, depth=frame.depth, nodes=list(frame.nodes), digests=digests)
            kind = Oneof(field="summary", value=summary)
        case Listing():
            listing = pb.Listing(
                klass=frame.klass,
                depth=frame.depth,
                nodes=list(frame.nodes),
                fingerprints=b"".join(fingerprint.to_bytes(DIGEST, "big") for fingerprint, _ in frame.parts),
                versions=[number for _, version in frame.parts for number in version],
            )
            kind = Oneof(field="listing", value=listing)
        case Hello():
            kind = Oneof(
                field="hello",
                value=pb.Hello(
                    version=frame.version,
                    site=frame.site,
                    epoch=frame.epoch,
                    addresses=list(frame.addresses),
                    instance=frame.instance,
                    optional=frame.optional,
                    holds_epoch=frame.holds_epoch,
                    holds=_heads(frame.holds),
                    express=frame.express,
                ),
            )
        case Express():
            kind = Oneof(field="express", value=pb.Express(port=frame.port, id=frame.id, key=frame.key))
    return pb.Frame(kind=kind).to_binary()


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise FrameError(what)


def _read_heads(cursors: list[pb.Cursor]) -> Heads:
    _check(len(cursors) <= len(CLASSES), "too many cursors")
    _check(all(cursor.klass in CLASSES for cursor in cursors), "cursor of an unknown class")
    return tuple((cursor.klass, cursor.seq) for cursor in cursors)


def _read_hello(message: pb.Hello) -> Hello:
    _check(message.version >= 1, "hello of no version")
    _check(len(message.epoch) == 16, "epoch is not 16 bytes")
    _check(len(message.site) <= 256, "name too long")
    _check(len(message.instance) <= 16, "instance too long")
    _check(len(message.holds_epoch) in (0, 16), "epoch is not 16 bytes")
    _check(len(message.addresses) <= 16 and all(len(a) <= 300 for a in message.addresses), "too many addresses")
    return Hello(
        site=message.site,
        epoch=message.epoch,
        addresses=tuple(message.addresses),
        instance=message.instance,
        optional=message.optional,
        holds_epoch=message.holds_epoch,
        holds=_read_heads(message.holds),
        express=message.express,
        version=message.version,
    )


def _read_express(message: pb.Express) -> Express:
    _check(0 < message.port < 65536, "express to no port")
    _check(len(message.id) == EXPRESS_ID and len(message.key) == EXPRESS_KEY, "express of a wrong length")
    return Express(message.port, message.id, message.key)


def _read_batch(message: pb.Batch) -> Batch:
    _check(message.klass in CLASSES, "batch of an unknown class")
    _check(len(message.refs) <= _MAX_ITEMS, "batch too long")
    new_keys, bodies = list(message.new_keys), list(message.bodies)
    if message.packed:
        _check(not new_keys and not bodies, "batch both packed and not")
        unpacked = _unpack(message.packed)
        new_keys, bodies = unpacked[: message.packed_keys], unpacked[message.packed_keys :]
    _check(len(new_keys) <= len(message.refs), "batch too long")
    _check(all(0 < len(key) <= _MAX_KEY for key in new_keys), "key too long")
    _check(len(bodies) == len(message.refs), "batch with unequal numbers of refs and bodies")
    through = message.through if message.has_field("through") else None
    items = tuple(zip(message.refs, bodies, strict=True))
    return Batch(message.klass, message.number, items, tuple(new_keys), through, message.reset_refs, message.more)


def _unpack(packed: bytes) -> list[bytes]:
    try:
        size = zstandard.frame_content_size(packed)
        _check(0 < size <= MAX_UNPACKED, "packed batch too large")
        plain = _DECOMPRESSOR.decompress(packed, max_output_size=size)
    except (zstandard.ZstdError, MemoryError) as error:
        raise FrameError(f"packed batch cannot be read: {error}") from error
    bodies: list[bytes] = []
    at = 0
    while at < len(plain):
        length = shift = 0
        while True:
            _check(at < len(plain) and shift <= 21, "packed batch cut short")
            byte = plain[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        _check(at + length <= len(plain), "packed batch cut short")
        bodies.append(plain[at : at + length])
        at += length
        _check(len(bodies) <= 2 * _MAX_ITEMS, "batch too long")
    return bodies


def _check_nodes(depth: int, nodes: list[int]) -> None:
    _check(depth <= LEAF_DEPTH and 0 < len(nodes) <= MAX_NODES, "summary too deep or too long")
    _check(all(node < FANOUT**depth for node in nodes), "no such node in the summary tree")


def _read_integers(packed: bytes) -> list[int]:
    return [int.from_bytes(packed[at : at + DIGEST], "big") for at in range(0, len(packed), DIGEST)]


def _read_want(message: pb.Want) -> Want:
    _check(message.klass in CLASSES, "want of an unknown class")
    _check_nodes(message.depth, message.nodes)
    return Want(message.klass, message.depth, tuple(message.nodes))


def _read_summary(message: pb.Summary) -> Summary:
    _check(message.klass in CLASSES, "summary of an unknown class")
    _check_nodes(message.depth, message.nodes)
    _check(len(message.digests) == DIGEST * FANOUT * len(message.nodes), "summary cut short")
    return Summary(message.klass, message.depth, tuple(message.nodes), tuple(_read_integers(message.digests)))


def _read_listing(message: pb.Listing) -> Listing:
    _check(message.klass in CLASSES, "listing of an unknown class")
    _check_nodes(message.depth, message.nodes)
    count = len(message.fingerprints) // DIGEST
    _check(count <= _MAX_ITEMS and len(message.versions) == 3 * count, "listing cut short or too long")
    _check(len(message.fingerprints) == DIGEST * count, "listing cut short")
    numbers = message.versions
    versions = zip(numbers[0::3], numbers[1::3], numbers[2::3], strict=True)
    parts = tuple(zip(_read_integers(message.fingerprints), versions, strict=True))
    return Listing(message.klass, message.depth, tuple(message.nodes), parts)


def _read_ack(message: pb.Ack) -> Ack:
    _check(max(map(len, (message.need_full, message.need_certificate, message.purged))) <= _MAX_ITEMS, "ack too long")
    _check(len(message.purged) == len(message.floors), "ack cut short")
    return Ack(
        message.number,
        tuple(message.need_full),
        _read_heads(message.heads),
        tuple(message.need_certificate),
        tuple(zip(message.purged, message.floors, strict=True)),
        message.held_ms,
    )


def _read_purged(message: pb.Purged) -> Purged:
    _check(len(message.keys) == len(message.floors) <= _MAX_ITEMS, "purged cut short or too long")
    return Purged(tuple(zip(message.keys, message.floors, strict=True)))


def _read_goodbye(message: pb.Goodbye) -> Goodbye:
    number = int(message.reason)
    reason = Reason(number) if number in Reason.__members__.values() else Reason.UNSPECIFIED
    return Goodbye(reason, "".join(c if c.isprintable() else "?" for c in message.detail[:200]))


_DECODERS: dict[str, Callable[..., Frame]] = {
    "hello": _read_hello,
    "resume": lambda message: Resume(_read_heads(message.cursors)),
    "batch": _read_batch,
    "ack": _read_ack,
    "ping": lambda message: Ping(message.nonce, _read_heads(message.heads)),
    "pong": lambda message: Pong(message.nonce, _read_heads(message.heads), message.current),
    "goodbye": _read_goodbye,
    "summary": _read_summary,
    "purged": _read_purged,
    "express": _read_express,
    "want": _read_want,
    "listing": _read_listing,
}
