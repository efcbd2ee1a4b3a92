"""The agent: what it holds, what it is asked to do, and what it tells its sidecar.

Owns the facts the agent reports (packages held, deployments in force, transfers under way) and the operations that
change them: publish, pull, deploy. Rule: everything here works with the sidecar away; what cannot be told is told
later, in its latest form. Which parts are used is `app.py`'s choice; what commands mean is `commands.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from peat_p2p.agent import documents
from peat_p2p.agent.commands import Order
from peat_p2p.agent.config import AgentConfig
from peat_p2p.agent.deploy import Deployment, Deployments
from peat_p2p.agent.documents import HeldPackage
from peat_p2p.agent.journal import CommandJournal
from peat_p2p.agent.peers import FleetPeers, advertised, own_networks
from peat_p2p.agent.pusher import Sidecar, SidecarLink
from peat_p2p.agent.reports import Fields, Key, ReportBook, next_beat
from peat_p2p.agent.runner import CommandRunner
from peat_p2p.agent.threads import Stopper, in_thread
from peat_p2p.agent.transfers import Ticket, Transfers
from peat_p2p.agent.view import FleetView, KnownManifest
from peat_p2p.content.manifest import open_manifest
from peat_p2p.content.materialize import materialize
from peat_p2p.content.publish import publish
from peat_p2p.content.store import ChunkStore, PackageSummary, StoredPackage
from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import ConflictError, InvalidInputError, NotFoundError, PeatError, UntrustedError
from peat_p2p.fleet.holdings import PullStatus
from peat_p2p.fleet.ids import (
    COMMANDS,
    DEPLOYMENTS,
    MANIFESTS,
    PACKAGES,
    PLATFORMS,
    manifest_digest,
    manifest_id,
)
from peat_p2p.swarm.engine import SwarmEngine
from peat_p2p.swarm.status import TransferStatus
from peat_p2p.swarm.torrent import torrent_builder
from peat_p2p.trust.credentials import NodeCredentials

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
        self.deployments = Deployments(config.deployments_root, keep=config.keep_deployments)
        self.link = SidecarLink(
            sidecar, self.book, self.view, on_change=self._document_changed, on_connected=self._connected
        )
        self.transfers = Transfers(
            engine,
            FleetPeers(self.view, own_networks()),
            config.state_root / "transfers",
            clock=clock,
            on_change=self._facts_changed,
            on_complete=self._arrived,
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
        self._held: dict[str, PackageSummary] = {}
        self._holdings: dict[Key, Fields] = {}  # their documents, made once
        self._in_force: list[Deployment] = []
        self._deploying = asyncio.Lock()
        self._unannounced = asyncio.Event()
        self._told: dict[Key, Fields] = {}

    # Life

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """The agent's life: seeds what it holds, resumes what it was doing, follows its sidecar."""
        await asyncio.to_thread(self.deployments.clean)
        self._in_force = await asyncio.to_thread(self.deployments.current)
        for summary in reversed(await asyncio.to_thread(self.store.packages)):
            self._hold(summary)
        async with asyncio.TaskGroup() as group, self.transfers.run(), self.runner.run():
            loops = [
                group.create_task(self._seed_all(), name="seeding"),
                group.create_task(self._announce_on(), name="announcing"),
                group.create_task(self.link.follow(), name="follow the sidecar"),
                group.create_task(self.link.push(), name="push to the sidecar"),
                group.create_task(self._beat_on(), name="heartbeat"),
            ]
            try:
                yield
            finally:
                for task in loops:
                    task.cancel()

    async def _seed_all(self) -> None:
        """Offer everything in the store again."""
        for summary in list(self._held.values()):
            try:
                await self.engine.seed(summary)
            except PeatError as error:
                log.error("%s cannot be seeded: %s", summary.manifest.reference, error)
        self._facts_changed()

    async def _announce_on(self) -> None:
        """Announce, as long as the agent lives, manifests of what is held that the mesh does not have."""
        while True:
            await self._unannounced.wait()
            self._unannounced.clear()
            if not self.view.synced:
                continue  # the snapshot's end wakes this again
            for digest in list(self._held):
                if self.view.get(MANIFESTS, manifest_id(digest)) is None:
                    package = await asyncio.to_thread(self.store.package, digest)
                    if package is not None:
                        self._announce(package)

    async def _beat_on(self) -> None:
        while True:
            self._beat()
            now = self._clock.monotonic()
            due = next_beat(now, self.config.heartbeat_interval_s, self.config.heartbeat_jitter, random.random())  # noqa: S311
            await asyncio.sleep(due - now)

    # Facts

    def _beat(self) -> None:
        """Say that the agent is alive, and how far its transfers are."""
        self._facts_changed()

    def _facts_changed(self) -> None:
        """Bring what the sidecar shall hold up to date with what is the case."""
        now = self._clock.wall()
        wanted = dict(self._holdings)
        for ticket in self.transfers.active():
            if ticket.digest not in self._held:
                key, fields = documents.holding(self.agent_id, _progress(ticket), now)
                wanted[key] = self._unless_same(key, fields)
        for deployment in self._in_force:
            key, fields = documents.deployed(self.agent_id, deployment)
            wanted[key] = fields
        for collection in (PACKAGES, DEPLOYMENTS):
            for doc_id in self.book.wanted(collection):
                if Key(collection, doc_id) not in wanted:
                    self.book.unwant(Key(collection, doc_id))
        for key, fields in wanted.items():
            self.book.want(key, fields)
        self._told = wanted
        self.book.want(Key(PLATFORMS, self.agent_id), self.heartbeat())
        self.link.due()

    def _hold(self, summary: PackageSummary) -> None:
        """Count a package as held. Of two with one name the later is told: there is one document for both."""
        self._held[summary.manifest_digest] = summary
        held = HeldPackage(
            manifest=summary.manifest,
            digest=summary.manifest_digest,
            status=PullStatus.COMPLETE,
            held_bytes=summary.manifest.total_bytes,
        )
        key, fields = documents.holding(self.agent_id, held, summary.added)
        self._holdings[key] = fields

    def _unless_same(self, key: Key, fields: Fields) -> Fields:
        """What was told before, when nothing but its time differs."""
        before = self._told.get(key)
        if before is not None and {**before, "last_seen": 0} == {**fields, "last_seen": 0}:
            return before
        return fields

    def heartbeat(self) -> Fields:
        """The agent as it describes itself now."""
        return documents.heartbeat(
            self.config,
            agent_id=self.agent_id,
            endpoint_id=self._credentials.identity.endpoint_id,
            swarm=[str(address) for address in advertised(self.engine.swarm_address)],
            metadata=[str(address) for address in advertised(self.engine.metadata_address)],
            workloads=[{"name": d.package, "version": d.version, "status": documents.DEPLOYED} for d in self._in_force],
            now=self._clock.wall(),
        )

    def held(self) -> list[PackageSummary]:
        """The packages held whole, newest first."""
        return sorted(self._held.values(), key=lambda summary: summary.added, reverse=True)

    def holds(self, digest: str) -> bool:
        """Whether the package of this manifest is held whole."""
        return digest in self._held

    def in_force(self) -> list[Deployment]:
        """The deployments in force."""
        return list(self._in_force)

    # What the sidecar tells

    def _document_changed(self, collection: str, doc_id: str, fields: Mapping[str, Any] | None) -> None:
        if collection == COMMANDS:
            self.runner.changed(doc_id)
        elif collection == MANIFESTS and fields is None and manifest_digest(doc_id) in self._held:
            self._unannounced.set()

    def _connected(self, connected: bool) -> None:
        if connected:
            log.info("the sidecar is in reach; %d commands are known", len(self.view.all(COMMANDS)))
            self.runner.connected()
            self._unannounced.set()
            self._facts_changed()

    def _announce(self, package: StoredPackage) -> None:
        self.book.want(*documents.announcement(package.manifest, package.manifest_digest, package.envelope))
        self.link.due()

    def _arrived(self, package: StoredPackage) -> None:
        for summary in self.store.find(package.manifest.name, package.manifest.version, package.manifest.arch):
            if summary.manifest_digest == package.manifest_digest:
                self._hold(summary)
        self._announce(package)
        self._facts_changed()

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
        try:
            known = self.view.manifest(digest)
        except NotFoundError:
            stored = self._stored(digest)
            if stored is None:
                raise
            known = stored
        if known.manifest.name != name or (version and known.manifest.version != version):
            raise UntrustedError(f"manifest {digest} is about {known.manifest.reference}, not {name}:{version}")
        return known

    def _stored(self, digest: str) -> KnownManifest | None:
        package = self.store.package(digest)
        if package is None:
            return None
        manifest, _, publisher = open_manifest(package.envelope, self._credentials.anchor, self._clock.wall())
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
            except NotFoundError as error:
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

    async def deploy(self, package: StoredPackage, link: str) -> Deployment:
        """Unpack a package that is here and put it in force. One at a time."""
        manifest = package.manifest

        def work(stopper: Stopper) -> Deployment:
            return self.deployments.deploy(
                package=manifest.name,
                version=manifest.version,
                arch=manifest.arch,
                digest=manifest.digest,
                manifest=package.manifest_digest,
                now=int(self._clock.wall()),
                unpack=lambda folder: materialize(self.store, package.index, folder, lambda *_: stopper.check()),
                link=link,
            )

        async with self._deploying:
            deployment = await in_thread(work)
            self._in_force = await asyncio.to_thread(self.deployments.current)
        self._facts_changed()
        return deployment

    async def unpack(
        self, package: StoredPackage, destination: Path, progress: Callable[[str, int, int], None]
    ) -> None:
        """Write the content of a package that is here as plain files to a new folder `destination`."""
        if not destination.is_absolute():
            raise InvalidInputError(f"destination {str(destination)!r} must be an absolute path")

        def work(stopper: Stopper) -> None:
            def report(phase: str, done: int, total: int) -> None:
                stopper.check()
                progress(phase, done, total)

            materialize(self.store, package.index, destination, report)

        await in_thread(work)

    async def publish(
        self,
        source: Path,
        name: str,
        version: str,
        arch: str,
        progress: Callable[[str, int, int], None],
    ) -> StoredPackage:
        """Chunk, sign, store, seed and announce a package. `progress` is called from a thread."""
        if not source.is_absolute():
            raise InvalidInputError(f"path {str(source)!r} must be absolute")
        for summary in self.store.find(name, version, arch):
            log.warning("%s is published again; the one of %d stays too", summary.manifest.reference, summary.added)

        def work(stopper: Stopper) -> StoredPackage:
            def report(phase: str, done: int, total: int) -> None:
                stopper.check()
                progress(phase, done, total)

            build = torrent_builder(self.store, self._credentials.ca_pem)
            return publish(source, name, version, arch, self.store, self._credentials, build, self._clock, report)

        package = await in_thread(work)
        await self.engine.seed(package)
        self._arrived(package)
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


def _progress(ticket: Ticket) -> HeldPackage:
    status, manifest = ticket.transfer.status(), ticket.manifest
    # The status counts distinct chunks, the document what is delivered.
    held = manifest.total_bytes * status.verified // status.total if status.total else 0
    return HeldPackage(manifest=manifest, digest=ticket.digest, status=PullStatus.PULLING, held_bytes=held)


def require_absent(destination: Path) -> None:
    """Raise ConflictError if something is at `destination`: a pull must not overwrite what a person has there."""
    if destination.exists() or destination.is_symlink():
        raise ConflictError(f"{destination} exists already; remove it or choose another place")
