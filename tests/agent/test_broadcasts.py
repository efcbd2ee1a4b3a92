"""Broadcasts between agents: what comes in, what is filled by peers, what is refused. Multicast on loopback."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peat_p2p.agent.broadcasts import BroadcastPlan, Broadcasts, lacking
from peat_p2p.agent.service import Agent
from peat_p2p.content.index import ChunkRef
from peat_p2p.content.manifest import PAYLOAD_TYPE, unverified_payload
from peat_p2p.content.store import StoredPackage
from peat_p2p.core.address import HostPort
from peat_p2p.core.clock import SystemClock
from peat_p2p.core.errors import InvalidInputError, NotFoundError
from peat_p2p.swarm.bearers import broadcast as codes
from peat_p2p.swarm.bearers.multicast import BroadcastStore, send_package, sender_socket
from peat_p2p.trust.dsse import seal
from peat_p2p.trust.errors import RevokedError
from peat_p2p.trust.identity import Role

Make = Callable[..., Path]
LOOPBACK = "127.0.0.1"


@pytest.fixture
def group() -> HostPort:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        return HostPort("239.77.1.1", probe.getsockname()[1])


def casts(fleet: Any, agent: Agent, quiet: float = 60.0) -> Broadcasts:
    return Broadcasts(agent, fleet.credentials(agent.agent_id), SystemClock(), quiet=quiet)


async def published(agent: Agent, source: Path, arch: str = "any") -> StoredPackage:
    return await agent.publish(source, "app", "1.0", arch, lambda *_: None)


async def send(fleet: Any, agent: Agent, group: HostPort, loss: float = 0.0) -> int:
    plan = BroadcastPlan(group, 4_000_000, loss, LOOPBACK)
    return await casts(fleet, agent).send(agent.resolve("app", "1.0", "any"), plan, lambda _: None)


async def test_one_transmission_reaches_all_who_hear_and_nobody_answers(
    fleet: Any, package: Make, until: Any, group: HostPort
) -> None:
    alone = [type(fleet.sidecar)() for _ in range(2)]  # the receivers have no mesh at all
    async with (
        fleet.agent("a1") as a1,
        fleet.agent("a2", alone[0]) as a2,
        fleet.agent("a3", alone[1]) as a3,
        casts(fleet, a2).receive(group, LOOPBACK),
        casts(fleet, a3).receive(group, LOOPBACK),
    ):
        what = await published(a1, package())
        sent = await send(fleet, a1, group, 0.1)
        for agent in (a2, a3):
            await until(lambda agent=agent: agent.facts.summary(what.manifest_digest) is not None)
            assert agent.store.missing(what.index) == set()
            assert agent.resolve("app", "1.0", "any").publisher == "a1"
        assert sent < 1.6 * what.index.unique_bytes  # and not twice, for there are two of them


async def test_gaps_are_filled_by_ordinary_peers(
    fleet: Any, package: Make, until: Any, group: HostPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BroadcastStore.receive

    def deaf(self: BroadcastStore, datagram: bytes) -> None:
        number = codes._HEADER.unpack_from(datagram)[3]
        if number == 0 or number % 2:  # of two blocks one is lost for good
            real(self, datagram)

    monkeypatch.setattr(BroadcastStore, "receive", deaf)
    async with (
        fleet.agent("a1") as a1,
        fleet.agent("a2") as a2,
        casts(fleet, a2, quiet=0.5).receive(group, LOOPBACK),
    ):
        what = await published(a1, package(size=1_000_000))
        await send(fleet, a1, group)
        await until(lambda: a2.facts.summary(what.manifest_digest) is not None)
        (ended,) = a2.transfers.history.all()
        assert 0 < ended.status.reused < ended.status.total
        assert ended.status.received > 0
        assert [source.agent_id for source in ended.status.sources] == ["a1"]


async def test_a_transfer_that_waits_gets_what_a_broadcast_brings(
    fleet: Any, package: Make, until: Any, group: HostPort
) -> None:
    alone = type(fleet.sidecar)()
    async with (
        fleet.agent("a1") as a1,
        fleet.agent("a2", alone) as a2,
        casts(fleet, a2).receive(group, LOOPBACK),
    ):
        what = await published(a1, package())
        ticket = a2.transfers.wish(what.envelope, "pull:x")  # nobody in reach has it
        await until(lambda: ticket.transfer.status().reason)
        await send(fleet, a1, group)
        assert (await ticket.wait()).manifest_digest == what.manifest_digest


@pytest.mark.parametrize("why", ["revoked", "another architecture", "no publisher"])
async def test_what_must_not_come_in_does_not(fleet: Any, package: Make, until: Any, group: HostPort, why: str) -> None:
    alone = type(fleet.sidecar)()
    async with fleet.agent("a1") as a1, fleet.agent("a2", alone) as a2:
        what = await published(a1, package(), "s390x" if why == "another architecture" else "any")
        receiver = casts(fleet, a2)
        if why == "revoked":
            # In the receiver's eyes alone, so that the sender still sends.
            def revoked(digest: str) -> None:
                raise RevokedError(f"{digest} is revoked")

            a2.view._revoked = type("R", (), {"check_package": staticmethod(revoked), "packages": lambda: ()})()  # type: ignore[assignment]
        elif why == "no publisher":
            stranger = fleet.credentials("a9", Role.AGENT)
            forged = seal(stranger, PAYLOAD_TYPE, unverified_payload(what.envelope))
            object.__setattr__(what, "envelope", forged)
        async with receiver.receive(group, LOOPBACK):
            target = receiver._target
            with sender_socket(LOOPBACK) as sock:
                await send_package(sock, group, a1.store, what, 4_000_000, 0.0)
            await until(lambda: target.receiver.refused)
            assert a2.store.stat().chunks == 0
            assert a2.facts.held() == []


async def test_only_what_is_held_can_be_sent(fleet: Any, package: Make, group: HostPort) -> None:
    async with fleet.agent("a1") as a1, fleet.agent("a2") as a2:
        await published(a1, package())
        while True:
            try:
                known = a2.resolve("app", "1.0", "any")
                break
            except NotFoundError:
                await a2.view.changes.next().wait()
        with pytest.raises(NotFoundError, match="not held here whole; pull it first"):
            await casts(fleet, a2).send(known, BroadcastPlan(group, 1000, 0.0, LOOPBACK), lambda _: None)


@pytest.mark.parametrize(
    ("group", "rate", "loss", "interface", "says"),
    [
        ("10.0.0.1:7", 1, 0.1, LOOPBACK, "no multicast group"),
        ("239.1.1.1:0", 1, 0.1, LOOPBACK, "no multicast group"),
        ("somewhere:7", 1, 0.1, LOOPBACK, "no multicast group"),
        ("239.1.1.1:7", 0, 0.1, LOOPBACK, "needs a rate"),
        ("239.1.1.1:7", 1, 0.95, LOOPBACK, "outside 0 to 0.9"),
        ("239.1.1.1:7", 1, 0.1, "eth0", "not the IPv4 address"),
    ],
)
def test_a_plan_that_cannot_be(group: str, rate: int, loss: float, interface: str, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        BroadcastPlan(HostPort.parse(group), rate, loss, interface)


async def test_only_what_a_site_lacks_is_sent(fleet: Any, package: Make, until: Any, group: HostPort) -> None:
    source = package(size=400_000)
    async with (
        fleet.agent("a1") as a1,
        fleet.agent("a2", site="s2") as a2,
        casts(fleet, a2).receive(group, LOOPBACK),
    ):
        first = await published(a1, source)
        whole = await send(fleet, a1, group)
        await until(lambda: "a2" in a1.view.copies(first.manifest_digest))
        (source / "file0.bin").write_bytes(random.Random(77).randbytes(400_000))
        second = await a1.publish(source, "app", "2.0", "any", lambda *_: None)
        known = a1.resolve("app", "2.0", "any")

        async def send_to(site: str) -> int:
            plan = BroadcastPlan(group, 4_000_000, 0.0, LOOPBACK, (site,))
            return await casts(fleet, a1).send(known, plan, lambda _: None)

        assert 0 < await send_to("s2") < whole / 2
        await until(lambda: "a2" in a1.view.copies(second.manifest_digest))
        assert a2.transfers.history.all() == []
        assert await send_to("s2") == 0
        with pytest.raises(NotFoundError, match="no agent of site s9"):
            await send_to("s9")


def test_a_chunk_goes_when_any_receiver_lacks_it() -> None:
    chunks = [ChunkRef(bytes([n]) * 32, 10) for n in range(4)]
    one, other = {chunks[0].digest, chunks[1].digest}, {chunks[1].digest, chunks[2].digest}
    assert lacking(chunks, [one, other]) == [True, False, True, True]
    assert lacking(chunks, []) == [True] * 4


async def test_noise_does_not_keep_a_broadcast_open(fleet: Any, package: Make, group: HostPort) -> None:
    async with fleet.agent("a1") as a1, fleet.agent("a2") as a2:
        what = await published(a1, package())
        target = BroadcastStore(a2.store, fleet.credentials("a2"))
        chunks = what.index.unique_chunks
        parts = (chunks, [True] * len(chunks), lambda chunk: a1.store.chunk_path(chunk.hex).read_bytes(), 0.0)
        sent = list(codes.broadcast(1, what.envelope, what.info, *parts))
        for datagram in sent[: len(sent) // 2]:
            target.receive(datagram)
        heard = target.heard
        assert heard > 0
        assert list(target.begun()) == [what.manifest_digest]
        for datagram in codes.broadcast(2, {"payload": "forged"}, what.info, *parts):
            target.receive(datagram)
        target.receive(b"noise")
        assert target.heard == heard
