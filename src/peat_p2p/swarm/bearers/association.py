"""Two agents' datagrams made reliable: packets, acknowledgements, losses, streams. Pure: no sockets, no clock.

Owns one connection's state on one side. What is lost is sent again in new packets (a packet number is used once), paced
by `pace.Pacer`. Silence ends nothing: through an outage one small packet every few seconds asks whether it is over,
and everything goes on where it stopped. The connection is named by its number, not by addresses, so a path may change.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from peat_p2p.swarm.bearers import frames
from peat_p2p.swarm.bearers.arrivals import Arrivals
from peat_p2p.swarm.bearers.bundle import Bundle
from peat_p2p.swarm.bearers.frames import (
    AckFrame,
    CreditFrame,
    Packet,
    PingFrame,
    ResetFrame,
    StreamFrame,
    TermsFrame,
)
from peat_p2p.swarm.bearers.pace import Pacer, next_send
from peat_p2p.swarm.bearers.streams import Arrived, Stream

IDLE_S = 900.0
MAX_STREAMS = 256
_REORDERING = 3
_MOST_REORDERING = 300
_DOUBTS = 2  # silences that may be losses; more are an outage
_SILENCE_S, _LONGEST_SILENCE_S = 1.0, 3.0  # between asking: while an outage is young, and later
# On a short path, which has bytes to spare, a young outage is asked about more often: once in so many round trips.
_SILENT_ROUNDS, _SHORTEST_SILENCE_S = 25, 0.25
_YOUNG_S = 120.0
# On a slow link packets are smaller, so that one does not hold it up for longer; headers are then a larger part of it.
_HOLD_UP_S, _SMALLEST_DATAGRAM, _FIRST_DATAGRAM = 0.4, 500, 700
_UNPROVEN_PACKETS = 3
_TERMS_EVERY = 16  # packets
_PACKETS_AN_ACK, _MOST_ACK_S = 12, 0.05
_ECHO_PACKETS = 6
_ECHO_SHARE = 0.003


@dataclass(frozen=True, slots=True)
class _Sent:
    at: float
    size: int
    parts: tuple[tuple[int, int, int, bool], ...]  # stream, start, stop, fin
    others: tuple[CreditFrame | ResetFrame | PingFrame, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the link has shown."""

    min_rtt: float
    smooth_rtt: float
    bandwidth: float
    loss: float
    sent_bytes: int
    resent_bytes: int


