"""The agent: its life, and what it can do.

Owns the loops that run as long as the agent lives and the operations that change its facts: publish, pull, deploy,
drop. Rule: everything here works with the sidecar away; what cannot be told is told later, in its latest form. Which
parts are used is `app.py`'s choice; what commands mean is `commands.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from peat_p2p.agent import documents
from peat_p2p.agent.commands import Order
from peat_p2p.agent.config import AgentConfig
from peat_p2p.agent.deploy import Deployment, Deployments
from peat_p2p.agent.facts import Facts
from peat_p2p.agent.journal import CommandJournal
from peat_p2p.agent.memory import LastKnown
from peat_p2p.agent.peers import FleetPeers, own_networks
from peat_p2p.agent.pusher import Sidecar, SidecarLink
from peat_p2p.agent.reports import Key, ReportBook, next_beat
from peat_p2p.agent.runner import CommandRunner
from peat_p2p.agent.steady import Steady
from peat_p2p.agent.threads import Stopper, in_thread
from peat_p2p.agent.transfers import PRIORITIES, PRIORITY, Ticket, Transfers
from peat_p2p.agent.unpacking import Unpacking
from peat_p2p.agent.view import FleetView, KnownManifest
from peat_p2p.content.manifest import Manifest, WrongManifestError, open_manifest
from peat_p2p.content.publish import publish
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import ConflictError, InvalidInputError, NotFoundError, PeatError, UntrustedError
from peat_p2p.core.netwatch import OwnAddresses, watch_network
from peat_p2p.fleet.ids import (
    COMMANDS,
    MANIFESTS,
    REVOCATIONS,
    manifest_digest,
    manifest_id,
)
from peat_p2p.swarm.engine import SwarmEngine
from peat_p2p.swarm.status import TransferStatus
from peat_p2p.swarm.torrent import torrent_builder
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.errors import RevokedError

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 5.0


class Agent:
    """One node's agent. Use `run()`; the other methods work inside it."""

    def __init__(
        self,
        config: AgentConfig,
        credentials: NodeCredentials,
        store: ChunkStore,
        engine: SwarmEngine,
        sidecar: Sidecar,
        clock: Clock,
    ) -> None:
        self.config = config
        self.agent_id = credentials.identity.node_id
        self.store = store
        self.engine = engine
        self._credentials = credentials
        self._clock = clock
        self.view = FleetView(self.agent_id, credentials.anchor, clock)
        self.book = ReportBook(self.agent_id)
        self.facts = Facts(
            config,
            agent_id=self.agent_id,
            endpoint_id=credentials.identity.endpoint_id,
            addresses=lambda: (engine.swarm_address, engine.metadata_address),
            book=self.book,
            view=self.view,
            clock=clock,
            stopped=lambda: engine.stopped_until,
        )
        self.deployments = Deployments(config.deployments_root, keep=config.keep_deployments)
        self.link = SidecarLink(
            sidecar, self.book, self.view, on_change=self._document_changed, on_connected=self._connected
        )
        self._peers = FleetPeers(self.view, own_networks())
        self._addresses = OwnAddresses()
        engine.know_sites(self._peers.site_of)
        self.transfers = Transfers(
            engine,
            self._peers,
            config.state_root / "transfers",
            clock=clock,
            on_change=self._tell,
            on_complete=self._arrived,
            make_room=self._make_room,
        )
        self.runner = CommandRunner(
            agent_id=self.agent_id,
            site=config.node.site,
            anchor=credentials.anchor,
            clock=clock,
            view=self.view,
            book=self.book,
            journal=CommandJournal(config.state_root / "commands"),
            hands=self,
            on_report=self.link.due,
        )
        self.stopping = asyncio.Event()
        self._steady = Steady(log)
        self._last_known = LastKnown(config.state_root / "last-known.json")
        self._deploying = asyncio.Lock()
        self.make_room: Callable[[int], Awaitable[int]] | None = None  # set by who looks after the store
        self._unannounced = asyncio.Event()
        self._revoked = asyncio.Event()

    # Life

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """The agent's life: seeds what it holds, resumes what it was doing, follows its sidecar."""
        await asyncio.to_thread(self.deployments.clean)
        self._last_known.recall(self.view)
        self.facts.set_in_force(await asyncio.to_thread(self.deployments.current))
        for summary in reversed(await asyncio.to_thread(self.store.packages)):
            self.facts.hold(summary)
        async with (
            asyncio.TaskGroup() as group,
            self.transfers.run(),
            self.runner.run(),
            watch_network(self._network_changed),
        ):
            loops = [
                group.create_task(self._seed_all(), name="seeding"),
                group.create_task(self._announce_on(), name="announcing"),
                group.create_task(self._obey_revocations(), name="revocations"),
                group.create_task(self.link.follow(), name="follow the sidecar"),
                group.create_task(self.link.push(), name="push to the sidecar"),
                group.create_task(self._beat_on(), name="heartbeat"),
            ]
            try:
                yield
            finally:
                for task in loops:
                    task.cancel()

    def _network_changed(self) -> None:
        log.info("the network changed")
        self._peers.set_networks(own_networks())
        self.engine.network_changed(self._addresses.lost())
        self._tell()

    async def _seed_all(self) -> None:
        """Offer everything in the store again."""
        for summary in self.facts.held():
            with self._steady(f"seeding {summary.manifest.reference}"):
                await self.engine.seed(summary)
        self._tell()

    async def _announce_on(self) -> None:
        """Announce, as long as the agent lives, manifests of what is held that the mesh does not have."""
        while True:
            await self._unannounced.wait()
            self._unannounced.clear()
            if not self.view.synced:
                continue  # the snapshot's end wakes this again
            for summary in self.facts.held():
                if self.view.get(MANIFESTS, manifest_id(summary.manifest_digest)) is None:
                    with self._steady(f"announcing {summary.manifest.reference}"):
                        package = await asyncio.to_thread(self.store.package, summary.manifest_digest)
                        if package is not None:
                            self._announce(package)

    async def _obey_revocations(self) -> None:
        """Drop what the formation revoked: it is not offered, not fetched, and flagged where it is deployed."""
        while True:
            await self._revoked.wait()
            self._revoked.clear()
            for subject in self.view.revoked.packages():
                digest = manifest_digest(subject)
                try:
                    self.view.revoked.check_package(digest)
                except PeatError as error:
                    begun = await self.transfers.stop(digest, error)
                    summary = self.facts.summary(digest)
                    if summary is not None:
                        log.warning("%s is dropped: %s", summary.manifest.reference, error)
                        with self._steady(f"dropping {summary.manifest.reference}"):
                            await self.drop(digest)
                    if begun or summary is not None:
                        with self._steady("removing chunks of what is revoked"):
                            await asyncio.to_thread(self.store.gc)
            self._tell()

    async def _beat_on(self) -> None:
        while True:
            self._tell()
            if self.view.synced:
                data = self._last_known.gather(self.view, [ticket.digest for ticket in self.transfers.active()])
                if data is not None:
                    with self._steady("keeping the peers last known"):
                        await asyncio.to_thread(self._last_known.keep, data)
            now = self._clock.monotonic()
            due = next_beat(now, self.config.heartbeat_interval_s, self.config.heartbeat_jitter, random.random())  # noqa: S311
            await asyncio.sleep(due - now)

    # Facts

    def _tell(self) -> None:
        """Bring what the sidecar shall hold up to date with what is the case."""
        self.facts.tell(self.transfers.active())
        self.link.due()

    async def drop(self, digest: str) -> None:
        """Hold a package no more: neither offered nor in the store. Its chunks go with the next collection."""
        self.facts.unhold(digest)
        await self.engine.unseed(digest)
        await asyncio.to_thread(self.store.remove_package, digest)
        self.transfers.history.forget(digest)
        self.book.unwant(Key(MANIFESTS, manifest_id(digest)))
        self._tell()

    async def _make_room(self, manifest: Manifest) -> bool:
        freed = 0
        if self.make_room is not None:
            with self._steady("making room on the disk"):
                freed = await self.make_room(manifest.total_bytes)
        return freed > 0

    def repair(self, digest: str, envelope: dict[str, Any]) -> None:
        """A package lost chunks: it is not held whole any more, and what is missing is fetched again."""
        self.facts.unhold(digest)
        self.transfers.wish(envelope, "repair")
        self._tell()

    # What the sidecar tells

    def _document_changed(self, collection: str, doc_id: str, fields: Mapping[str, Any] | None) -> None:
        if collection == COMMANDS:
            self.runner.changed(doc_id)
        elif collection == MANIFESTS and fields is None and self.facts.summary(manifest_digest(doc_id)):
            self._unannounced.set()
        elif collection == REVOCATIONS:
            self._revoked.set()

    def _connected(self, connected: bool) -> None:
        if connected:
            log.info("the sidecar is in reach; %d commands are known", len(self.view.all(COMMANDS)))
            self.runner.connected()
            self._unannounced.set()
            self._tell()

    def _announce(self, package: StoredPackage) -> None:
        self.book.want(*documents.announcement(package.manifest, package.manifest_digest, package.envelope))
        self.link.due()

    def _arrived(self, package: StoredPackage) -> None:
        manifest = package.manifest
        with self._steady(f"entering {manifest.reference}"):
            for summary in self.store.find(manifest.name, manifest.version, manifest.arch):
                if summary.manifest_digest == package.manifest_digest:
                    self.facts.hold(summary)
        self._announce(package)
        self._tell()

    async def received(self, package: StoredPackage) -> None:
        """A package came into the store by another way than a transfer, verified. Raises when it was revoked since."""
        try:
            self.known(package.manifest_digest)
        except PeatError:
            await self.drop(package.manifest_digest)
            raise
        await self.engine.seed(package)
        self._arrived(package)
        self.transfers.look_again(package.manifest_digest)

    def stop(self) -> None:
        """The process is about to stop: whoever follows a transfer is to be told, rather than cut off."""
        self.stopping.set()
        self.view.changes.notify()
        for ticket in self.transfers.active():
            ticket.changes.notify()

    # What the agent can do

    def resolve(self, name: str, version: str, arch: str) -> KnownManifest:
        """The package version that is meant, among what the fleet has announced and what is here.

        Raises NotFoundError; UntrustedError when what there is does not verify.
        """
        try:
            return self.view.resolve(name, version, arch, self.config.arch)
        except NotFoundError:
            for summary in self.store.find(name, version or None, arch or None):
                known = self._stored(summary.manifest_digest)
                if known is not None:
                    return known
            raise

    def resolve_digest(self, digest: str, name: str, version: str) -> KnownManifest:
        """The manifest of this digest, which must be about `name` (and `version`). Raises like `resolve`."""
        known = self.known(digest)
        if known.manifest.name != name or (version and known.manifest.version != version):
            raise WrongManifestError(f"manifest {digest} is about {known.manifest.reference}, not {name}:{version}")
        return known

    def known(self, digest: str) -> KnownManifest:
        """The manifest of this digest, from the mesh or from the store. Raises like `resolve`."""
        try:
            return self.view.manifest(digest)
        except NotFoundError:
            stored = self._stored(digest)
            if stored is None:
                raise
            return stored

    def _stored(self, digest: str) -> KnownManifest | None:
        package = self.store.package(digest)
        if package is None:
            return None
        manifest, _, publisher = open_manifest(package.envelope, self._credentials.anchor, self._clock.wall())
        self.view.revoked.check_package(digest)
        self.view.revoked.check_identity(publisher)
        return KnownManifest(manifest, digest, publisher.node_id, package.envelope)

    async def obtain(self, order: Order, wish: str, say: Callable[[str], None]) -> Ticket:
        """Begin to fetch what a command is about; waits, and says why, while nobody in reach has announced it."""
        said = ""
        while True:
            changed = self.view.changes.next()
            try:
                if order.manifest:
                    known = self.resolve_digest(order.manifest, order.package, order.version)
                else:
                    known = self.resolve(order.package, order.version, order.arch)
                return self.transfers.wish(known.envelope, wish)
            except (RevokedError, WrongManifestError):
                raise
            except (NotFoundError, UntrustedError) as error:
                # A manifest that does not verify proves nothing, not even that there is no good one.
                if str(error) != said:
                    said = str(error)
                    say(said)
            await changed.wait()

    def release(self, wish: str) -> None:
        """Nothing is wanted in the name of `wish` any more."""
        for ticket in self.transfers.active():
            self.transfers.release(ticket.digest, wish)

    def pull(self, known: KnownManifest, wish: str) -> Ticket:
        """Begin to fetch a package version, or join its transfer."""
        return self.transfers.wish(known.envelope, wish)

    def unpacking_for(self, manifest: Manifest) -> Unpacking:
        """Something that unpacks a package to where it will be deployed."""
        return self.unpacking(self.deployments.folder_for(manifest.name, manifest.version, manifest.digest).absolute())

    async def deploy(self, package: StoredPackage, link: str, unpacking: Unpacking) -> Deployment:
        """Unpack a package that is here, as far as `unpacking` has not, and put it in force. One at a time."""
        manifest = package.manifest

        def work(stopper: Stopper) -> Deployment:
            return self.deployments.deploy(
                package=manifest.name,
                version=manifest.version,
                arch=manifest.arch,
                digest=manifest.digest,
                manifest=package.manifest_digest,
                now=int(self._clock.wall()),
                unpack=lambda _: unpacking.put(package, stopper),
                link=link,
            )

        async with self._deploying:
            deployment = await in_thread(work)
            self.facts.set_in_force(await asyncio.to_thread(self.deployments.current))
        self._tell()
        return deployment

    def unpacking(self, destination: Path) -> Unpacking:
        """Something that writes the content of a package as plain files to a new folder `destination`."""
        if not destination.is_absolute():
            raise InvalidInputError(f"destination {str(destination)!r} must be an absolute path")
        return Unpacking(self.store, destination)

    async def publish(
        self,
        source: Path,
        name: str,
        version: str,
        arch: str,
        progress: Callable[[str, int, int], None],
        priority: str = "",
    ) -> StoredPackage:
        """Chunk, sign, store, seed and announce a package. `progress` is called from a thread."""
        if not source.is_absolute():
            raise InvalidInputError(f"path {str(source)!r} must be absolute")
        if priority and priority not in PRIORITIES:
            raise InvalidInputError(f"priority {priority!r} is none of {', '.join(PRIORITIES)}")
        annotations = {PRIORITY: priority} if priority else None
        for summary in self.store.find(name, version, arch):
            log.warning("%s is published again; the one of %d stays too", summary.manifest.reference, summary.added)

        def work(stopper: Stopper) -> StoredPackage:
            def report(phase: str, done: int, total: int) -> None:
                stopper.check()
                progress(phase, done, total)

            build = torrent_builder(self.store, self._credentials.ca_pem)
            who, clock = self._credentials, self._clock
            return publish(source, name, version, arch, self.store, who, build, clock, report, annotations)

        package = await in_thread(work)
        await self.received(package)
        return package

    async def announced(self, digest: str) -> bool:
        """Wait a little for the sidecar to hold the manifest. False: it is away, and will be told when it is back."""
        key = Key(MANIFESTS, manifest_id(digest))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANNOUNCE_SECONDS):
                while not self.book.settled(key):
                    await self.view.changes.next().wait()
        return self.book.settled(key)

    def status_of(self, digest: str) -> TransferStatus | None:
        """How far the transfer of a package is, when there is one."""
        return next((ticket.status for ticket in self.transfers.active() if ticket.digest == digest), None)


def require_absent(destination: Path) -> None:
    """Raise ConflictError if something is at `destination`: a pull must not overwrite what a person has there."""
    if destination.exists() or destination.is_symlink():
        raise ConflictError(f"{destination} exists already; remove it or choose another place")
