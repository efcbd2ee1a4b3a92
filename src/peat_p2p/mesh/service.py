"""The mesh of one node: listening, dialling, and the set of live links.

Owns the lifetime of every link and the choice between two links to one peer. Keeps the rules that only certificates of
the formation speak, that a dialled peer is who it was said to be, and that one link per pair of nodes remains: the one
dialled by the node with the smaller endpoint id, or the newer one of a peer that restarted. Must not know what
documents mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager

from peat_p2p.core.address import HostPort, check_endpoint_id
from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import ExhaustedError, InvalidInputError, PeatError, UnavailableError
from peat_p2p.core.netwatch import OwnAddresses, watch_network
from peat_p2p.core.waiting import within
from peat_p2p.documents.replica import Replica
from peat_p2p.documents.types import PartKey
from peat_p2p.mesh.copies import Copies
from peat_p2p.mesh.describe import describe_all
from peat_p2p.mesh.dial import STABLE_AFTER, Dialer, Source, Target
from peat_p2p.mesh.discovery import Found, announce, local_addresses
from peat_p2p.mesh.door import Door
from peat_p2p.mesh.express import ExpressSocket
from peat_p2p.mesh.frames import CLASSES, Hello, Reason
from peat_p2p.mesh.link import LinkCore
from peat_p2p.mesh.neighbours import SIDECARS, Neighbours, read_addresses
from peat_p2p.mesh.past import Past
from peat_p2p.mesh.session import Session
from peat_p2p.mesh.spare import beside, preferred, stranded, surplus
from peat_p2p.mesh.store import ReplicaSink, ReplicaStore
from peat_p2p.mesh.summary import VersionTree
from peat_p2p.mesh.tls import TlsStream
from peat_p2p.mesh.topology import MAX_LINKS, Member, Plan, ties_with
from peat_p2p.mesh.types import MeshConfig, MeshStats, PeerState
from peat_p2p.mesh.unable import Unable
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.identity import Identity

_LOG = logging.getLogger(__name__)
_MAX_ACCEPTING = 64
_IDLE = 3600.0
_GOODBYE = 2.0
_PLAN_EVERY = 15.0
_PLAN_AT_MOST_EVERY = 0.5
_OPTIONAL = frozenset({Source.TOPOLOGY, Source.MDNS})


class Mesh:
    """This node's part in the mesh. Made by `open`."""

    def __init__(
        self,
        replica: Replica,
        credentials: NodeCredentials,
        config: MeshConfig,
        clock: Clock,
        group: asyncio.TaskGroup,
    ) -> None:
        self._replica = replica
        self._credentials = credentials
        self._config = config
        self._clock = clock
        self._group = group
        self._store = ReplicaStore(replica)
        self._sink = ReplicaSink(replica)
        self._trees = [VersionTree(self._store, klass) for klass in CLASSES]
        self._random = random.Random(os.urandom(16))  # noqa: S311  (jitter)
        self._dialer = Dialer(self._random)
        ties, own = ties_with(peer.endpoint_id for peer in config.peers), credentials.identity.endpoint_id
        self._own = Member(own, config.site, ties)
        self._neighbours = Neighbours(
            replica, credentials.anchor, self._own, clock, self._random, self._members_changed
        )
        self._members_class = replica.rules.of(SIDECARS).klass
        self._replan = True
        self._planned_at = float("-inf")
        self._plan = Plan(frozenset(), frozenset())
        self._links: dict[str, Session] = {}
        self._speaking: set[Session] = set()
        self._blocked: set[str] = set()
        self._calling: set[str] = set()
        self._instance = os.urandom(4)
        self._active = True
        self._budget = config.link_budget
        self._accepting = 0
        self._unable = Unable()
        self._due = asyncio.Event()
        self._quiet = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._past_sent = self._past_received = 0
        self._address = config.listen
        self._past: dict[str, Past] = {}
        self._names: dict[str, tuple[str, str]] = {}
        self._express = ExpressSocket()
        self._own_addresses = OwnAddresses()
        self._door = Door(credentials, config, clock, lambda: self._neighbours.revoked)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, replica: Replica, credentials: NodeCredentials, config: MeshConfig, clock: Clock
    ) -> AsyncIterator[Mesh]:
        """Listen, dial and replicate until the context ends. Raises UnavailableError if the port is in use."""
        try:
            async with asyncio.TaskGroup() as group, contextlib.AsyncExitStack() as stack:
                mesh = cls(replica, credentials, config, clock, group)
                await stack.enter_async_context(mesh._serve())
                await mesh._neighbours.announce(credentials.identity.node_id, mesh._addresses())
                if config.mdns:
                    own = credentials.identity
                    finding = announce(own.endpoint_id, own.formation, config.site, mesh._address, mesh._found)
                    await stack.enter_async_context(finding)
                await stack.enter_async_context(watch_network(mesh.network_changed))
                yield mesh
        except BaseExceptionGroup as errors:
            if len(errors.exceptions) == 1:  # the caller's own, or why this cannot be opened
                raise errors.exceptions[0] from None
            raise

    # -- face --------------------------------------------------------------------------------------------------------

    @property
    def address(self) -> HostPort:
        """Where this node listens."""
        return self._address

    @property
    def endpoint_addr(self) -> str:
        """What others write into `--peer` to reach this node."""
        return f"{self._credentials.identity.endpoint_id}@{self._addresses()[0]}"

    @property
    def sync_active(self) -> bool:
        """Whether links are made and kept."""
        return self._active

    @property
    def stats(self) -> MeshStats:
        """Totals."""
        return MeshStats(
            self._active,
            len(self._links),
            self._past_sent + sum(link.stream.bytes_sent for link in self._speaking),
            self._past_received + sum(link.stream.bytes_received for link in self._speaking),
        )

    def connect_peer(self, endpoint_id: str, addresses: Sequence[str]) -> None:
        """Keep a link to this peer from now on. Raises ConfigError for a bad id or address."""
        check_endpoint_id(endpoint_id)
        if endpoint_id == self._credentials.identity.endpoint_id:
            raise InvalidInputError("this is the endpoint id of this node itself")
        parsed = [HostPort.parse(text) for text in addresses]
        known = self._dialer.get(endpoint_id)
        if not parsed:
            if known is None:
                raise InvalidInputError(f"peer {endpoint_id[:12]} was never seen: give at least one address HOST:PORT")
            parsed = list(known.addresses)
        self._blocked.discard(endpoint_id)
        self._dialer.wish(endpoint_id, parsed, Source.API, self._clock.monotonic())
        self._due.set()

    def disconnect_peer(self, endpoint_id: str) -> bool:
        """End the link to this peer, and take none with it until `connect_peer` names it again."""
        check_endpoint_id(endpoint_id)
        known = self._dialer.get(endpoint_id) is not None or endpoint_id in self._links
        self._dialer.unwish(endpoint_id)
        self._blocked.add(endpoint_id)
        link = self._links.get(endpoint_id)
        if link is not None:
            self._end(link, Reason.DISCONNECTED, "disconnected by the operator")
        return known

    def peers(self) -> list[PeerState]:
        """Every peer that is wanted or linked."""
        targets, site_of = self._dialer.targets(), self._neighbours.site_of
        return describe_all(targets, self._links, self._names, site_of, active=self._active)

    async def start_sync(self) -> None:
        """Make links again after `stop_sync`, to every peer known, at once."""
        if not self._active:
            self._active = True
            self.network_changed()

    async def stop_sync(self) -> None:
        """End all links and make none; documents stay readable and writable here."""
        self._active = False
        now = self._clock.monotonic()
        for link in list(self._links.values()):
            addresses = read_addresses(link.hello.addresses if link.hello is not None else ())
            if addresses and not link.dialled:
                self._dialer.wish(link.peer, addresses, Source.RECENT, now)
            await link.end(Reason.STOPPED, "synchronisation was stopped there")

    def network_changed(self) -> None:
        """Addresses, links or routes of this machine changed: try every peer at once, and tell where we are now."""
        self._spawn(self._neighbours.announce(self._credentials.identity.node_id, self._addresses()), "mesh announce")
        self._neighbours.network_changed()
        for link in stranded(self._speaking, self._own_addresses.lost()):
            link.stream.abort()
        self._dialer.network_changed(self._clock.monotonic())
        self._members_changed()

    def set_link_budget(self, budget: float | None) -> None:
        """Change the byte budget of links to other sites, from now on."""
        self._budget = budget
        for link in self._links.values():
            self._set_budget(link)
            link.wake()

    # -- life --------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _serve(self) -> AsyncIterator[None]:
        listen = self._config.listen
        try:
            server = await asyncio.start_server(self._incoming, listen.host, listen.port)
        except OSError as error:
            raise UnavailableError(f"the mesh cannot listen on {listen}: {error.strerror or error}") from error
        host, port = server.sockets[0].getsockname()[:2]
        self._address = HostPort(host if listen.host != "localhost" else listen.host, port)
        self._express = await ExpressSocket.open(HostPort(host, port))
        now = self._clock.monotonic()
        for peer in self._config.peers:
            if peer.endpoint_id != self._credentials.identity.endpoint_id:
                self._dialer.wish(peer.endpoint_id, [peer.host_port], Source.CONFIGURED, now)
        remove = self._replica.on_commit(self._committed)
        self._spawn(self._neighbours.follow(), "mesh neighbours")
        self._spawn(self._dial(), "mesh dial")
        try:
            yield
        finally:
            remove()
            server.close()
            self._active = False
            for link in list(self._speaking):
                self._end(link, Reason.SHUTDOWN, "the other side is shutting down")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE):
                    while self._speaking:
                        self._quiet.clear()
                        await self._quiet.wait()
            for task in list(self._tasks):
                task.cancel()
            self._express.close()

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _committed(self, classes: frozenset[int]) -> None:
        if self._members_class in classes and self._config.topology:
            self._replan = True
            self._due.set()
        for link in self._links.values():
            link.wake()

    def _found(self, found: Found) -> None:
        self._neighbours.found(found.endpoint_id, found.addresses, found.site)
        self._members_changed()

    def _members_changed(self) -> None:
        """Members, links or revocations changed: plan anew, and end what is no longer allowed."""
        self._replan = True
        self._due.set()
        for link in list(self._links.values()):
            revocation = self._neighbours.revoked.endpoint(link.peer)
            if revocation is not None:
                self._end(link, Reason.REFUSED, f"{link.identity.node_id} was revoked")

    def _make_plan(self, now: float) -> None:
        self._replan = False
        self._planned_at = now
        sites = {peer: link.hello.site for peer, link in self._links.items() if link.hello is not None}
        dialled = [peer for peer, link in self._links.items() if link.dialled]
        self._plan = self._neighbours.plan(self._dialer, sites, dialled, self._blocked)
        for link in surplus(self._links, self._plan, self._config.site, now):
            self._end(link, Reason.BUSY, "the topology has another link in place of this one")

    # -- dialling ----------------------------------------------------------------------------------------------------

    async def _dial(self) -> None:
        while True:
            now = self._clock.monotonic()
            if self._active and not self._unable.at(now):
                since = now - self._planned_at
                wanted = since > _PLAN_EVERY or (self._replan and since > _PLAN_AT_MOST_EVERY)
                if self._config.topology and wanted:
                    self._make_plan(now)
                for target in self._dialer.due(now):
                    if target.endpoint_id in self._links or target.endpoint_id in self._calling:
                        self._dialer.linked(target.endpoint_id)
                        continue
                    self._calling.add(target.endpoint_id)
                    self._spawn(self._call(target), f"mesh call {target.endpoint_id[:12]}")
            deadline = _IDLE
            if self._active:
                deadline = (self._dialer.next_deadline() or now + _IDLE) - now
                if self._config.topology:
                    pause = _PLAN_AT_MOST_EVERY if self._replan else _PLAN_EVERY
                    deadline = min(deadline, self._planned_at + pause - now)
                deadline = max(deadline, self._unable.until - now)
            await within(max(0.01, deadline), self._due)
            self._due.clear()

    async def _call(self, target: Target) -> None:
        began, address = self._clock.monotonic(), target.address()
        past = self._past.get(target.endpoint_id)
        trip, mute = None if past is None else past.round_trip, False
        haste = target.patience(trip, began), target.second_packet(trip)
        try:
            stream, identity = await self._door.call(address, target.endpoint_id, *haste)
        except TimeoutError:
            mute, reason = True, f"{address}: no answer in time"
        except OSError as error:
            reason = f"{address}: {error.strerror or error}"
        except PeatError as error:
            reason = f"{address}: {error}"
        else:
            self._calling.discard(target.endpoint_id)
            if self._too_late(target.endpoint_id):
                stream.abort()
                reason = "no longer wanted when it answered"
            else:
                reason = await self._speak(stream, identity, dialled=True, optional=not target.sources - _OPTIONAL)
            self._settle(target.endpoint_id, reason, self._clock.monotonic() - began)
            return
        self._calling.discard(target.endpoint_id)
        self._dialer.failed(target.endpoint_id, reason, self._clock.monotonic(), mute=mute)
        self._neighbours.failed(target.endpoint_id)
        self._members_changed()

    def _too_late(self, endpoint_id: str) -> bool:
        """Whether the peer that answers a call called too, or the topology has meanwhile found another.

        Nothing was said yet, so nobody takes the one link for the other.
        """
        if self._replan and self._config.topology:
            self._make_plan(self._clock.monotonic())
        return endpoint_id in self._links or self._dialer.get(endpoint_id) is None

    def _settle(self, endpoint_id: str, reason: str, lasted: float) -> None:
        if endpoint_id in self._links:
            self._dialer.linked(endpoint_id)
        else:
            self._dialer.ended(endpoint_id, reason, lasted, self._clock.monotonic())
            if lasted < STABLE_AFTER:
                self._neighbours.failed(endpoint_id)
        self._members_changed()

    # -- accepting ---------------------------------------------------------------------------------------------------

    def _incoming(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._accepting >= _MAX_ACCEPTING:
            writer.transport.abort()
            return
        self._accepting += 1
        self._spawn(self._accept(reader, writer), "mesh accept")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            opened = await self._door.answer(reader, writer)
        finally:
            self._accepting -= 1
        if opened is None:
            return
        stream, identity = opened
        began = self._clock.monotonic()
        reason = await self._speak(stream, identity, dialled=False)
        self._settle(identity.endpoint_id, reason, self._clock.monotonic() - began)

    # -- links -------------------------------------------------------------------------------------------------------

    async def _speak(self, stream: TlsStream, identity: Identity, *, dialled: bool, optional: bool = False) -> str:
        """Run one link to its end; returns why it ended."""
        core = LinkCore(
            self._store,
            identity.endpoint_id,
            self._hello(identity.endpoint_id, optional=optional, dialled=dialled),
            self._trees,
            dialled=dialled,
            now=self._clock.monotonic(),
            budget=self._budget,
            copies=Copies(self._store, self._config.long_way),
            past=self._past.get(identity.endpoint_id),
        )
        ours = self._sink, identity, self._clock, self._admit, self._relay, self._express
        session = Session(core, stream, *ours, dialled=dialled)
        session.optional = optional
        self._speaking.add(session)
        try:
            end = await session.run()
            reason = end.detail or end.reason.name.lower()
        except ExhaustedError as error:
            reason = str(error)
            self._unable.failed(reason, self._clock.monotonic())
            with contextlib.suppress(PeatError, OSError):
                await session.end(Reason.BUSY, f"nothing can be taken there now: {reason}")
                await stream.close()
        except (PeatError, OSError) as error:
            reason = str(error)
        except Exception:
            _LOG.exception("the link to %s failed", identity)
            reason = "internal error, see the log"
        finally:
            if (past := core.past()) is not None:
                self._past[identity.endpoint_id] = past
            if dialled:
                self._door.keep(identity.endpoint_id, stream)
            stream.abort()
            self._speaking.discard(session)
            self._quiet.set()
            self._past_sent += stream.bytes_sent
            self._past_received += stream.bytes_received
            if self._links.get(identity.endpoint_id) is session:
                del self._links[identity.endpoint_id]
                _LOG.info("link to %s ended", identity)
        return reason

    def _hello(self, peer: str, *, optional: bool, dialled: bool) -> Hello:
        epoch, cursors = self._sink.known(peer) if dialled else (b"", {})
        return Hello(
            site=self._config.site,
            epoch=self._replica.epoch,
            addresses=tuple(map(str, self._addresses())),
            instance=self._instance,
            optional=optional,
            holds_epoch=epoch,
            holds=tuple(sorted(cursors.items())),
            express=self._express.works,
        )

    def _addresses(self) -> tuple[HostPort, ...]:
        return self._config.advertise or local_addresses(self._address)

    def _admit(self, session: Session) -> tuple[Reason, str] | None:
        """Whether a new link may stay beside or instead of what there is."""
        peer, hello = session.peer, session.hello
        if hello is None:
            raise RuntimeError("a link is admitted after its hello")
        if not self._active:
            return Reason.STOPPED, "synchronisation is stopped here"
        if self._unable.at(self._clock.monotonic()):
            return Reason.BUSY, f"nothing can be taken there now: {self._unable.reason}"
        if peer in self._blocked:
            return Reason.DISCONNECTED, "disconnected by the operator"
        if peer == self._credentials.identity.endpoint_id:
            return Reason.REFUSED, "this node dialled itself"
        if self._neighbours.revoked.endpoint(peer) is not None:
            return Reason.REFUSED, f"{session.identity.node_id} was revoked"
        if hello.optional and not session.dialled and peer not in self._links and len(self._links) >= MAX_LINKS:
            return Reason.BUSY, "there are enough links here"
        if not session.dialled and peer in self._door.opening and self._credentials.identity.endpoint_id < peer:
            return Reason.DUPLICATE, "a call from here is being answered"
        doubled = beside(session, self._links)
        if hello.site != self._config.site and session.dialled and doubled:
            if session.optional:
                return Reason.BUSY, "the site is linked already"
            for link in doubled:
                if link.optional and link.dialled:
                    self._end(link, Reason.BUSY, "the site has another link")
        other = self._links.get(peer)
        if other is not None and other.hello is not None:
            restarted = other.hello.instance != hello.instance
            if not restarted and other.dialled != session.dialled and preferred(other, self._own.endpoint_id):
                return Reason.DUPLICATE, "another link is kept"
            self._end(other, Reason.DUPLICATE, "another link is kept")
        self._links[peer] = session
        self._set_budget(session)
        self._dialer.linked(peer)
        self._neighbours.linked(peer)
        self._names[peer] = (session.identity.node_id, hello.site)
        self._members_changed()
        _LOG.info("link to %s is up", session.identity)
        return None

    def _relay(self, session: Session, floors: Sequence[tuple[PartKey, int]]) -> None:
        for link in self._links.values():
            if link is not session:
                self._spawn(self._quietly(link.purged(floors)), "mesh purged")

    def _set_budget(self, session: Session) -> None:
        near = session.hello is not None and session.hello.site == self._config.site != ""
        session.core.pacer.budget = None if near else self._budget

    def _end(self, session: Session, reason: Reason, detail: str) -> None:
        self._spawn(self._quietly(session.end(reason, detail)), "mesh end")

    async def _quietly(self, work: Coroutine[None, None, None]) -> None:
        with contextlib.suppress(PeatError, OSError):  # the link's own task reports what ended it
            await work
