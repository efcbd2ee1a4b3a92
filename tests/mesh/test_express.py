"""Copies of urgent batches beside the link: what their records say, how they are sealed, two nodes that use them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peat_p2p.core.address import HostPort, PeerAddress
from peat_p2p.mesh.copies import MOST_BYTES, Copies
from peat_p2p.mesh.express import COPIES, ExpressSocket, Inlet, Outlet
from peat_p2p.mesh.frames import Batch, Express, Hello, encode_frame
from peat_p2p.mesh.memory import MemoryStore


def copies() -> Copies:
    made = Copies(MemoryStore(b"a" * 16), long_way=0.2)
    made.wanted = True
    made.express = Express(7400, bytes(8), bytes(16))
    return made


@given(size=st.integers(1, 2 * MOST_BYTES), count=st.integers(0, 40))
def test_a_copy_tells_every_part_that_a_datagram_holds(size: int, count: int) -> None:
    store = MemoryStore(b"a" * 16, whole=size)
    made = Copies(store)
    parts = []
    for number in range(count):
        key = store.put(0, f"c{number:02d}")
        encoded = store.encode(key, None, 0)
        assert encoded is not None
        parts.append((key, encoded.body))
    assert made.make(parts, 0.0) == [], "nobody asked for them"
    made.wanted = True
    records = made.make(parts, 0.0)
    assert all(len(record) <= MOST_BYTES + 100 for record in records)
    told = [key for record in records for key, _ in made.read(record)]
    taken = len(store.encode_key(parts[0][0])) + len(parts[0][1]) + 8 if parts else 0
    each = MOST_BYTES // taken if taken else 0
    assert told == [key for key, _ in parts[: 4 * each]]


@given(st.binary(max_size=300))
def test_what_is_no_copy_tells_nothing(data: bytes) -> None:
    assert copies().read(data) == []


def test_only_urgent_parts_that_are_named_are_taken() -> None:
    made = copies()
    store = MemoryStore(b"a" * 16)
    part = store.put(0, "x")
    encoded = store.encode(part, None, 0)
    assert encoded is not None
    good = Batch(0, 0, ((0, encoded.body),), (store.encode_key(part),))
    assert len(made.read(encode_frame(good))) == 1
    for bad in (
        Batch(1, 0, good.items, good.new_keys),
        Batch(0, 1, good.items, good.new_keys),
        Batch(0, 0, good.items, good.new_keys, 5),
        Batch(0, 0, ((1, b"D12345678"),), good.new_keys),
        Batch(0, 0, good.items, ()),
    ):
        assert made.read(encode_frame(bad)) == []


def test_it_is_offered_once_on_a_long_way_to_who_knows_it() -> None:
    new, old = Hello("", bytes(16), express=True), Hello("", bytes(16))
    made = copies()
    assert made.offer(None, 1.0) is None
    assert made.offer(new, 0.1) is None
    assert made.offer(new, 0.3) is not None
    assert made.offer(new, 0.3) is None
    assert copies().offer(old, 0.3) is None


class Wire:
    """Stands in for the sending socket."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def is_closing(self) -> bool:
        return False

    def sendto(self, data: bytes, to: tuple[str, int]) -> None:
        self.sent.append(data)


async def sealed(inlet: Inlet, *records: bytes) -> list[bytes]:
    wire = Wire()
    outlet = Outlet(wire, "127.0.0.1", inlet.offer)  # type: ignore[arg-type]
    for record in records:
        outlet.send(record)
    await asyncio.sleep(0.2)
    assert len(wire.sent) == COPIES * len(records)
    return wire.sent


async def test_each_record_is_taken_once_and_only_as_it_was_sealed() -> None:
    taken: list[bytes] = []
    inlet = Inlet(7400, taken.append)
    sent = await sealed(inlet, b"one", b"two")
    other = await sealed(Inlet(7400, taken.append), b"of another link")
    for datagram in other:
        inlet.open(inlet.offer.id + datagram[8:])
    for place in range(8, len(sent[0])):
        inlet.open(sent[0][:place] + bytes([sent[0][place] ^ 1]) + sent[0][place + 1 :])
    assert taken == []
    for datagram in [*sent, *sent]:
        inlet.open(datagram)
    assert sorted(taken) == [b"one", b"two"]


@settings(deadline=None)
@given(st.binary(max_size=2100))
def test_what_strangers_send_is_dropped(data: bytes) -> None:
    socket = ExpressSocket()
    socket._inlets[bytes(8)] = Inlet(1, lambda record: pytest.fail(f"took {record!r}"))
    socket.datagram_received(data, ("127.0.0.1", 1))
    socket.datagram_received(bytes(8) + data, ("127.0.0.1", 1))


async def test_a_port_that_is_taken_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    first = await ExpressSocket.open(HostPort("127.0.0.1", 0))
    inlet = first.inlet(lambda record: None)
    assert inlet is not None
    with caplog.at_level(logging.INFO):
        second = await ExpressSocket.open(HostPort("127.0.0.1", inlet.offer.port))
    assert not second.works
    assert second.inlet(lambda record: None) is None
    assert "UDP port" in caplog.text
    first.close()


class Frozen:
    """A way for streams that can stand still. Datagrams do not pass here."""

    def __init__(self, to: HostPort) -> None:
        self._to = to
        self._open = asyncio.Event()
        self._open.set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._to.host, self._to.port)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump(reader, back))
            group.create_task(self._pump(there, writer))

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._open.wait()
            target.write(data)
        target.close()

    def freeze(self) -> None:
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()


async def test_a_command_arrives_while_the_stream_stands_still(fleet: Any, until: Any) -> None:
    settings = {"topology": False, "long_way": 0.0}
    async with fleet.node("a", **settings) as a:
        way = Frozen(a.mesh.address)
        server = await asyncio.start_server(way.accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with fleet.node("b", PeerAddress(a.endpoint_id, HostPort("127.0.0.1", port)), **settings) as b:
            await a.put("commands", "before", '{"n": 0}')
            await b.put("commands", "back", '{"n": 0}')
            await until(lambda: b.text("commands", "before") and a.text("commands", "back"))
            (to_b,), (to_a,) = a.mesh._links.values(), b.mesh._links.values()
            await until(lambda: to_b.core.copies.wanted and to_a.core.copies.wanted)
            way.freeze()
            await a.put("platforms", "p", '{"n": 1}')
            await a.put("commands", "there", '{"n": 1}')
            await b.put("commands", "and-back", '{"n": 1}')
            await until(lambda: b.text("commands", "there") and a.text("commands", "and-back"), 5.0)
            assert b.text("platforms", "p") is None, "only what is urgent goes ahead"
            sent = to_a.stream.bytes_sent
            way.thaw()
            await until(lambda: b.text("platforms", "p"))
            await a.put("commands", "last", '{"n": 2}')
            await until(lambda: b.text("commands", "last"))
            assert list(a.mesh._links.values()) == [to_b], "the link is the same"
            assert to_a.stream.bytes_sent - sent < 2000, "what came as a copy is not sent back"
        server.close()
