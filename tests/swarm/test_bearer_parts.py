"""The bearer's pure parts: format and streams."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peat_p2p.swarm.bearers import frames
from peat_p2p.swarm.bearers.streams import WINDOW, ReceiveHalf, SendHalf


@given(st.binary(max_size=200), st.integers(-1, 2**32))
def test_whatever_comes_in_decodes_or_is_refused(data: bytes, newest: int) -> None:
    for datagram in (data, bytes((frames.ORDINARY,)) + data):
        try:
            packet = frames.decode(datagram, newest)
        except frames.BearerFormatError:
            continue
        assert packet.connection == frames.connection_of(datagram)
        assert packet.number >= 0


@given(st.integers(-1, 2**32 - 1), st.integers(-(2**22), 2**22))
def test_a_packet_number_is_whole_again_near_the_newest(newest: int, ahead: int) -> None:
    number = max(0, newest + ahead)
    packet = frames.decode(frames.encode(frames.ORDINARY, 1, number, []), newest)
    assert packet.number == number


ranges = st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 2000)), min_size=1, max_size=50)


@given(ranges, st.binary(max_size=300), st.booleans(), st.integers(0, 2**40 - 301))
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
        frames.TermsFrame(0.1, 7),
    )
    last = frames.StreamFrame(8, offset, data, not fin)
    parts = [*(one.encode() for one in sent), last.encode(last=True)]
    packet = frames.decode(frames.encode(frames.OPENING, 2**47 + 1, 77, parts))
    ack = packet.frames[0]
    assert isinstance(ack, frames.AckFrame)
    assert ack.ranges == tuple(acked)
    assert (ack.delay, ack.clock, ack.received) == (pytest.approx(0.0123), pytest.approx(12.5), 987654321)
    assert packet.frames[1:] == (*sent[1:], last)
    assert (packet.kind, packet.connection, packet.number) == (frames.OPENING, 2**47 + 1, 77)


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
