"""One transmission for many: a package as RaptorQ symbols, complete from any sufficient set. Pure: no sockets, no disk.

Owns the datagrams of a broadcast and their two ends. The signed manifest and the torrent's metadata come first (the
head), then the chunks, one after the other, cut into blocks. Nothing leaves a receiver before the head has passed the
caller's check, and no chunk before its BLAKE3 is the one that the head names: a forged symbol spoils a block, which
ordinary peers fill later under the same names, and never enters anything. Receivers need not be able to send.
"""

from __future__ import annotations

import json
import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3
from raptorq import Decoder, Encoder  # type: ignore[import-untyped]

from peat_p2p.content.index import ChunkRef
from peat_p2p.core.errors import InvalidInputError, PeatError

MAGIC = 0xB8
VERSION = 1
BLOCK = 1 << 20
SYMBOL = 1344
MAX_HEAD = 64 << 20
MAX_BLOCKS = 1 << 20
_HEADER = struct.Struct("!BBQIII")
_PACKET = SYMBOL + 4
_LENGTH = struct.Struct("!I")
_OPEN_DECODERS = 16
_WAITING_BLOCKS = 40
_SESSIONS = 4
_CERTAINTY = 3.5  # standard deviations of the losses that redundancy covers, for every receiver and block

CheckHead = Callable[[dict[str, Any], bytes], Sequence[ChunkRef]]


def symbols_needed(length: int, loss: float) -> int:
    """Symbols to send of a block so that receivers who lose this share of them almost surely get enough."""
    least = math.ceil(length / SYMBOL) + 1
    return math.ceil(least / (1 - loss) + _CERTAINTY * math.sqrt(least * loss) / (1 - loss))


