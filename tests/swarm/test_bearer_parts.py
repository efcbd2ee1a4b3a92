"""The bearer's pure parts: format, streams, and two associations over an imagined link."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.net.shape import Outage, Pipe, Shape
from peat_p2p.swarm.bearers import frames
from peat_p2p.swarm.bearers.association import Association
from peat_p2p.swarm.bearers.streams import WINDOW, ReceiveHalf, SendHalf


@given(st.binary(max_size=200))
def test_whatever_comes_in_decodes_or_is_refused(data: bytes) -> None:
    for datagram in (data, bytes((frames.MAGIC, frames.ORDINARY)) + data):
        try:
            packet = frames.decode(datagram)
        except frames.BearerFormatError:
            continue
        assert packet.connection == frames.connection_of(datagram)[1]


ranges = st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 2000)), min_size=1, max_size=50)


@given(ranges, st.binary(max_size=300), st.booleans(), st.integers(0, 2**40))
def test_frames_survive_the_way(gaps: list[tuple[int, int]], data: bytes, fin: bool, offset: int) -> None:
    at = 1_000_000
    acked = []
    for gap, length in gaps:
        at -= gap
        acked.append((at - length, at))
        at -= length + 1
    sent = (
        frames.AckFrame(0.0123, 12.5, 987654321, tuple(acked)),
        frames.StreamFrame(7, offset, data, fin),
        frames.CreditFrame(9, offset),
        frames.ResetFrame(65535),
        frames.PingFrame(),
    )
    packet = frames.decode(frames.encode(frames.OPENING, 2**63 + 1, 77, 0.1, 70, (one.encode() for one in sent)))
    ack = packet.frames[0]
    assert isinstance(ack, frames.AckFrame)
    assert ack.ranges == tuple(acked)
    assert (ack.delay, ack.clock, ack.received) == (pytest.approx(0.0123), pytest.approx(12.5), 987654321)
    assert packet.frames[1:] == sent[1:]
    assert (packet.kind, packet.connection, packet.number, packet.oldest) == (frames.OPENING, 2**63 + 1, 77, 70)
    assert packet.ack_delay == pytest.approx(0.1)


@given(st.integers(1, 3000), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_stream_arrives_whole_whatever_is_lost_doubled_or_late(size: int, seed: int) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(size)
    sender, receiver = SendHalf(), ReceiveHalf()
    sender.write(data)
    sender.finished = True
    got = b""
    waiting: list[tuple[int, bytes, bool]] = []
    for _ in range(10_000):
        if sender.done:
            break
        taken = sender.take(chance.randint(1, 200))
        if taken is not None:
            offset, piece, fin = taken
            if chance.random() < 0.3:
                sender.lost(offset, offset + len(piece), fin)
            else:
                waiting += [taken] * chance.choice((1, 1, 2))
        if waiting and (taken is None or chance.random() < 0.5):
            offset, piece, fin = waiting.pop(chance.randrange(len(waiting)))
            got += b"".join(receiver.accept(offset, piece, fin))
            sender.acked(offset, offset + len(piece), fin)
    assert got == data
    assert sender.done
    assert receiver.complete


def test_a_sender_that_ignores_its_credit_is_refused() -> None:
    with pytest.raises(ValueError, match="more was sent"):
        ReceiveHalf().accept(WINDOW, b"x", False)


def test_a_stream_cannot_end_twice() -> None:
    half = ReceiveHalf()
    half.accept(5, b"late", True)
    with pytest.raises(ValueError, match="ends twice"):
        half.accept(5, b"later", True)


class Imagined:
    """Two associations and the link between them, on a clock of their own."""

    def __init__(self, down: Shape, up: Shape | None = None, seed: str = "1") -> None:
        self.now = 100.0
        self.ends = {side: Association(99, side == "b", self.now) for side in "ab"}
        self.pipes = {"a": Pipe(down, seed + "a", epoch=self.now), "b": Pipe(up or down, seed + "b", epoch=self.now)}
        self.events: list[tuple[float, int, str, bytes]] = []
        self.serial = 0
        self.got: dict[str, dict[int, bytearray]] = {"a": {}, "b": {}}
        self.ended: dict[str, set[int]] = {"a": set(), "b": set()}
        self.rtts: list[float] = []

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> None:
        end = self.now + until
        while self.now < end and not stop():
            for side in "ab":
                for datagram in self.ends[side].datagrams(self.now):
                    arrives = self.pipes[side].accept(self.now, len(datagram) + 28)
                    if arrives is not None:
                        self.serial += 1
                        heapq.heappush(self.events, (arrives, self.serial, side, datagram))
            times = [self.events[0][0]] if self.events else []
            times += [at for side in "ab" if (at := self.ends[side].next_at(self.now)) is not None]
            if not times:
                return
            self.now = max(self.now + 1e-5, min(times))
            while self.events and self.events[0][0] <= self.now:
                _, _, side, datagram = heapq.heappop(self.events)
                other = "b" if side == "a" else "a"
                for one in self.ends[other].receive(frames.decode(datagram), len(datagram) + 28, self.now):
                    self.got[other].setdefault(one.stream, bytearray()).extend(b"".join(one.data))
                    self.ends[other].consume(one.stream, sum(map(len, one.data)))
                    if one.fin:
                        self.ended[other].add(one.stream)


def transfer(link: Imagined, size: int, seconds: float) -> float:
    """Ask from b, answer from a; the seconds it took."""
    began = link.now
    stream = link.ends["b"].open_stream()
    link.ends["b"].write(stream.number, b"give", fin=True)
    link.run(30.0, lambda: link.got["a"].get(stream.number) == b"give")
    data = random.Random(size).randbytes(size)
    for at in range(0, size, 1 << 16):
        link.ends["a"].write(stream.number, data[at : at + (1 << 16)])
    link.ends["a"].write(stream.number, b"", fin=True)
    link.run(seconds, lambda: stream.number in link.ended["b"])
    assert bytes(link.got["b"].get(stream.number, b"")) == data
    return link.now - began


@pytest.mark.parametrize(
    ("shape", "least"),
    [
        (Shape(rate=2e6, delay=0.3, loss=0.02), 0.85),
        (Shape(rate=20e6, delay=0.03, jitter=0.01, loss=0.001), 0.85),
        (Shape(rate=1e6, delay=0.15, jitter=0.06, loss=0.1), 0.85),
        (Shape(rate=56e3, delay=0.5, jitter=0.1, loss=0.05), 0.7),
        (Shape(rate=5e6, delay=0.05, loss=0.0, queue=0.03), 0.8),
    ],
    ids=["lossy-geo", "lte", "manet", "radio", "short-queue"],
)
def test_a_link_is_filled_whatever_it_loses(shape: Shape, least: float) -> None:
    size = int(shape.rate / 8 * 40)
    seconds = transfer(Imagined(shape), size, 200.0)
    assert size * 8 / (shape.rate * (1 - shape.loss)) / seconds >= least


def test_the_queue_stays_short() -> None:
    shape = Shape(rate=2e6, delay=0.3, loss=0.01, queue=1.0)
    link = Imagined(shape)
    transfer(link, 4_000_000, 60.0)
    before = link.ends["a"].reading()
    assert before.smooth_rtt - before.min_rtt < 0.15
    assert link.pipes["a"].counters.dropped_queue <= 350  # the start overshoots, once


def test_an_outage_costs_its_own_time_and_little_else() -> None:
    shape = Shape(rate=2e6, delay=0.3, loss=0.01, outage=Outage(up=12.0, down=60.0))
    link = Imagined(shape)
    size = 3_600_000  # 15 s of the link: two windows
    seconds = transfer(link, size, 400.0)
    assert seconds < 12 + 60 + 11
    assert link.pipes["a"].counters.delivered_bytes < size * 1.08


def test_nothing_is_sent_for_ever_to_who_never_answers() -> None:
    link = Imagined(Shape(loss=1.0))
    link.ends["b"].ping()
    link.run(300.0)
    assert 10 < link.pipes["b"].counters.offered_packets < 200


def test_a_stranger_gets_little_before_it_has_proved_its_address() -> None:
    link = Imagined(Shape(delay=0.01), Shape(delay=0.01))
    link.ends["b"].open_stream()
    link.ends["b"].write(1, b"hello")
    first = next(link.ends["b"].datagrams(link.now))
    link.ends["a"].receive(frames.decode(first), len(first), link.now)
    link.ends["a"].write(1, bytes(1_000_000))
    sent = 0
    for _ in range(200):  # nothing that it says comes back
        sent += sum(len(one) for one in link.ends["a"].datagrams(link.now))
        link.now += 0.01
    assert sent <= 6 * frames.MAX_DATAGRAM


def test_an_acknowledgement_of_what_was_never_sent_is_refused() -> None:
    association = Association(1, True, 0.0)
    lie = frames.encode(frames.ORDINARY, 1, 0, 0.1, 0, [frames.AckFrame(0.0, 0.0, 1, ((5, 9),)).encode()])
    with pytest.raises(ValueError, match="never sent"):
        association.receive(frames.decode(lie), len(lie), 0.0)


def test_a_reset_reaches_the_other_side() -> None:
    link = Imagined(Shape(delay=0.01, loss=0.3))
    stream = link.ends["b"].open_stream()
    link.ends["b"].write(stream.number, b"hello")
    link.run(5.0, lambda: stream.number in link.got["a"])
    link.ends["b"].reset(stream.number)
    link.run(30.0, lambda: stream.number not in link.ends["a"].streams)
    assert not link.ends["a"].streams
