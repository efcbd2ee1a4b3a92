"""Frames: round trips, limits, and 2,000 mutated ones against a live link."""

from __future__ import annotations

import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from peat_p2p.mesh import frames
from peat_p2p.mesh.effects import Apply, End, MoveCursor
from peat_p2p.mesh.frames import (
    Ack,
    Batch,
    Express,
    FrameError,
    Goodbye,
    Hello,
    Listing,
    Ping,
    Pong,
    Reason,
    RecordReader,
    Resume,
    Summary,
    Want,
    decode_frame,
    encode_frame,
)
from peat_p2p.mesh.link import LinkCore
from peat_p2p.mesh.memory import MemoryStore
from peat_p2p.mesh.summary import VersionTree
from peat_p2p.wire.gen.peat.mesh.v1 import mesh_pb as pb

KLASS = st.integers(0, 3)
SEQ = st.integers(0, 2**63)
REF = st.integers(0, 2**32 - 1)
HEADS = st.lists(st.tuples(KLASS, SEQ), max_size=4).map(tuple)
NODES = st.lists(st.integers(0, 15), min_size=1, max_size=8).map(tuple)
TEXT = st.text("abcdefghij-", max_size=20)
FRAMES = st.one_of(
    st.builds(Hello, TEXT, st.binary(min_size=16, max_size=16), instance=st.binary(max_size=16)),
    st.builds(Resume, HEADS),
    st.builds(
        Batch,
        KLASS,
        st.integers(0, 2**32 - 1),
        st.lists(st.tuples(REF, st.binary(max_size=80)), min_size=4, max_size=40).map(tuple),
        st.lists(st.binary(min_size=1, max_size=60), max_size=4).map(tuple),
        st.none() | SEQ,
        st.booleans(),
    ),
    st.builds(Ack, REF, st.lists(REF).map(tuple), HEADS, st.lists(REF).map(tuple)),
    st.builds(Ping, SEQ, HEADS),
    st.builds(Pong, SEQ, HEADS),
    st.builds(Goodbye, st.sampled_from(Reason), TEXT),
    st.builds(Want, KLASS, st.just(1), NODES),
    st.builds(
        Express,
        st.integers(1, 65535),
        st.binary(min_size=8, max_size=8),
        st.binary(min_size=16, max_size=16),
    ),
    st.builds(Listing, KLASS, st.just(1), NODES, st.lists(st.tuples(SEQ, st.tuples(SEQ, SEQ, SEQ))).map(tuple)),
)


@given(st.lists(FRAMES, max_size=5), st.integers(1, 50))
@settings(max_examples=150, deadline=None)
def test_frames_survive_the_wire_however_it_is_cut(sent: list[frames.Frame], step: int) -> None:
    stream = b"".join(map(encode_frame, sent))
    reader = RecordReader()
    got = []
    for at in range(0, len(stream), step):
        got += [decode_frame(record) for record in reader.feed(stream[at : at + step])]
    assert got == sent


def test_a_summary_survives_the_wire() -> None:
    frame = Summary(2, 1, (3, 4), tuple(range(2**63, 2**63 + 32)))
    [record] = RecordReader().feed(encode_frame(frame))
    assert decode_frame(record) == frame


def test_a_record_over_the_limit_is_refused_before_it_is_buffered() -> None:
    with pytest.raises(FrameError, match="over the limit"):
        list(RecordReader(1000).feed(b"\xff\xff\x03"))
    with pytest.raises(FrameError, match="four bytes"):
        list(RecordReader().feed(b"\xff\xff\xff\xff\x01"))


def test_a_bomb_is_refused() -> None:
    bomb = zstandard.compress(bytes(64 * 1024 * 1024))
    message = pb.Frame(kind=frames.Oneof(field="batch", value=pb.Batch(klass=1, number=1, refs=[0], packed=bomb)))
    with pytest.raises(FrameError, match="too large"):
        decode_frame(message.to_binary())


