"""The swarm of one agent: seeds what the store has and fetches what it is told to.

Owns the torrent session, the metadata face, the running transfers and who seeds what. Rule: peers come from the
PeerSource of each fetch and nowhere else; nothing is requested before its manifest is verified. Must not know
documents, sidecars or commands.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from peat_p2p.content.manifest import open_manifest
from peat_p2p.content.store import ChunkStore, PackageSummary, StoredPackage
from peat_p2p.core.address import HostPort
from peat_p2p.core.atomic import write_atomic
from peat_p2p.core.clock import Clock, SystemClock
from peat_p2p.core.errors import ExhaustedError, UnavailableError
from peat_p2p.swarm.bearers.relay import Bearers, Service, open_bearers
from peat_p2p.swarm.budget import Budget, Crossings, Meter
from peat_p2p.swarm.caps import Caps
from peat_p2p.swarm.metadata import MetadataClient, MetadataServer
from peat_p2p.swarm.peers import PeerBook, PeerHealth, PeerSource
from peat_p2p.swarm.routes import Routes
from peat_p2p.swarm.seeds import Seeds
from peat_p2p.swarm.session import Limits, peer_fingerprint
from peat_p2p.swarm.status import Priority
from peat_p2p.swarm.surroundings import Surroundings
from peat_p2p.swarm.throttle import Throttle
from peat_p2p.swarm.torrents import TorrentSession
from peat_p2p.swarm.transfer import Transfer
from peat_p2p.trust.credentials import NodeCredentials

log = logging.getLogger(__name__)
_METER_S = 0.2
# What a budget has left comes no faster than in 4 s (libtorrent may save up 3 s of a cap), though not slower than this:
# a look that comes late finds a budget exceeded by no more than the lateness times the last rate.
_SPEND_S = 4.0
_LAST_RATE = 100_000  # bytes per second
_METER_SAVE_S = 5.0
NO_BUDGET = Budget()
_ANY_PORT = HostPort("127.0.0.1", 0)


@dataclass(frozen=True, slots=True)
class SwarmConfig:
    """How a swarm runs. State is kept in the store's folder by default.

    Limits are bytes per second, 0 is none; those `outside` bound what crosses to other sites, the others everything. A
    site's link is shared by its agents: each is given its part of what the link may carry. `bearer_limit` bounds what
    this agent sends over the UDP bearers, to all peers together.
    """

    listen: HostPort = _ANY_PORT
    metadata_listen: HostPort = _ANY_PORT
    site: str = ""
    download_limit: int = 0
    upload_limit: int = 0
    outside_download_limit: int = 0
    outside_upload_limit: int = 0
    bearer_limit: int = 0
    state_dir: Path | None = None
    budget: Budget = NO_BUDGET


class SwarmEngine:
    """Seeds and fetches packages. Use as a context: `async with SwarmEngine.open(...) as engine`."""

    def __init__(self, store: ChunkStore, credentials: NodeCredentials, config: SwarmConfig, clock: Clock) -> None:
        self._store = store
        self._credentials = credentials
        self._config = config
        self._clock = clock
        self._book = PeerBook(credentials.identity.endpoint_id, config.site)
        self._transfers: dict[str, Transfer] = {}
        self._claims = _Claims(self._transfers)
        self._tasks = asyncio.TaskGroup()
        self._stack = AsyncExitStack()
        self._torrents: TorrentSession
        self._seeds: Seeds
        self._loops: list[asyncio.Task[None]] = []
        self._meter = Meter(config.budget)
        # What goes through these goes to other sites alone.
        self._taken, self._given = Throttle(clock.monotonic), Throttle(clock.monotonic)
        self._caps = Caps(self._taken, self._given, clock.monotonic)
        self._caps.set_whole(config.download_limit, config.upload_limit)
        self._caps.set_outside(config.outside_download_limit, config.outside_upload_limit)
        self._stopped = ""
        self._pace = 0  # the cap that the budget sets; 0 is none
        self._sites: dict[str, str] = {}
        self._site_of: Callable[[str], str] = lambda _peer: ""
        self._around: Surroundings
        self.swarm_address = config.listen
        self.metadata_address = config.metadata_listen

    @classmethod
    def open(
        cls, store: ChunkStore, credentials: NodeCredentials, config: SwarmConfig, clock: Clock | None = None
    ) -> Self:
        """An engine to be entered with `async with`. Entering raises UnavailableError when a port cannot be had."""
        return cls(store, credentials, config, clock or SystemClock())

    async def __aenter__(self) -> Self:
        config = self._config
        try:
            self._torrents = await TorrentSession.open(
                self._credentials, self._store.root, config.listen, Limits(config.download_limit, config.upload_limit)
            )
            self._stack.push_async_callback(self._torrents.close)
            self._caps.bind(self._torrents)
            self._seeds = Seeds(
                self._store, self._torrents, self._credentials.anchor, self._credentials.ca_pem, self._clock
            )
            server = MetadataServer(self._seeds, self._given, self._uncounted, self._fetched_so_far)
            self.metadata_address = await self._stack.enter_async_context(
                server.serve(config.metadata_listen, self._credentials)
            )
            self.swarm_address = self._torrents.address
            routes = Routes(await self._open_bearers(), config.site)
            client = await self._stack.enter_async_context(MetadataClient(self._credentials, routes))
            self._around = Surroundings(
                store=self._store,
                torrents=self._torrents,
                client=client,
                routes=routes,
                book=self._book,
                claims=self._claims,
                clock=self._clock,
                ca_pem=self._credentials.ca_pem,
                state_dir=config.state_dir or self._store.root / "swarm",
                endpoint_id=self._credentials.identity.endpoint_id,
                site=config.site,
                hold=self._hold,
                throttle=self._taken,
                uncounted=self._uncounted,
            )
            await self._tasks.__aenter__()
            self._loops.append(self._tasks.create_task(self._seeds.tend(), name="tend seeds"))
            self._loops.append(self._tasks.create_task(self._caps.run(), name="divide caps"))
            if config.budget.limits:
                await self._begin_metering()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for transfer in self._transfers.values():
                transfer.cancel()
            for loop in self._loops:
                loop.cancel()
            # The body's own error goes on as it is; the group would wrap it.
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._stack.aclose()

    async def seed(self, package: StoredPackage | PackageSummary) -> None:
        """Offer a package of the store. Costs next to nothing until somebody wants it."""
        self._seeds.offer(package.manifest_digest, package.manifest.infohash)

    async def unseed(self, manifest_digest: str) -> None:
        """Offer a package no longer; connections for it are closed."""
        self._seeds.withdraw(manifest_digest)

    def fetch(
        self,
        envelope: dict[str, Any],
        peers: PeerSource,
        name: str | None = None,
        version: str | None = None,
        arch: str | None = None,
        priority: Priority = Priority.SUPPORT,
    ) -> Transfer:
        """Begin to fetch the package of a signed manifest; while one fetch of it runs, that is returned.

        Raises UntrustedError or InvalidInputError if the manifest is not good, or not about what was asked for.
        """
        manifest, digest, _ = open_manifest(envelope, self._credentials.anchor, self._clock.wall(), name, version, arch)
        running = self._transfers.get(digest)
        if running is not None and not running.ended:
            return running
        transfer = Transfer(envelope, manifest, digest, peers, self._around, priority, self._fetched)
        self._transfers[digest] = transfer
        transfer.start(self._tasks)
        return transfer

    def transfers(self) -> list[Transfer]:
        """Running and ended fetches since the start."""
        return list(self._transfers.values())

    def set_limits(self, download: int, upload: int) -> None:
        """Change the caps in bytes per second; 0 is none."""
        self._config = replace(self._config, download_limit=download, upload_limit=upload)
        self._limit()

    def set_outside_limits(self, download: int, upload: int) -> None:
        """Change the caps on what crosses to other sites, in bytes per second; 0 is none."""
        self._config = replace(self._config, outside_download_limit=download, outside_upload_limit=upload)
        self._limit()

    def _limit(self) -> None:
        """Apply the caps, and what the budget leaves where it counts."""
        config, last = self._config, self._pace
        inside = last if config.budget.inside else 0
        self._caps.set_whole(_lower(config.download_limit, inside), config.upload_limit)
        self._caps.set_outside(_lower(config.outside_download_limit, last), config.outside_upload_limit)

    def _uncounted(self) -> bool:
        """Whether bytes may move that no cap and no budget sees."""
        config = self._config
        capped = config.download_limit or config.upload_limit
        return not (capped or config.outside_download_limit or config.outside_upload_limit or config.budget.limits)

    def _fetched_so_far(self, infohash: str) -> Sequence[bool] | None:
        """Which chunks of a package a fetch has; empty when there is none, None while bytes are counted."""
        if not self._uncounted():
            return None
        found = [one.holdings() for one in self._transfers.values() if one.manifest.infohash == infohash]
        return found[0] if found else ()

    async def _open_bearers(self) -> Bearers | None:
        """The bearer to others and of others to this node; without its UDP port everything goes straight."""
        services = {Service.SWARM: _joined(self.swarm_address), Service.METADATA: _joined(self.metadata_address)}
        listen = HostPort(self._config.metadata_listen.host, self.metadata_address.port)
        try:
            return await self._stack.enter_async_context(open_bearers(listen, services, self._config.bearer_limit))
        except UnavailableError as error:
            log.warning("no bearer for long links: %s", error)
            return None

    async def _begin_metering(self) -> None:
        path = self._around.state_dir / "budget.json"
        if path.exists():
            self._meter.load(await asyncio.to_thread(path.read_bytes))
        self._keep_budget()
        self._loops.append(self._tasks.create_task(self._metering(path), name="meter"))

    async def _metering(self, path: Path) -> None:
        """Count all traffic; stop and resume the session as the budget says."""
        crossings = Crossings()
        counted = margin = 0
        saved = self._clock.monotonic()
        try:
            while True:
                self._torrents.ask_traffic()
                await asyncio.sleep(_METER_S)
                streams = self._taken.total + self._given.total
                spent = crossings.observe(self._torrents.traffic, self._connections()) + streams - counted
                self._meter.spend(self._clock.wall(), spent)
                margin += spent
                counted = streams
                self._keep_budget()
                now = self._clock.monotonic()
                if now - saved >= _METER_SAVE_S:
                    # As much as crossed since the last time may cross before the next time.
                    await asyncio.to_thread(write_atomic, path, self._meter.dump(margin))
                    saved, margin = now, 0
        finally:
            write_atomic(path, self._meter.dump(0))

    def _connections(self) -> list[tuple[str, bool, int]]:
        """Key, whether it is a neighbour's, payload."""
        site = "" if self._config.budget.inside else self._config.site
        for transfer in self._transfers.values():
            if not transfer.ended:
                for peer in transfer.candidates():
                    self._sites[peer_fingerprint(peer.endpoint_id)] = peer.site
        return [
            (key, bool(site) and site in (self._sites.get(peer), self._site_of(peer)), payload)
            for key, peer, payload in self._torrents.connections()
        ]

    def _keep_budget(self) -> None:
        now = self._clock.wall()
        room = self._meter.room(now)
        pace = max(_LAST_RATE, round(room / _SPEND_S)) if room is not None else 0
        if pace != self._pace:
            self._pace = pace
            self._limit()
        reason = self._meter.why_not(now)
        if bool(reason) != bool(self._stopped):
            log.warning("swarm traffic stops: %s", reason) if reason else log.info("swarm traffic goes on")
            self._torrents.pause(bool(reason))
        self._stopped = reason

    def network_changed(self, lost: Collection[str]) -> None:
        """Use the addresses that this machine has now, and no more the IP addresses it `lost`.

        Peers that did not answer before are tried at once.
        """
        self._torrents.moved(lost)
        if lost:
            self._tasks.create_task(self._around.client.renew(), name="end lost connections")
        self._book.network_changed(self._clock.monotonic())

    def know_sites(self, site_of: Callable[[str], str]) -> None:
        """Tell where peers stand whom this node only gives to: from the first 20 digits of an endpoint id to a site."""
        self._site_of = site_of

    def health(self, endpoint_id: str) -> PeerHealth | None:
        """What is known of a peer from dealing with it; None when there was no dealing."""
        return self._book.known(endpoint_id)

    async def give(self, count: int) -> None:
        """Count bytes that go out by another way than a transfer's, and wait until the cap lets them.

        Raises ExhaustedError when the budget stops all traffic.
        """
        if self._stopped:
            raise ExhaustedError(self._stopped)
        await self._given.take(count)

    @property
    def stopped(self) -> str:
        """Why all traffic is stopped; empty when it is not."""
        return self._stopped

    @property
    def stopped_until(self) -> str:
        """Why all traffic is stopped and until when, in words that do not change meanwhile; empty when it is not."""
        return self._meter.closed_until(self._clock.wall()) if self._stopped else ""

    def _hold(self, transfer: Transfer) -> str:
        """Why a transfer must not fetch now; empty when it may."""
        if self._stopped:
            return self._stopped
        for other in self._transfers.values():
            if other.priority > transfer.priority and other.busy:
                return f"yields to {other.manifest.reference}, which matters more"
        return ""

    async def _fetched(self, transfer: Transfer, package: StoredPackage) -> None:
        """A fetch is complete: its torrent goes on as a seed."""
        self._seeds.offer(package.manifest_digest, package.manifest.infohash)
        self._seeds.touch(package.manifest.infohash)


def _lower(one: int, other: int) -> int:
    """The lower of two caps of which 0 is none."""
    return min(one, other) if one and other else one or other


def _joined(address: HostPort) -> HostPort:
    """Where a stream that came by a bearer is joined to a port of this node."""
    return HostPort("127.0.0.1", address.port) if address.host in ("0.0.0.0", "::") else address  # noqa: S104


class _Claims:
    """Which transfer fetches which chunk. A chunk that two packages share is fetched once."""

    def __init__(self, transfers: dict[str, Transfer]) -> None:
        self._transfers = transfers
        self._owner: dict[str, Transfer] = {}

    def claim(self, owner: Transfer, digests: Iterable[str]) -> set[str]:
        """Take what no other running transfer has; returns what `owner` has now."""
        return {digest for digest in digests if self._owner.setdefault(digest, owner) is owner}

    def release(self, owner: Transfer, digests: Iterable[str]) -> None:
        """Give up what `owner` has of `digests` and wake the others."""
        gone = [digest for digest in digests if self._owner.get(digest) is owner]
        for digest in gone:
            del self._owner[digest]
        if gone:
            for transfer in self._transfers.values():
                if transfer is not owner:
                    transfer.chunk_landed()
