"""Broadcasts: any sufficient set is enough, and nothing foreign or forged gets in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from peat_p2p.content.index import ChunkRef
from peat_p2p.core.errors import UntrustedError
from peat_p2p.swarm.bearers.broadcast import BLOCK, BroadcastReceiver, broadcast, symbols_needed
from peat_p2p.swarm.bearers.multicast import BroadcastStore

ENVELOPE: dict[str, Any] = {"payload": "signed"}


class Content:
    """Chunks of random bytes."""

    def __init__(self, sizes: list[int]) -> None:
        chance = random.Random(1)
        pieces = [chance.randbytes(size) for size in sizes]
        self.data = {blake3(piece).digest(): piece for piece in pieces}
        self.chunks = [ChunkRef(blake3(piece).digest(), len(piece)) for piece in pieces]

    def read(self, chunk: ChunkRef) -> bytes:
        return self.data[chunk.digest]

    def datagrams(self, loss: float = 0.1, wanted: list[bool] | None = None, session: int = 7) -> Iterator[bytes]:
        marked = wanted or [True] * len(self.chunks)
        return broadcast(session, ENVELOPE, b"info", self.chunks, marked, self.read, loss)

    def receiver(self) -> tuple[BroadcastReceiver, dict[bytes, bytes]]:
        got: dict[bytes, bytes] = {}

        def check(envelope: dict[str, Any], info: bytes) -> list[ChunkRef]:
            if (envelope, info) != (ENVELOPE, b"info"):
                raise UntrustedError("not signed")
            return self.chunks

        return BroadcastReceiver(check, lambda chunk, data: got.__setitem__(chunk.digest, data)), got


@pytest.fixture
def content() -> Content:
    return Content([1, 70_000, 500_000, BLOCK + 12_345, 3 * BLOCK, 9])


def test_every_receiver_completes_from_its_own_nine_tenths(content: Content) -> None:
    sent = list(content.datagrams())
    for seed in range(8):
        chance = random.Random(seed)
        receiver, got = content.receiver()
        for datagram in sent:
            if chance.random() >= 0.1:
                receiver.receive(datagram)
        assert receiver.complete(7)
        assert got == content.data
    assert sum(map(len, sent)) <= 1.25 * sum(map(len, content.data.values()))


def test_order_and_doubles_do_not_matter(content: Content) -> None:
    sent = list(content.datagrams()) * 2
    random.Random(3).shuffle(sent)
    receiver, got = content.receiver()
    for datagram in sent:
        receiver.receive(datagram)
    assert got == content.data


def test_only_what_is_lacking_is_sent(content: Content) -> None:
    wanted = [False, True, False, False, True, False]
    receiver, got = content.receiver()
    for datagram in content.datagrams(wanted=wanted):
        receiver.receive(datagram)
    assert set(got) == {content.chunks[1].digest, content.chunks[4].digest}


def test_nothing_is_kept_under_a_head_that_is_not_signed(content: Content) -> None:
    receiver, got = content.receiver()
    forged = broadcast(7, {"payload": "forged"}, b"info", content.chunks, [True] * 6, content.read, 0.1)
    for datagram in forged:
        receiver.receive(datagram)
    assert not got
    assert receiver.refused >= 1


def test_forged_symbols_spoil_a_block_and_enter_nothing(content: Content) -> None:
    chance = random.Random(5)
    receiver, got = content.receiver()
    for datagram in content.datagrams():
        if datagram[10:14] == b"\0\0\0\1" and chance.random() < 0.5:
            datagram = datagram[:-1] + bytes((datagram[-1] ^ 1,))
        receiver.receive(datagram)
    for digest, data in got.items():
        assert blake3(data).digest() == digest
    assert receiver.spoiled >= 1
    assert set(got) != set(content.data)


def test_noise_is_ignored(content: Content) -> None:
    chance = random.Random(6)
    receiver, got = content.receiver()
    template = next(content.datagrams())
    for _ in range(300):
        receiver.receive(chance.randbytes(chance.randint(0, 1500)))
        receiver.receive(template[:10] + chance.randbytes(len(template) - 10))
    for datagram in content.datagrams(session=8):
        receiver.receive(datagram)
    assert got == content.data


@pytest.mark.parametrize("loss", [0.0, 0.05, 0.3])
def test_redundancy_follows_the_loss(loss: float) -> None:
    source = BLOCK / 1344
    assert source / (1 - loss) <= symbols_needed(BLOCK, loss) <= source / (1 - loss) * 1.12 + 3


async def test_a_package_arrives_in_a_store_and_a_foreign_one_does_not(
    node: Callable[[str], Any], tmp_path: Path
) -> None:
    ann, bob, mal = node("ann"), node("bob"), node("mal")
    source = tmp_path / "source.bin"
    source.write_bytes(random.Random(9).randbytes(700_000))
    for publisher, arrives in ((mal, False), (ann, True)):
        package = publisher.publish(source)
        target = BroadcastStore(bob.store, bob.credentials)
        chunks = package.index.unique_chunks
        contents = {chunk: publisher.store.chunk_path(chunk.hex).read_bytes() for chunk in chunks}
        all_of_it = [True] * len(chunks)
        for datagram in broadcast(1, package.envelope, package.info, chunks, all_of_it, contents.__getitem__, 0.1):
            target.receive(datagram)
        assert bool(target.packages) is arrives
        assert (bob.store.package(package.manifest_digest) is not None) is arrives
        assert not bob.store.missing(package.index) or not arrives
