"""Packages by multicast: sending what is held to a group, and taking in what a group says.

Owns the rules: what is sent is held here whole and not revoked; what comes in is for this kind of machine, signed by a
publisher and not revoked; what a broadcast left open is fetched from ordinary peers once it falls silent. Datagrams and
their codes are `swarm/bearers/`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass

from peat_p2p.agent.service import Agent
from peat_p2p.agent.steady import Steady
from peat_p2p.agent.view import ANY_ARCH, SAME_ARCH, KnownManifest
from peat_p2p.content.index import ChunkRef
from peat_p2p.content.manifest import Manifest
from peat_p2p.content.store import StoredPackage
from peat_p2p.core.address import HostPort
from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import ConflictError, InvalidInputError, NotFoundError, UnavailableError
from peat_p2p.fleet.heartbeat import Heartbeat
from peat_p2p.fleet.ids import PLATFORMS
from peat_p2p.swarm.bearers.multicast import BroadcastStore, listen, receiver_socket, send_package, sender_socket
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.identity import Identity

log = logging.getLogger(__name__)

WISH = "broadcast"
MAX_LOSS = 0.9
_ANYWHERE = "0.0.0.0"  # noqa: S104  the system chooses the interface
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class BroadcastPlan:
    """How to send: `rate` in bytes per second, everything counted; `loss` is the share that a receiver may lose.

    With `sites`, only chunks go that an agent of one of them lacks, as far as its documents tell.
    Raises InvalidInputError.
    """

    group: HostPort
    rate: int
    loss: float = 0.1
    interface: str = _ANYWHERE
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_group(self.group, self.interface)
        if self.rate <= 0:
            raise InvalidInputError("a broadcast needs a rate in bytes per second: it asks nobody how much is too much")
        if not 0 <= self.loss <= MAX_LOSS:
            raise InvalidInputError(f"a loss of {self.loss} is outside 0 to {MAX_LOSS}")


def check_group(group: HostPort, interface: str) -> None:
    """Refuse what is no IPv4 multicast group or no interface's address. Raises InvalidInputError."""
    try:
        multicast = ipaddress.IPv4Address(group.host).is_multicast and group.port > 0
    except ValueError:
        multicast = False
    if not multicast:
        raise InvalidInputError(f"{group} is no multicast group; give one such as 239.7.7.7:7407")
    try:
        ipaddress.IPv4Address(interface)
    except ValueError:
        raise InvalidInputError(f"interface {interface!r} is not the IPv4 address of one") from None


def lacking(chunks: Sequence[ChunkRef], held: Sequence[Collection[bytes]]) -> list[bool]:
    """Which chunks at least one receiver lacks; `held` has the digests that each has. All, when none is named."""
    if not held:
        return [True] * len(chunks)
    return [any(chunk.digest not in digests for digests in held) for chunk in chunks]