@pytest.mark.parametrize(
    "frame",
    [
        pb.Hello(version=1, epoch=b"short"),
        pb.Hello(version=0, epoch=bytes(16)),
        pb.Batch(klass=4, number=1),
        pb.Batch(klass=1, number=1, refs=[1, 2], bodies=[b"x"]),
        pb.Ack(number=1, heads=[pb.Cursor(klass=9, seq=1)]),
        pb.Want(klass=1, depth=3, nodes=[4096]),
        pb.Want(klass=1, depth=4, nodes=[0]),
        pb.Summary(klass=1, depth=1, nodes=[0], digests=b"123"),
        pb.Listing(klass=1, depth=1, nodes=[0], fingerprints=bytes(8), versions=[1, 2]),
        pb.Express(port=0, id=bytes(8), key=bytes(16)),
        pb.Express(port=70000, id=bytes(8), key=bytes(16)),
        pb.Express(port=7400, id=bytes(8), key=b"short"),
    ],
)
def test_frames_out_of_bounds_are_refused(frame: object) -> None:
    field = type(frame).__name__.lower()
    with pytest.raises(FrameError):
        decode_frame(pb.Frame(kind=frames.Oneof(field=field, value=frame)).to_binary())  # type: ignore[arg-type]


def conversation() -> tuple[MemoryStore, list[bytes]]:
    """The records a healthy peer sends: hello, resume, wants, batches, acks, pings."""
    peer = MemoryStore(b"p" * 16)
    for number in range(40):
        peer.put(number % 4, f"x{number}")
    core = LinkCore(
        peer, "b" * 64, Hello("s", peer.epoch), [VersionTree(peer, k) for k in range(4)], dialled=True, now=0.0
    )
    records = [encode_frame(Hello("s", peer.epoch)), encode_frame(Resume(((0, 0), (1, 0))))]
    core.start()
    core.received(next(RecordReader().feed(encode_frame(Hello("s", b"v" * 16)))), 0.0)
    core.resume({})
    effects = core.received(
        next(RecordReader().feed(encode_frame(Resume(((0, 0), (1, 0), (2, 0), (3, 0)))))), 0.0
    ) + core.poll(1.0)
    records += [effect.data for effect in effects if hasattr(effect, "data")]
    records += [
        encode_frame(Ping(1, ((0, 99),))),
        encode_frame(Want(1, 0, (0,))),
        encode_frame(Goodbye(Reason.STOPPED)),
    ]
    return peer, records


def hit(store: MemoryStore, stream: bytes) -> End | None:
    """Let a fresh victim read a stream; what it applied must be genuine."""
    trees = [VersionTree(store, klass) for klass in range(4)]
    victim = LinkCore(store, "a" * 64, Hello("s", store.epoch), trees, dialled=False, now=0.0)
    victim.start()
    reader = RecordReader()
    try:
        for record in reader.feed(stream):
            effects = list(victim.received(record, 0.1))
            while effects:
                effect = effects.pop(0)
                if isinstance(effect, Apply):
                    effects += victim.applied(effect.number, store.apply(effect.updates, "a" * 64), 0.1)
                elif isinstance(effect, MoveCursor):
                    store.move_cursor("a" * 64, effect.epoch, effect.klass, effect.seq)
            if victim.ended is not None:
                break
    except FrameError as error:
        return End(Reason.PROTOCOL, str(error), fault=True)
    victim.poll(0.2)
    return victim.ended


def mutate(chance: random.Random, records: list[bytes]) -> bytes:
    stream = bytearray(b"".join(records))
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(stream))
        act = chance.randrange(4)
        if act == 0:
            stream[at] ^= 1 << chance.randrange(8)
        elif act == 1:
            stream[at] = chance.randrange(256)
        elif act == 2:
            del stream[at : at + chance.randrange(1, 9)]
        else:
            stream[at:at] = chance.randbytes(chance.randrange(1, 9))
    return bytes(stream)


def run_fuzz(seed: int, count: int) -> None:
    peer, records = conversation()
    assert hit(MemoryStore(b"v" * 16), b"".join(records)) == End(Reason.STOPPED, "")
    genuine = peer.versions()
    chance = random.Random(seed)
    ended = 0
    for _ in range(count):
        store = MemoryStore(b"v" * 16)
        own = store.put(1, "own")
        end = hit(store, mutate(chance, records))
        ended += end is not None and end.fault
        held = store.versions()
        assert held.pop(own) == 1
        assert held.items() <= genuine.items(), "something was taken that the peer never wrote"
    assert ended > count // 3, "the mutations must reach the decoders for this test"


def test_mutated_frames_end_the_link_and_change_nothing() -> None:
    run_fuzz(1, 2000)


@pytest.mark.soak
def test_many_mutated_frames_end_the_link_and_change_nothing() -> None:
    run_fuzz(2, 100_000)
