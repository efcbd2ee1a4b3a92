"""The bearer's datagrams, as bytes.

Owns the format and its limits. A datagram is a header (kind, connection, the low end of the packet number) and frames;
every byte of it is paid for on each packet, so what changes rarely is a frame of its own, and the last frame of stream
bytes ends with the datagram instead of telling its length. Everything in it is a claim of somebody on the network:
decoding raises BearerFormatError and nothing else. What the streams carry is TLS between the agents; this layer adds no
secrecy and needs none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peat_p2p.core.errors import InvalidInputError

MAX_DATAGRAM = 1412  # 1,440 bytes of IPv4: leaves room for tunnels on a path of 1,500
_CONNECTION_BYTES, _NUMBER_BYTES, _OFFSET_BYTES = 6, 3, 5
HEADER_BYTES = 1 + _CONNECTION_BYTES + _NUMBER_BYTES
CONNECTION_BITS = 8 * _CONNECTION_BYTES
MAX_OFFSET = 1 << 8 * _OFFSET_BYTES
_STREAM = struct.Struct("!BHBI")  # kind, stream, the high byte and the low bytes of the offset
_LENGTH = struct.Struct("!H")
_TERMS = struct.Struct("!BBH")
_CREDIT = struct.Struct("!BHQ")
_RESET = struct.Struct("!BH")
_ACK = struct.Struct("!BIHIQB")
_RANGE = struct.Struct("!HH")
STREAM_OVERHEAD, LENGTH_BYTES = _STREAM.size, _LENGTH.size
MAX_RANGES = 200
TICK = 1e-4  # times are counted in tenths of a millisecond
ACK_DELAY_UNIT = 0.004

OPENING = 0xB8  # from whoever begins the connection, until it has heard from the other side
ORDINARY = 0xB9

_F_PAD, _F_ACK, _F_CREDIT, _F_RESET, _F_PING, _F_TERMS = 0, 1, 4, 5, 6, 7
_F_STREAM, _F_FIN, _F_LAST_STREAM, _F_LAST_FIN = 2, 3, 8, 9  # the last of a datagram have no length


class BearerFormatError(InvalidInputError):
    """A datagram that is not the bearer's."""


@dataclass(frozen=True, slots=True)
class StreamFrame:
    """Bytes of a stream at an offset; `fin` says that they are the last."""

    stream: int
    offset: int
    data: bytes
    fin: bool = False

    def encode(self, *, last: bool = False) -> bytes:
        """As in a datagram, of which it may be the `last` frame."""
        kind = (_F_LAST_FIN if last else _F_FIN) if self.fin else (_F_LAST_STREAM if last else _F_STREAM)
        head = _STREAM.pack(kind, self.stream, self.offset >> 32, self.offset & 0xFFFFFFFF)
        return head + self.data if last else head + _LENGTH.pack(len(self.data)) + self.data


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
class TermsFrame:
    """How long acknowledgements may be kept back, and how many packets before this one may still be told of."""

    ack_delay: float
    back: int

    def encode(self) -> bytes:
        """As in a datagram."""
        return _TERMS.pack(_F_TERMS, delay_units(self.ack_delay), min(self.back, 0xFFFF))


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


Frame = StreamFrame | CreditFrame | ResetFrame | PingFrame | TermsFrame | AckFrame


@dataclass(frozen=True, slots=True)
class Packet:
    """A decoded datagram."""

    kind: int
    connection: int
    number: int
    frames: tuple[Frame, ...]

    @property
    def wants_ack(self) -> bool:
        """Whether it carries anything but acknowledgements."""
        return any(not isinstance(frame, AckFrame | TermsFrame) for frame in self.frames)


def delay_units(seconds: float) -> int:
    """An acknowledgement delay as it is told."""
    return max(1, min(255, round(seconds / ACK_DELAY_UNIT)))


def encode(kind: int, connection: int, number: int, frames: Iterable[bytes]) -> bytes:
    """A datagram of frames that are encoded already."""
    low = number & ((1 << 8 * _NUMBER_BYTES) - 1)
    head = bytes((kind,)) + connection.to_bytes(_CONNECTION_BYTES, "big") + low.to_bytes(_NUMBER_BYTES, "big")
    return head + b"".join(frames)


def connection_of(datagram: bytes) -> int:
    """The connection of a datagram. Raises BearerFormatError."""
    if len(datagram) < HEADER_BYTES or datagram[0] not in (OPENING, ORDINARY):
        raise BearerFormatError("not a datagram of a bearer")
    return int.from_bytes(datagram[1 : 1 + _CONNECTION_BYTES], "big")


def whole_number(low: int, newest: int) -> int:
    """The packet number of which `low` is the low end: the one nearest to what comes after `newest` (RFC 9000, A.3)."""
    window = 1 << 8 * _NUMBER_BYTES
    expected = newest + 1
    number = expected - expected % window + low
    if number <= expected - window // 2:
        return number + window
    if number > expected + window // 2 and number >= window:
        return number - window
    return number


def decode(datagram: bytes, newest: int = -1) -> Packet:
    """The packet in a datagram, given the newest packet number of its connection. Raises BearerFormatError."""
    connection = connection_of(datagram)
    number = whole_number(int.from_bytes(datagram[1 + _CONNECTION_BYTES : HEADER_BYTES], "big"), newest)
    frames: list[Frame] = []
    at, end = HEADER_BYTES, len(datagram)
    try:
        while at < end:
            tag = datagram[at]
            if tag in (_F_STREAM, _F_FIN, _F_LAST_STREAM, _F_LAST_FIN):
                frame, at = _decode_stream(datagram, at)
                frames.append(frame)
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
            elif tag == _F_TERMS:
                _, delay, back = _TERMS.unpack_from(datagram, at)
                frames.append(TermsFrame(delay * ACK_DELAY_UNIT, back))
                at += _TERMS.size
            elif tag == _F_PING:
                frames.append(PingFrame())
                at += 1
            elif tag == _F_PAD:
                break
            else:
                raise BearerFormatError(f"a frame of unknown kind {tag}")
    except struct.error as error:
        raise BearerFormatError("a datagram that ends within a frame") from error
    return Packet(datagram[0], connection, number, tuple(frames))


def _decode_stream(datagram: bytes, at: int) -> tuple[StreamFrame, int]:
    tag, stream, high, low = _STREAM.unpack_from(datagram, at)
    at += _STREAM.size
    if tag in (_F_STREAM, _F_FIN):
        length = int(_LENGTH.unpack_from(datagram, at)[0])
        at += _LENGTH.size
    else:
        length = len(datagram) - at
    offset = (high << 32) + low
    if at + length > len(datagram) or offset + length >= MAX_OFFSET:
        raise BearerFormatError("a stream frame runs over the end of its datagram")
    return StreamFrame(stream, offset, datagram[at : at + length], tag in (_F_FIN, _F_LAST_FIN)), at + length


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