class Broadcasts:
    """Sends and receives for one agent. `quiet` seconds without a datagram end a broadcast."""

    def __init__(self, agent: Agent, credentials: NodeCredentials, clock: Clock, *, quiet: float = 10.0) -> None:
        self._agent = agent
        self._clock = clock
        self._quiet = quiet
        self._steady = Steady(log)
        self._target = BroadcastStore(agent.store, credentials, clock, self._allow)

    async def send(self, known: KnownManifest, plan: BroadcastPlan, tell: Callable[[int], None]) -> int:
        """Send a package; `tell` gets the bytes sent so far. Returns the bytes sent.

        Raises NotFoundError when it is not held here whole, ExhaustedError when the budget stops it, UnavailableError.
        """
        agent, what = self._agent, known.manifest.reference
        package = await asyncio.to_thread(agent.store.package, known.digest)
        if package is None or agent.facts.summary(known.digest) is None:
            raise NotFoundError(f"{what} is not held here whole; pull it first: peat pull {what}")
        sent = 0

        async def permit(count: int) -> None:
            nonlocal sent
            agent.view.revoked.check_package(known.digest)
            await agent.engine.give(count)
            sent += count
            tell(sent)

        wanted = lacking(package.index.unique_chunks, await self._held_by(package, plan.sites))
        if not any(wanted):
            log.info("%s: nobody of site %s lacks anything of it", what, ", ".join(plan.sites))
            return 0
        chunks = [chunk.hex for chunk in package.index.unique_chunks]
        try:
            with contextlib.closing(sender_socket(plan.interface)) as sock, agent.store.hold(chunks):
                log.info("%s is broadcast to %s at %d bytes per second", what, plan.group, plan.rate)
                return await send_package(
                    sock, plan.group, agent.store, package, plan.rate, plan.loss, wanted, permit=permit
                )
        except OSError as error:
            raise UnavailableError(f"nothing can be sent to {plan.group}: {error.strerror or error}") from error

    async def _held_by(self, package: StoredPackage, sites: Sequence[str]) -> list[set[bytes]]:
        """What each agent of these sites has, as far as its documents and the packages here tell."""
        view = self._agent.view
        beats = (Heartbeat.from_document(name, fields) for name, fields in view.all(PLATFORMS).items())
        held: dict[str, set[bytes]] = {
            beat.agent_id: set() for beat in beats if beat.site in sites and beat.agent_id != self._agent.agent_id
        }
        if sites and not held:
            raise NotFoundError(f"no agent of site {', '.join(sites)} is known here; without a site all is sent")
        contents: dict[str, set[bytes]] = {}
        for holding in view.holders_of_name(package.manifest.name):
            if holding.agent_id not in held or not holding.complete:
                continue
            if holding.manifest not in contents:
                other = await asyncio.to_thread(self._agent.store.package, holding.manifest)
                unique = other.index.unique_chunks if other is not None else ()
                contents[holding.manifest] = {chunk.digest for chunk in unique}
            held[holding.agent_id] |= contents[holding.manifest]
        return list(held.values())

    @contextlib.asynccontextmanager
    async def receive(self, group: HostPort, interface: str = _ANYWHERE) -> AsyncIterator[None]:
        """Take in what is broadcast to a group, as long as the context lasts.

        Raises InvalidInputError for what is no group, UnavailableError when it cannot be heard.
        """
        check_group(group, interface)
        try:
            sock = receiver_socket(group, interface)
        except OSError as error:
            raise UnavailableError(f"broadcasts to {group} cannot be heard: {error.strerror or error}") from error
        with contextlib.closing(sock), contextlib.closing(self._target):
            async with listen(sock, self._target), asyncio.TaskGroup() as tasks:
                loops = [
                    tasks.create_task(self._take_whole(), name="broadcasts received"),
                    tasks.create_task(self._fill_gaps(), name="broadcasts left open"),
                ]
                try:
                    yield
                finally:
                    for task in loops:
                        task.cancel()

    def _allow(self, manifest: Manifest, digest: str, publisher: Identity) -> None:
        agent = self._agent
        agent.view.revoked.check_package(digest)
        agent.view.revoked.check_identity(publisher)
        own = agent.config.arch
        if manifest.arch not in (own, SAME_ARCH.get(own, own), ANY_ARCH):
            raise InvalidInputError(f"{manifest.reference} is for {manifest.arch}, not for {own}")
        if agent.facts.summary(digest) is not None:
            raise ConflictError(f"{manifest.reference} is here already")
        log.info("%s is being broadcast", manifest.reference)

    async def _take_whole(self) -> None:
        target = self._target
        while True:
            await target.arrived.wait()
            target.arrived.clear()
            while target.packages:
                package = target.packages.pop()
                log.info("%s came whole by broadcast", package.manifest.reference)
                with self._steady(f"entering {package.manifest.reference}"):
                    await self._agent.received(package)

    async def _fill_gaps(self) -> None:
        """Ask ordinary peers for what is missing once nothing more is heard."""
        heard, since = self._target.heard, self._clock.monotonic()
        while True:
            await asyncio.sleep(min(_LOOK_SECONDS, self._quiet / 4))
            now = self._clock.monotonic()
            if self._target.heard != heard:
                heard, since = self._target.heard, now
            elif now - since >= self._quiet:
                for digest, envelope in self._target.begun().items():
                    log.info("a broadcast fell silent before all had come; the rest is fetched from peers")
                    with self._steady("fetching the rest of a broadcast"):
                        # The transfer holds the chunks before they are let go.
                        self._agent.transfers.wish(envelope, WISH)
                        await asyncio.sleep(0)
                    self._target.give_up(digest)
