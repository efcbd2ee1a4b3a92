"""One fetch of one package: from a verified manifest to verified chunks in the store.

Owns the order of things: metadata, what is here already, space, the torrent, verification of each finished chunk from
disk, the account. Rule: a chunk counts only when the store has journaled it; nothing but cancellation, a full disk or
a package that cannot be verified ends a transfer: without peers it waits and says so. Must not know documents.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from peat_p2p.content.index import ChunkRef, Index
from peat_p2p.content.manifest import Manifest
from peat_p2p.content.store import StoredPackage
from peat_p2p.core.atomic import write_atomic
from peat_p2p.core.errors import PeatError, UnavailableError
from peat_p2p.swarm.blame import Blame
from peat_p2p.swarm.dialer import Dialer
from peat_p2p.swarm.feeds import Feeds
from peat_p2p.swarm.inquiry import Inquiry
from peat_p2p.swarm.ledger import Ledger, SourceBytes
from peat_p2p.swarm.peers import PeerCandidate, PeerSource
from peat_p2p.swarm.plan import Decision
from peat_p2p.swarm.revival import Revival
from peat_p2p.swarm.session import peer_fingerprint
from peat_p2p.swarm.status import Priority, TransferCancelledError, TransferState, TransferStatus
from peat_p2p.swarm.steering import Steering
from peat_p2p.swarm.surroundings import Surroundings
from peat_p2p.swarm.torrent import ParsedInfo
from peat_p2p.swarm.torrents import Reading, Torrent
from peat_p2p.swarm.written import Checks, disk_error, enter, quiet, remove_files

__all__ = ["Transfer", "TransferCancelledError", "TransferState", "TransferStatus"]
log = logging.getLogger(__name__)
TICK_S = 0.5
_RATE_MEMORY = 0.2


@dataclass(slots=True)
class _Progress:
    state: TransferState = TransferState.CHECKING
    reason: str = ""
    total: int = 0
    missing: dict[str, ChunkRef] = field(default_factory=dict)
    missing_bytes: int = 0
    rate: float = 0.0
    peers: int = 0
    begun: float = 0.0


class Transfer:
    """A running or ended fetch. Made by `SwarmEngine.fetch`."""

    def __init__(
        self,
        envelope: dict[str, Any],
        manifest: Manifest,
        digest: str,
        source: PeerSource,
        around: Surroundings,
        priority: Priority,
        on_complete: Callable[[Transfer, StoredPackage], Awaitable[None]],
    ) -> None:
        self.envelope = envelope
        self.manifest = manifest
        self.manifest_digest = digest
        self.priority = priority
        self.torrent: Torrent | None = None
        self._source = source
        self._around = around
        self._on_complete = on_complete
        self._ledger = Ledger()
        self._at = _Progress(total=manifest.total_bytes, missing_bytes=manifest.total_bytes)
        self._names: dict[str, str] = {}
        self._dialer: Dialer | None = None
        self._feeds: Feeds | None = None
        self._begun: dict[int, bytearray] = {}
        self._evidence = Blame(around, self.blame)
        self._revival = Revival(around.book, around.routes)
        self._index: Index | None = None
        self._unsaved = ""
        self._inquiry = Inquiry(self, source, around, self._revival)
        self._folder = around.state_dir / "transfers" / digest.removeprefix("blake3:")
        self._ended = asyncio.Event()
        self._changed = asyncio.Event()
        self._landed = asyncio.Event()
        self._package: StoredPackage | None = None
        self._error: Exception | None = None
        self._task: asyncio.Task[None] | None = None

    # What its owner sees

    def status(self) -> TransferStatus:
        """The present state."""
        at, ledger = self._at, self._ledger
        received = ledger.received
        wasted = ledger.wasted if at.state.final else 0
        sources = sorted(ledger.by_peer.items(), key=lambda item: -item[1])
        running = 0.0 if at.state.final else self._around.clock.monotonic() - at.begun
        return TransferStatus(
            state=at.state,
            reason=at.reason,
            total=at.total,
            verified=at.total - at.missing_bytes,
            reused=ledger.reused,
            received=received,
            wasted=wasted,
            rate=at.rate if at.state is TransferState.FETCHING else 0.0,
            eta=at.missing_bytes / at.rate if at.rate > 1 and at.state is TransferState.FETCHING else None,
            sources=tuple(SourceBytes(peer, self._names.get(peer, ""), count) for peer, count in sources),
            elapsed=ledger.elapsed + running,
            peers=at.peers,
            bad_peers=tuple(sorted(self._names.get(peer, peer) for peer in ledger.bad_peers)),
            priority=self.priority,
            suspects=self._evidence.suspects(ledger.bad_peers, self._names),
        )

    async def wait(self) -> StoredPackage:
        """Wait for the end. Raises TransferCancelledError, or the PeatError that ended it."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        assert self._package is not None
        return self._package

    async def updates(self) -> AsyncIterator[TransferStatus]:
        """The state now, at each change (no more than a few a second), and a last time at the end."""
        while True:
            changed, status = self._changed, self.status()
            yield status
            if status.state.final:
                return
            await changed.wait()

    def lacks(self) -> tuple[Index, Mapping[str, ChunkRef]] | None:
        """What it fetches, and by digest what of it is not verified yet; None while that is not known."""
        return (self._index, self._at.missing) if self._index is not None and self.torrent is not None else None

    def holdings(self) -> list[bool]:
        """Which chunks are verified; empty while the package's are not known, and when it ended without them."""
        if self._index is None or self._at.state in (TransferState.FAILED, TransferState.CANCELLED):
            return []
        return [chunk.hex not in self._at.missing for chunk in self._index.unique_chunks]

    def cancel(self) -> None:
        """Stop. What is verified stays in the store."""
        if self._task is not None and not self._ended.is_set():
            self._error = TransferCancelledError(f"the fetch of {self.manifest.reference} was cancelled")
            self._task.cancel()

    # What its engine does

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin, as a task of the engine."""
        self._at.begun = self._around.clock.monotonic()
        self._task = tasks.create_task(self._guarded(), name=f"fetch {self.manifest.reference}")
        # A task cancelled before its first step never runs its own ending.
        self._task.add_done_callback(self._end_unbegun)

    def chunk_landed(self) -> None:
        """A chunk this transfer left to another may be in the store now."""
        self._landed.set()

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self._ended.is_set()

    @property
    def busy(self) -> bool:
        """Whether it gets on now, so that lesser ones should wait."""
        return self._at.state in (TransferState.CHECKING, TransferState.METADATA, TransferState.FETCHING)

    async def _guarded(self) -> None:
        final = TransferState.FAILED
        try:
            package = await self._run()
            await self._on_complete(self, package)
            self._package = package
            final = TransferState.COMPLETE
        except asyncio.CancelledError:
            final = TransferState.CANCELLED
            if self._error is None:
                self._error = TransferCancelledError(f"the fetch of {self.manifest.reference} was stopped")
        except PeatError as error:
            self._error = error
        except Exception as error:
            log.exception("fetch of %s failed", self.manifest.reference)
            self._error = UnavailableError(f"fetch of {self.manifest.reference} failed: {error}")
        finally:
            await self._inquiry.close()
            self._end(final)

    def _end_unbegun(self, task: asyncio.Task[None]) -> None:
        if not self._ended.is_set():
            self._end(TransferState.CANCELLED)

    def _end(self, final: TransferState) -> None:
        if final is not TransferState.COMPLETE:
            self._drop_torrent()
        self._around.claims.release(self, list(self._at.missing))
        self._ledger.elapsed += self._around.clock.monotonic() - self._at.begun
        if self._ledger.runs:
            self._save()
        self.report(final, str(self._error) if self._error else "")
        self._ended.set()

    async def _run(self) -> StoredPackage:
        around = self._around
        present = await asyncio.to_thread(around.store.package, self.manifest_digest)
        known = await asyncio.to_thread(Ledger.load, self._folder / "ledger.json")
        self._ledger = known or Ledger()
        if present:
            parsed = await self._inquiry.parse(present.info)
        else:
            parsed = await self._inquiry.saved(self._folder / "info") or await self._inquiry.ask_all()
        if present is None:
            await asyncio.to_thread(write_atomic, self._folder / "info", parsed.meta.info)
        self.report(TransferState.CHECKING, "looking for chunks that are here already")
        with around.store.hold(chunk.hex for chunk in parsed.chunks):
            self._at.total = self._at.missing_bytes = parsed.index.unique_bytes
            await self._take_stock(parsed)
            self._index = parsed.index
            self._open_account()
            around.store.check_space(self._at.missing_bytes, f"fetching {self.manifest.reference}")
            while self._at.missing:
                await self._fetch(parsed)
                if not self._at.missing:
                    # A file that was written to once more after it was checked counts as missing: look again.
                    await self._take_stock(parsed)
            if present is None:
                present = await asyncio.to_thread(
                    around.store.put_package, self.envelope, parsed.meta.info, parsed.index
                )
        return present

    async def _take_stock(self, parsed: ParsedInfo) -> None:
        """Find out from the store what is missing; chunks that lie there whole are entered."""
        missing = await asyncio.to_thread(self._around.store.adopt, parsed.index)
        self._at.missing = {chunk.hex: chunk for chunk in parsed.chunks if chunk.hex in missing}
        self._at.missing_bytes = sum(chunk.size for chunk in self._at.missing.values())

    def _open_account(self) -> None:
        at, ledger = self._at, self._ledger
        here = at.total - at.missing_bytes
        if ledger.runs == 0:
            ledger.reused = here
            ledger.started = self._around.clock.wall()
        # What is here beyond what was at the start was fetched by an earlier run; a crash may have cut its account.
        ledger.reused = min(ledger.reused, here)
        ledger.fetched = here - ledger.reused
        if ledger.received < ledger.fetched:
            ledger.by_peer[""] = ledger.by_peer.get("", 0) + ledger.fetched - ledger.received
            ledger.received = ledger.fetched
        ledger.runs += 1
        self._save()

    # Content

    async def _fetch(self, parsed: ParsedInfo) -> None:
        """Run the torrent until all that it may fetch is verified, or it must be added anew."""
        around, at = self._around, self._at
        if self.torrent is not None:
            self.report(TransferState.CHECKING, "sorting out what does not match")
            await self.torrent.settle()
            self._drop_torrent()
            await self._take_stock(parsed)
        mine = around.claims.claim(self, at.missing)
        if not mine:
            self.report(TransferState.WAITING, "another transfer fetches the rest")
            await self._wait_landed(parsed)
            return
        # From nothing, so that a file matches only when its last block is written, and is not written again then.
        await asyncio.to_thread(remove_files, [around.store.chunk_path(digest) for digest in mine])
        self._ledger.new_session()
        torrent = around.torrents.add(parsed, [chunk.hex not in at.missing for chunk in parsed.chunks])
        self.torrent = torrent
        pieces = {n: chunk for n, chunk in enumerate(parsed.chunks) if chunk.hex in mine}
        torrent.want([n for n, chunk in enumerate(parsed.chunks) if chunk.hex in at.missing and n not in pieces], 0)
        good, failure = False, None
        async with asyncio.TaskGroup() as tasks:
            self._dialer = Dialer(torrent, self.envelope, around, tasks)
            self._feeds = Feeds(torrent, around, tasks, self._begun, self._inquiry.take_opening())
            try:
                good = await self._run_torrent(torrent, pieces, tasks)
            except Exception as error:  # raised below: the group would wrap it
                failure = error
            self._dialer.stop()
            self._feeds.stop()
        self._count(torrent.read(), self._feeds)
        if failure is not None:
            raise failure
        torrent.keep_inside(False)
        if good and not self._feeds.torrent_knows:
            self._drop_torrent()  # who wants this node as a seed has it made anew, with all that the store has
        if good:
            await self._wait_landed(parsed)

    async def _run_torrent(self, torrent: Torrent, pieces: dict[int, ChunkRef], tasks: asyncio.TaskGroup) -> bool:
        """Fetch and verify `pieces`. False when one did not match and the torrent must be added anew."""
        around = self._around
        steering, feeds = Steering(torrent, around, frozenset(pieces)), self._feeds
        assert feeds is not None

        async def check(chunks: list[ChunkRef]) -> bool:
            await asyncio.to_thread(self._save, durable=False)
            return await self._verify(torrent, chunks)

        checks = Checks(check, tasks, torrent.wake.set)
        while True:
            begun = around.clock.monotonic()
            reading = torrent.read()
            if reading.errno:
                raise disk_error(reading, self.manifest.reference, around.store.root)
            self._count(reading, feeds)
            landed = set(feeds.take_landed())
            done = [n for n in pieces if reading.have[n] or n in landed]
            steering.fetched(done)
            checks.add([pieces.pop(n) for n in done])
            if not checks.good:
                return False
            if not pieces and checks.idle:
                break
            if pieces and feeds.torrent_behind:
                return False
            held = self.held()
            candidates = self._evidence.honest(self.candidates())
            self._revival.look(candidates, around.clock.monotonic(), torrent.wake.set)
            self._evidence.watch(torrent, reading, candidates)
            givers, told = feeds.givers(candidates), feeds.look(candidates)
            to_dial = steering.steer(reading, pieces, candidates, held, feeds.begun, givers, told)
            fed = feeds.steer(steering.unasked, candidates, to_dial)
            if steering.decision.apart:
                around.torrents.leave(torrent, reading, {peer_fingerprint(endpoint) for endpoint in fed})
            if self._dialer is not None:
                others = [peer for peer in to_dial if peer.endpoint_id not in fed]
                self._dialer.dial(others, {peer.peer for peer in reading.peers}, self._at.missing_bytes)
            self._observe(torrent, reading, steering.decision, held)
            if self._evidence.forgive(reading.peers):
                return False
            if pieces:
                spent = around.clock.monotonic() - begun
                await asyncio.sleep(quiet(len(pieces), len(torrent.parsed.chunks), spent))
            await torrent.woken(TICK_S)
        self._observe(torrent, torrent.read(), steering.decision, "")
        return True

    def _count(self, reading: Reading, feeds: Feeds) -> None:
        connections = [peer.connection for peer in reading.peers] + feeds.connections()
        self._ledger.observe(reading.received + feeds.received, connections)

    async def _wait_landed(self, parsed: ParsedInfo) -> None:
        """Wait until a chunk that another transfer fetches is here, or is given up by it."""
        at = self._at
        if not at.missing:
            return
        self._landed.clear()
        still = await asyncio.to_thread(self._around.store.missing, parsed.index)
        if len(still) == len(at.missing):
            await self._landed.wait()
            still = await asyncio.to_thread(self._around.store.missing, parsed.index)
        for digest in [digest for digest in at.missing if digest not in still]:
            chunk = at.missing.pop(digest)
            at.missing_bytes -= chunk.size
            self._ledger.reused += chunk.size

    async def _verify(self, torrent: Torrent, chunks: list[ChunkRef]) -> bool:
        """Check finished chunks from disk and enter them. Whether all were good."""
        store, at = self._around.store, self._at
        wrong = await enter(torrent, store, chunks)
        for chunk in chunks:
            if chunk.hex not in wrong:
                del at.missing[chunk.hex]
                at.missing_bytes -= chunk.size
                self._ledger.fetched += chunk.size
        self._around.claims.release(self, [chunk.hex for chunk in chunks])
        if wrong:
            suspects = sorted(self._ledger.by_peer)
            log.warning(
                "%s: %d chunks did not match their digest on disk and are fetched again; bytes came from %s",
                self.manifest.reference,
                len(wrong),
                ", ".join(self._names.get(peer, peer) for peer in suspects) or "nobody",
            )
            if len(suspects) == 1:
                self.blame(suspects[0])
        self._notify()
        return not wrong

    def _observe(self, torrent: Torrent, reading: Reading, decision: Decision, held: str) -> None:
        around, at = self._around, self._at
        endpoints = {peer_fingerprint(peer.endpoint_id): peer for peer in self.candidates()}
        for peer in reading.peers:
            known = endpoints.get(peer.peer)
            if known is not None:
                self._names[peer.peer] = known.agent_id
                around.book.succeeded(known.endpoint_id)
                if peer.rate:
                    around.book.measured(known.endpoint_id, peer.rate)
        fed = self._feeds.flowing if self._feeds is not None else []
        for candidate in fed:
            self._names[peer_fingerprint(candidate.endpoint_id)] = candidate.agent_id
        for event in torrent.take_events():
            self._evidence.note(event)
            if event.what in ("failed", "closed") and event.address is not None and self._dialer is not None:
                self._dialer.lost(event.address, event.text)
        if self._feeds is not None:
            self._evidence.fed(self._feeds.take_bad())
        if self._dialer is not None:
            self._evidence.report(torrent, self.candidates(), self._dialer)
        rate = reading.rate + (self._feeds.rate if self._feeds is not None else 0.0)
        at.rate += _RATE_MEMORY * (rate - at.rate) if at.rate else rate
        giving = {peer.peer for peer in reading.peers} | {peer_fingerprint(one.endpoint_id) for one in fed}
        at.peers = len(giving)
        if held:
            self.report(TransferState.WAITING, held)
        elif giving:
            names = ", ".join(sorted(self._names.get(peer, peer) for peer in giving)[:8])
            self.report(TransferState.FETCHING, "; ".join(filter(None, (f"from {names}", decision.reason))))
        else:
            self.report(
                TransferState.WAITING, around.book.why_nobody(list(endpoints.values()), around.clock.monotonic())
            )

    def candidates(self) -> list[PeerCandidate]:
        """Who may give what it fetches, best first."""
        return self._around.book.order(self._source.candidates(self.manifest_digest))

    def held(self) -> str:
        """Why it must wait for others; "" when it need not."""
        return self._around.hold(self)

    def blame(self, peer: str) -> None:
        """The peer of this fingerprint sent what does not match."""
        self._ledger.bad_peers[peer] = self._ledger.bad_peers.get(peer, 0) + 1
        for candidate in self.candidates():
            if peer_fingerprint(candidate.endpoint_id) == peer:
                self._names[peer] = candidate.agent_id
                self._around.book.sent_bad(candidate.endpoint_id, self._around.clock.monotonic())
        log.warning("%s: %s sent bad data", self.manifest.reference, self._names.get(peer, peer))

    def _drop_torrent(self) -> None:
        if self.torrent is not None:
            self._around.torrents.remove(self.torrent)
            self.torrent = None

    def report(self, state: TransferState, reason: str) -> None:
        """Take note of what goes on."""
        self._at.state, self._at.reason = state, reason
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _save(self, *, durable: bool = True) -> None:
        try:
            self._ledger.save(self._folder / "ledger.json", durable=durable)
            self._unsaved = ""
        except OSError as error:
            if not self._unsaved:
                log.warning("the account of %s cannot be written: %s", self.manifest.reference, error)
            self._unsaved = str(error)