class Association:
    """One side of a connection. `opener` is the side that began it."""

    def __init__(self, connection: int, opener: bool, now: float) -> None:
        self.connection = connection
        self.opener = opener
        self.pacer = Pacer(frames.MAX_DATAGRAM + 28)
        self.bundle = Bundle()  # with which it shares the link
        self.heard = False  # the other side has answered: it is where it says it is
        self.last_heard = now
        self.streams: dict[int, Stream] = {}
        self.sent_bytes = 0
        self.resent_bytes = 0
        self._next_stream = 1 if opener else 2
        self._closed: deque[int] = deque(maxlen=4 * MAX_STREAMS)
        self._number = 0
        self._flight: OrderedDict[int, _Sent] = OrderedDict()
        self._in_flight = 0
        self._written_off: OrderedDict[int, _Sent] = OrderedDict()
        self._reordering = _REORDERING
        self._others: deque[CreditFrame | ResetFrame | PingFrame] = deque()
        self._turn: deque[int] = deque()
        self._ready_at = now
        self._probe_at: float | None = None
        self._silences = 0
        self._outage_at = float("-inf")  # when we last asked whether one is over
        self._probes = 0
        self._had_nothing = True
        self._limited_since_ack = True
        self._arrivals = Arrivals()
        self._received = 0
        self._newest_at = 0.0
        self._newest = -1
        self._ack_at: float | None = None
        self._their_delay = 0.02
        self._terms_told = -_TERMS_EVERY  # in this packet
        self._delay_told = 0  # in the units of the frame
        self._echo_at: float | None = None
        self._echoed = -1  # packets up to this one need no echo
        self._echo_bytes = 0
        self._echoing = False

    @property
    def worn_out(self) -> bool:
        """Whether a new association should be begun: numbers of streams or packets are nearly used up."""
        return self._next_stream > 0xFF00 or self._number > 0xF0000000

    # -- streams -------------------------------------------------------------------------------------------------

    def open_stream(self) -> Stream:
        """Begin a stream; its first bytes need no round trip."""
        stream = Stream(self._next_stream)
        self._next_stream += 2
        self.streams[stream.number] = stream
        self._turn.append(stream.number)
        return stream

    @property
    def asking(self) -> bool:
        """Whether something is unanswered, so that silence is being asked about anyway."""
        return bool(self._flight or self._others)

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._others.append(PingFrame())

    def write(self, number: int, data: bytes, fin: bool = False) -> None:
        """Bytes to be sent on a stream; none for one that is closed."""
        stream = self.streams.get(number)
        if stream is None:
            return
        if stream.sending.end + len(data) >= frames.MAX_OFFSET:
            self.reset(number)
            return
        if data:
            stream.sending.write(data)
        if fin:
            stream.sending.finished = True

    def consume(self, number: int, count: int) -> None:
        """Our socket has taken so many bytes of a stream."""
        stream = self.streams.get(number)
        if stream is not None and stream.receiving.consume(count):
            self._others.append(CreditFrame(number, stream.receiving.credit))

    def reset(self, number: int) -> None:
        """Break a stream off."""
        if number in self.streams:
            self._forget(number)
            self._others.append(ResetFrame(number))

    def _forget(self, number: int) -> None:
        del self.streams[number]
        self._closed.append(number)
        self._turn.remove(number)

    def _close_if_done(self, stream: Stream) -> None:
        if stream.sending.done and stream.receiving.complete and stream.number in self.streams:
            self._forget(stream.number)

    # -- receiving -----------------------------------------------------------------------------------------------

    def receive(self, packet: Packet, size: int, now: float) -> list[Arrived]:
        """Take a packet in. Raises ValueError when the other side breaks the rules."""
        self.last_heard = now
        if not self._arrivals.note(packet.number):
            return []
        self._received += size
        if packet.number > self._newest:
            self._newest, self._newest_at = packet.number, now
        out: list[Arrived] = []
        for frame in packet.frames:
            if isinstance(frame, AckFrame):
                self._on_ack(frame, now)
            elif isinstance(frame, StreamFrame):
                arrived = self._on_stream(frame)
                if arrived is not None:
                    out.append(arrived)
            elif isinstance(frame, CreditFrame):
                stream = self.streams.get(frame.stream)
                if stream is not None:
                    stream.sending.limit = max(stream.sending.limit, frame.limit)
            elif isinstance(frame, ResetFrame) and frame.stream in self.streams:
                self._forget(frame.stream)
                out.append(Arrived(frame.stream, reset=True))
            elif isinstance(frame, TermsFrame) and packet.number == self._newest:
                self._their_delay = frame.ack_delay
                self._arrivals.forget_before(packet.number - frame.back)
        if packet.wants_ack and self._ack_at is None:
            self._ack_at = now + self._their_delay
        return out

    def _on_stream(self, frame: StreamFrame) -> Arrived | None:
        stream = self.streams.get(frame.stream)
        new = stream is None
        if stream is None:
            theirs = frame.stream % 2 == (0 if self.opener else 1)
            if not theirs or frame.stream in self._closed:
                return None
            if len(self.streams) >= MAX_STREAMS:
                raise ValueError("too many streams")
            stream = self.streams[frame.stream] = Stream(frame.stream)
            self._turn.append(frame.stream)
        data = stream.receiving.accept(frame.offset, frame.data, frame.fin)
        fin = stream.receiving.complete and (bool(data) or frame.fin)
        if not data and not new and not fin:
            return None
        self._close_if_done(stream)
        return Arrived(stream.number, tuple(data), new, fin)

    def _on_ack(self, ack: AckFrame, now: float) -> None:
        flight = self._flight
        if ack.ranges[0][1] >= self._number:
            raise ValueError("an acknowledgement of what was never sent")
        self.heard = True
        if not flight:
            return
        oldest = next(iter(flight))
        top = ack.ranges[0][1]
        newest = flight.get(top)
        acked = 0
        for low, high in ack.ranges:
            if high < oldest:
                break
            for number in range(max(low, oldest), high + 1):
                sent = flight.pop(number, None)
                if sent is not None:
                    acked += 1
                    self._landed(sent)
                elif number in self._written_off:
                    self._arrived(self._written_off.pop(number))
                    self._reordering = min(self._reordering * 2, _MOST_REORDERING)
        if newest is not None:
            self.pacer.on_rtt(now, max(now - newest.at - ack.delay, 1e-4))
        lost = self._find_lost(top, newest)
        if acked:
            self._silences = 0
            self._set_probe(now)
        sent_at = newest.at if newest is not None else None
        self.pacer.on_ack(now, ack.clock, ack.received, acked, lost, self._in_flight, self._limited_since_ack, sent_at)
        self.pacer.share(now, *self.bundle.part(self, now))
        self._limited_since_ack = self._had_nothing

    def _landed(self, sent: _Sent) -> None:
        self._in_flight -= sent.size
        self._arrived(sent)

    def _arrived(self, sent: _Sent) -> None:
        for number, start, stop, fin in sent.parts:
            stream = self.streams.get(number)
            if stream is not None:
                stream.sending.acked(start, stop, fin)
                self._close_if_done(stream)

    def _find_lost(self, top: int, newest: _Sent | None) -> int:
        """Write off what must be lost; how much of it the link lost while it was up."""
        lost = []
        long_ago = newest.at - self.pacer.patience if newest is not None else float("-inf")
        for number, sent in self._flight.items():
            if number > top - self._reordering and sent.at >= long_ago:
                break
            lost.append(number)
        return sum(self._write_off(number).at > self._outage_at for number in lost)

    def _write_off(self, number: int) -> _Sent:
        sent = self._flight.pop(number)
        self._in_flight -= sent.size
        self._written_off[number] = sent
        while len(self._written_off) > 2000:
            self._written_off.popitem(last=False)
        for stream_number, start, stop, fin in sent.parts:
            stream = self.streams.get(stream_number)
            if stream is not None:
                stream.sending.lost(start, stop, fin)
                self.resent_bytes += stop - start
        for other in sent.others:
            if isinstance(other, CreditFrame):
                known = self.streams.get(other.stream)
                if known is None or known.receiving.credit != other.limit:
                    continue
            if not isinstance(other, PingFrame):
                self._others.append(other)
        return sent

    # -- sending -------------------------------------------------------------------------------------------------

    def datagrams(self, now: float) -> Iterator[bytes]:
        """Datagrams to be sent now."""
        if self._probe_at is not None and now >= self._probe_at:
            yield from self._ask(now)
        if self._echo_at is not None and now >= self._echo_at:
            self._echo()
        while self._has_something():
            if self._probes <= 0:
                if self._in_flight >= self._window() or now < self._free_at:
                    break
            else:
                self._probes -= 1
            yield self._data_datagram(now)
        else:
            self._had_nothing = self._limited_since_ack = True
            if self._echoing:
                self._echoing, self._echoed = False, self._number - 1
            elif self._flight and next(reversed(self._flight)) > self._echoed:
                self._echo_at = now + max(self.pacer.min_rtt / 5, 0.004)
        if self._ack_at is not None and now >= self._ack_at:
            ack = self._take_ack(now)
            if ack is not None:
                yield self._datagram(now, [*self._terms(), ack], (), ())

    def next_at(self, now: float) -> float | None:
        """When `datagrams` should be asked again, unless something happens before."""
        times = [at for at in (self._ack_at, self._probe_at, self._echo_at) if at is not None]
        if self._has_something() and (self._in_flight < self._window() or self._probes > 0):
            times.append(max(self._free_at, now))
        return min(times, default=None)

    def reading(self) -> Reading:
        """What the link has shown so far."""
        pacer = self.pacer
        return Reading(pacer.min_rtt, pacer.smooth_rtt, pacer.bandwidth, pacer.loss, self.sent_bytes, self.resent_bytes)

    def _window(self) -> float:
        if not self.heard and not self.opener:
            return _UNPROVEN_PACKETS * frames.MAX_DATAGRAM  # it may not be who the datagrams seem to come from
        return self.pacer.window

    @property
    def _free_at(self) -> float:
        return max(self._ready_at, self.bundle.free_at)

    @property
    def busy(self) -> bool:
        """Whether it has anything to send, or waits to hear that what it sent arrived, with a peer that answers."""
        return self._silences <= _DOUBTS and (bool(self._flight) or self._has_something())

    def _has_something(self) -> bool:
        if self._others or self._probes > 0:
            return True
        return any(stream.sending.has_something for stream in self.streams.values())

    def _ask(self, now: float) -> Iterator[bytes]:
        """Too long a silence: send the oldest again, or a ping if there is nothing; in an outage nothing but pings.

        What was last sent before an outage often arrived, and only its acknowledgement did not. The answer to a ping
        acknowledges it, too: sent again it would be another trip's worth of the little time that the link is up.
        """
        self._silences += 1
        if self._silences > _DOUBTS and self.heard:
            self._outage_at = now
            ping = PingFrame()
            yield self._datagram(now, [*self._terms(), ping.encode()], (), (ping,))
        else:
            if self._flight:
                self._write_off(next(iter(self._flight)))
            self._probes = 2 if self._silences <= _DOUBTS else 1
            if not self._has_other_than_probes():
                self._others.append(PingFrame())
        self._set_probe(now)

    def _echo(self) -> None:
        """There is nothing more to send: say the last of it once more, so that a loss costs no round trip.

        A handshake, a request and the end of a transfer are so told twice while the link is idle. Of what was sent in
        all it stays a small share.
        """
        self._echo_at = None
        if self._has_something():
            return
        most = max(_ECHO_PACKETS * frames.MAX_DATAGRAM, int(self.sent_bytes * _ECHO_SHARE)) - self._echo_bytes
        for number in reversed(self._flight):
            sent = self._flight[number]
            if number <= self._echoed or most < sent.size:
                break
            most -= sent.size
            self._echo_bytes += sent.size
            for stream_number, start, stop, fin in sent.parts:
                stream = self.streams.get(stream_number)
                if stream is not None:
                    stream.sending.lost(start, stop, fin)
        self._echoing = True

    def _has_other_than_probes(self) -> bool:
        return bool(self._others) or any(stream.sending.has_something for stream in self.streams.values())

    def _set_probe(self, now: float) -> None:
        if not self._flight:
            self._probe_at = None
            return
        patience = (self.pacer.patience + 2 * self._ask_delay) * 2 ** min(self._silences, 6)
        longest = _LONGEST_SILENCE_S
        if now - self.last_heard < _YOUNG_S:
            longest = min(_SILENCE_S, max(_SHORTEST_SILENCE_S, _SILENT_ROUNDS * self.pacer.min_rtt))
        self._probe_at = now + min(patience, max(longest, self.pacer.patience * 1.5))

    @property
    def _ask_delay(self) -> float:
        """How long the other side may keep an acknowledgement back: a small part of a round trip.

        A larger part where packets come slowly for so short a path: it has other traffic, which pays for each.
        """
        pacer = self.pacer
        delay = min(max(pacer.min_rtt / 6, 0.004), 0.15)
        if not pacer.bandwidth:
            return delay
        apart = _PACKETS_AN_ACK * pacer.packet_bytes / pacer.bandwidth
        return max(delay, min(apart, pacer.min_rtt / 2, _MOST_ACK_S))

    def _data_datagram(self, now: float) -> bytes:
        fits = int(self.pacer.bandwidth * _HOLD_UP_S)
        room = min(frames.MAX_DATAGRAM, max(_SMALLEST_DATAGRAM, fits) if fits else _FIRST_DATAGRAM)
        room -= frames.HEADER_BYTES
        out = self._terms()
        room -= sum(map(len, out))
        ack = self._take_ack(now) if self._ack_at is not None else None
        if ack is not None:
            room -= len(ack)
            out.append(ack)
        others: list[CreditFrame | ResetFrame | PingFrame] = []
        while self._others and room > 32:
            other = self._others.popleft()
            encoded = other.encode()
            room -= len(encoded)
            out.append(encoded)
            others.append(other)
        parts: list[tuple[int, int, int, bool]] = []
        carried: list[StreamFrame] = []
        for _ in range(len(self._turn)):
            if room <= frames.STREAM_OVERHEAD + 16:
                break
            number = self._turn[0]
            taken = self.streams[number].sending.take(room - frames.STREAM_OVERHEAD)
            self._turn.rotate(-1)
            if taken is None:
                continue
            offset, data, fin = taken
            carried.append(StreamFrame(number, offset, data, fin))
            parts.append((number, offset, offset + len(data), fin))
            room -= frames.STREAM_OVERHEAD + frames.LENGTH_BYTES + len(data)
        out += [one.encode(last=one is carried[-1]) for one in carried]
        if not parts and not others:
            ping = PingFrame()
            out.append(ping.encode())
            others.append(ping)
        return self._datagram(now, out, tuple(parts), tuple(others))

    def _terms(self) -> list[bytes]:
        """The terms, encoded, if the next packet should tell them."""
        delay = frames.delay_units(self._ask_delay)
        opening = self.opener and not self.heard
        if not opening and self._number - self._terms_told < _TERMS_EVERY and delay == self._delay_told:
            return []
        self._terms_told, self._delay_told = self._number, delay
        return [TermsFrame(self._ask_delay, self._number - next(iter(self._flight), self._number)).encode()]

    def _datagram(
        self,
        now: float,
        encoded: list[bytes],
        parts: tuple[tuple[int, int, int, bool], ...],
        others: tuple[CreditFrame | ResetFrame | PingFrame, ...],
    ) -> bytes:
        kind = frames.OPENING if self.opener and not self.heard else frames.ORDINARY
        number = self._number
        self._number += 1
        datagram = frames.encode(kind, self.connection, number, encoded)
        size = len(datagram) + 28
        self.sent_bytes += size
        if parts or others:
            self._flight[number] = _Sent(now, size, parts, others)
            self._in_flight += size
            self._had_nothing = False
            self._ready_at = next_send(self._ready_at, now, size, self.pacer.rate)
            self.bundle.sent(size, now)
            if self._probe_at is None:
                self._set_probe(now)
        return datagram

    def _take_ack(self, now: float) -> bytes | None:
        self._ack_at = None
        ranges = self._arrivals.newest(frames.MAX_RANGES)
        if not ranges:
            return None
        return AckFrame(now - self._newest_at, self._newest_at, self._received, ranges).encode()