def broadcast(
    session: int,
    envelope: dict[str, Any],
    info: bytes,
    chunks: Sequence[ChunkRef],
    wanted: Sequence[bool],
    read: Callable[[ChunkRef], bytes],
    loss: float,
) -> Iterator[bytes]:
    """The datagrams of a broadcast. `wanted` marks which of `chunks` (all of the package's, in order) are sent.

    `loss` is the share of datagrams that a receiver may lose.
    """
    head = _head(envelope, info, wanted)
    sizes = [chunk.size for chunk, want in zip(chunks, wanted, strict=True) if want]
    total = -(-sum(sizes) // BLOCK) + 1
    yield from _block(session, 0, total, head, loss)
    number = 1
    waiting = bytearray()
    for chunk, want in zip(chunks, wanted, strict=True):
        if not want:
            continue
        waiting += read(chunk)
        while len(waiting) >= BLOCK:
            yield from _block(session, number, total, bytes(waiting[:BLOCK]), loss)
            del waiting[:BLOCK]
            number += 1
    if waiting:
        yield from _block(session, number, total, bytes(waiting), loss)


def _head(envelope: dict[str, Any], info: bytes, wanted: Sequence[bool]) -> bytes:
    signed = json.dumps(envelope, separators=(",", ":")).encode()
    bits = bytearray(-(-len(wanted) // 8))
    for place, want in enumerate(wanted):
        if want:
            bits[place // 8] |= 0x80 >> place % 8
    return b"".join((_LENGTH.pack(len(signed)), signed, _LENGTH.pack(len(info)), info, bytes(bits)))


def _block(session: int, number: int, total: int, data: bytes, loss: float) -> Iterator[bytes]:
    source = math.ceil(len(data) / SYMBOL)
    extra = max(2, symbols_needed(len(data), loss) - source)
    packets = Encoder.with_defaults(data, _PACKET).get_encoded_packets(extra)
    head = _HEADER.pack(MAGIC, VERSION, session, number, total, len(data))
    for packet in packets:
        yield head + packet


@dataclass(slots=True)
class _Session:
    total: int
    decoders: OrderedDict[tuple[int, int], Decoder] = field(default_factory=OrderedDict)
    done: set[int] = field(default_factory=set)
    waiting: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    chunks: list[tuple[ChunkRef, int]] | None = None  # what is sent, with offsets in the stream of blocks
    left: set[int] = field(default_factory=set)


class BroadcastReceiver:
    """Puts chunks together again. `check` verifies a head (signature, role, infohash) and returns the package's chunks;
    it raises PeatError for one that is not good. `keep` takes a verified chunk."""

    def __init__(self, check: CheckHead, keep: Callable[[ChunkRef, bytes], None]) -> None:
        self._check = check
        self._keep = keep
        self._sessions: OrderedDict[int, _Session] = OrderedDict()
        self.refused = 0
        self.spoiled = 0
        self.taken = 0  # datagrams that count: of sessions whose head was good

    def complete(self, session: int) -> bool:
        """Whether everything that a session sends has been kept."""
        found = self._sessions.get(session)
        return found is not None and found.chunks is not None and not found.left

    def receive(self, datagram: bytes) -> None:
        """Take a datagram in; whatever is wrong with it, it is ignored."""
        if len(datagram) != _HEADER.size + _PACKET:
            return
        magic, version, name, number, total, length = _HEADER.unpack_from(datagram)
        limit = MAX_HEAD if number == 0 else BLOCK
        if (magic, version) != (MAGIC, VERSION) or not 0 < length <= limit or not number < total <= MAX_BLOCKS:
            return
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = _Session(total)
            while len(self._sessions) > _SESSIONS:
                self._sessions.popitem(last=False)
        if number in session.done or total != session.total:
            return
        decoder = session.decoders.get((number, length))
        if decoder is None:
            decoder = session.decoders[number, length] = Decoder.with_defaults(length, _PACKET)
            while len(session.decoders) > _OPEN_DECODERS:
                session.decoders.popitem(last=False)
        if session.chunks is not None:
            self.taken += 1
        data = decoder.decode(datagram[_HEADER.size :])
        if data is None:
            return
        del session.decoders[number, length]
        if number == 0:
            self._open(session, bytes(data))
        else:
            session.done.add(number)
            session.waiting[number] = bytes(data)
            while len(session.waiting) > _WAITING_BLOCKS:
                session.waiting.popitem(last=False)
        if session.chunks is not None:
            self._deliver(session)

    def _open(self, session: _Session, head: bytes) -> None:
        try:
            envelope, info, bits = _parse_head(head)
            chunks = self._check(envelope, info)
        except PeatError:
            self.refused += 1
            return
        at = 0
        sent = []
        for place, chunk in enumerate(chunks):
            if place // 8 < len(bits) and bits[place // 8] & 0x80 >> place % 8:
                sent.append((chunk, at))
                at += chunk.size
        session.done.add(0)
        session.chunks = sent
        session.left = set(range(len(sent)))

    def _deliver(self, session: _Session) -> None:
        """Hand out every chunk whose blocks are all here, then drop blocks that no chunk still needs."""
        assert session.chunks is not None
        needed: set[int] = set()
        for place in sorted(session.left):
            chunk, at = session.chunks[place]
            first, last = at // BLOCK + 1, (at + max(chunk.size, 1) - 1) // BLOCK + 1
            blocks = range(first, last + 1)
            if not all(number in session.waiting for number in blocks):
                needed.update(blocks)
                continue
            joined = b"".join(session.waiting[number] for number in blocks)
            data = joined[at - (first - 1) * BLOCK :][: chunk.size]
            session.left.discard(place)
            if blake3(data).digest() == chunk.digest:
                self._keep(chunk, data)
            else:
                self.spoiled += 1
        for number in [number for number in session.waiting if number not in needed]:
            del session.waiting[number]


def _parse_head(head: bytes) -> tuple[dict[str, Any], bytes, bytes]:
    try:
        (length,) = _LENGTH.unpack_from(head)
        envelope = json.loads(head[4 : 4 + length])
        (size,) = _LENGTH.unpack_from(head, 4 + length)
    except (struct.error, ValueError, RecursionError) as error:
        raise InvalidInputError("the head of a broadcast is not in its form") from error
    info = head[8 + length : 8 + length + size]
    if not isinstance(envelope, dict) or len(info) != size:
        raise InvalidInputError("the head of a broadcast is not in its form")
    return envelope, info, head[8 + length + size :]
