"""The bearer's datagrams, as bytes.

Owns the format and its limits. A datagram is a header (kind, connection, packet number, the ack delay asked for) and
frames. Everything in it is a claim of somebody on the network: decoding raises BearerFormatError and nothing else. What
the streams carry is TLS between the agents; this layer adds no secrecy and needs none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peat_p2p.core.errors import InvalidInputError

MAGIC = 0xB7
MAX_DATAGRAM = 1412  # 1,440 bytes of IPv4: leaves room for tunnels on a path of 1,500
HEADER = struct.Struct("!BBQIBH")
_STREAM = struct.Struct("!BHQH")
_CREDIT = struct.Struct("!BHQ")
_RESET = struct.Struct("!BH")
_ACK = struct.Struct("!BIHIQB")
_RANGE = struct.Struct("!HH")
STREAM_OVERHEAD = _STREAM.size
MAX_RANGES = 200
TICK = 1e-4  # times are counted in tenths of a millisecond
ACK_DELAY_UNIT = 0.004

OPENING = 1  # from whoever begins the connection, until it has heard from the other side
ORDINARY = 2

_F_ACK, _F_STREAM, _F_FIN, _F_CREDIT, _F_RESET, _F_PING, _F_PAD = 1, 2, 3, 4, 5, 6, 0


class BearerFormatError(InvalidInputError):
    """A datagram that is not the bearer's."""


@dataclass(frozen=True, slots=True)
class StreamFrame:
    """Bytes of a stream at an offset; `fin` says that they are the last."""

    stream: int
    offset: int
    data: bytes
    fin: bool = False

    def encode(self) -> bytes:
        """As in a datagram."""
        return _STREAM.pack(_F_FIN if self.fin else _F_STREAM, self.stream, self.offset, len(self.data)) + self.data


@dataclass(frozen=True, slots=True)
class CreditFrame:
    """The stream may be sent up to this offset."""

    stream: int
    limit: int

    def encode(self) -> bytes:
        """As in a datagram."""
        return _CREDIT.pack(_F_CREDIT, self.stream, self.limit)


@dataclass(frozen=True, slots=True)
class ResetFrame:
    """The stream is broken off."""

    stream: int

    def encode(self) -> bytes:
        """As in a datagram."""
        return _RESET.pack(_F_RESET, self.stream)


@dataclass(frozen=True, slots=True)
class PingFrame:
    """Nothing, but to be acknowledged."""

    def encode(self) -> bytes:
        """As in a datagram."""
        return bytes((_F_PING,))


@dataclass(frozen=True, slots=True)
class AckFrame:
    """What has arrived: ranges of packet numbers (highest first, both ends included), and the receiver's own count.

    `clock` and `received` are the receiver's time and bytes when the newest packet came: a delivery rate made from them
    does not depend on how acknowledgements travel.
    """

    delay: float
    clock: float
    received: int
    ranges: Sequence[tuple[int, int]]

    def encode(self) -> bytes:
        """As in a datagram."""
        top = self.ranges[0][1]
        delay = min(int(self.delay / TICK), 0xFFFF)
        clock = int(self.clock / TICK) & 0xFFFFFFFF
        parts = [b""]
        below = top
        count = 0
        for low, high in self.ranges[:MAX_RANGES]:
            gap, length = below - high, high - low
            if gap > 0xFFFF:
                break
            if length > 0xFFFF:
                low, length = high - 0xFFFF, 0xFFFF
            parts.append(_RANGE.pack(gap, length))
            below = low
            count += 1
        parts[0] = _ACK.pack(_F_ACK, top, delay, clock, self.received, count)
        return b"".join(parts)


Frame = StreamFrame | CreditFrame | ResetFrame | PingFrame | AckFrame


@dataclass(frozen=True, slots=True)
class Packet:
    """A decoded datagram. Of packets before `oldest` the sender wants to hear no more."""

    kind: int
    connection: int
    number: int
    ack_delay: float
    oldest: int
    frames: tuple[Frame, ...]

    @property
    def wants_ack(self) -> bool:
        """Whether it carries anything but acknowledgements."""
        return any(not isinstance(frame, AckFrame) for frame in self.frames)


def encode(kind: int, connection: int, number: int, ack_delay: float, oldest: int, frames: Iterable[bytes]) -> bytes:
    """A datagram of frames that are encoded already."""
    delay = max(1, min(255, round(ack_delay / ACK_DELAY_UNIT)))
    head = HEADER.pack(MAGIC, kind, connection, number, delay, min(number - oldest, 0xFFFF))
    return head + b"".join(frames)


def connection_of(datagram: bytes) -> tuple[int, int]:
    """Kind and connection of a datagram. Raises BearerFormatError."""
    if len(datagram) < HEADER.size or datagram[0] != MAGIC or datagram[1] not in (OPENING, ORDINARY):
        raise BearerFormatError("not a datagram of a bearer")
    _, kind, connection, _, _, _ = HEADER.unpack_from(datagram)
    return kind, connection


def decode(datagram: bytes) -> Packet:
    """The packet in a datagram. Raises BearerFormatError."""
    kind, _ = connection_of(datagram)
    _, _, connection, number, delay, back = HEADER.unpack_from(datagram)
    frames: list[Frame] = []
    at, end = HEADER.size, len(datagram)
    try:
        while at < end:
            tag = datagram[at]
            if tag in (_F_STREAM, _F_FIN):
                _, stream, offset, length = _STREAM.unpack_from(datagram, at)
                at += _STREAM.size
                if at + length > end or offset + length >= 1 << 62:
                    raise BearerFormatError("a stream frame runs over the end of its datagram")
                frames.append(StreamFrame(stream, offset, datagram[at : at + length], tag == _F_FIN))
                at += length
            elif tag == _F_ACK:
                ack, at = _decode_ack(datagram, at)
                frames.append(ack)
            elif tag == _F_CREDIT:
                _, stream, limit = _CREDIT.unpack_from(datagram, at)
                frames.append(CreditFrame(stream, limit))
                at += _CREDIT.size
            elif tag == _F_RESET:
                _, stream = _RESET.unpack_from(datagram, at)
                frames.append(ResetFrame(stream))
                at += _RESET.size
            elif tag == _F_PING:
                frames.append(PingFrame())
                at += 1
            elif tag == _F_PAD:
                break
            else:
                raise BearerFormatError(f"a frame of unknown kind {tag}")
    except struct.error as error:
        raise BearerFormatError("a datagram that ends within a frame") from error
    return Packet(kind, connection, number, delay * ACK_DELAY_UNIT, number - back, tuple(frames))


def _decode_ack(datagram: bytes, at: int) -> tuple[AckFrame, int]:
    _, top, delay, clock, received, count = _ACK.unpack_from(datagram, at)
    at += _ACK.size
    if not 1 <= count <= MAX_RANGES:
        raise BearerFormatError("an acknowledgement of nothing, or of too much")
    ranges = []
    below = top
    for _ in range(count):
        gap, length = _RANGE.unpack_from(datagram, at)
        at += _RANGE.size
        high = below - gap
        low = high - length
        if low < 0:
            raise BearerFormatError("an acknowledgement of packets below zero")
        ranges.append((low, high))
        below = low
    return AckFrame(delay * TICK, clock * TICK, received, tuple(ranges)), at
