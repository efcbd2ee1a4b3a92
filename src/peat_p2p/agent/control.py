"""The agent's control service: what the command line asks of the agent beside it.

Owns the translation between `peat.agent.v1` messages and the agent. Errors leave as PeatError and become Connect codes
in the interceptor. Must not decide anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from connectrpc.request import RequestContext

from peat_p2p.agent.broadcasts import BroadcastPlan, Broadcasts
from peat_p2p.agent.explain import explain
from peat_p2p.agent.history import EndedTransfer
from peat_p2p.agent.service import Agent, require_absent
from peat_p2p.agent.streams import BREATH_SECONDS, PULSE_SECONDS, follow, paced
from peat_p2p.agent.transfers import Ticket
from peat_p2p.agent.upkeep import Upkeep
from peat_p2p.agent.view import KnownManifest
from peat_p2p.content.manifest import check_name
from peat_p2p.content.store import StoredPackage
from peat_p2p.core.address import HostPort
from peat_p2p.core.errors import ConfigError, InvalidInputError, NotFoundError, PeatError, UnavailableError
from peat_p2p.core.waiting import within
from peat_p2p.fleet.ids import MANIFESTS, manifest_digest
from peat_p2p.swarm.status import TransferState, TransferStatus
from peat_p2p.wire.gen.peat.agent.v1 import agent_pb as pb
from peat_p2p.wire.gen.peat.agent.v1.agent_connect import PeatAgent

SETTLE_SECONDS = 5.0  # a node that has just started is given this long to hear of packages before one is "unknown"
DEFAULT_ARCH = "any"
_SLICE = 50

_STATES = {
    TransferState.CHECKING: "looking",
    TransferState.METADATA: "looking",
    TransferState.WAITING: "waiting",
    TransferState.FETCHING: "fetching",
    TransferState.COMPLETE: "complete",
    TransferState.FAILED: "failed",
    TransferState.CANCELLED: "cancelled",
}

Context = RequestContext[Any, Any]


class ControlService(PeatAgent):
    """PeatAgent on an Agent."""

    def __init__(self, agent: Agent, upkeep: Upkeep, broadcasts: Broadcasts) -> None:
        self._agent = agent
        self._upkeep = upkeep
        self._broadcasts = broadcasts

    async def publish(self, request: pb.PublishRequest, _ctx: Context) -> AsyncIterator[pb.PublishProgress]:
        """Publish a path on this machine, with progress."""
        name, version, arch = request.name, request.version, request.arch or DEFAULT_ARCH
        check_name(name, version, arch)
        yield pb.PublishProgress(step="scanning")

        async def work(tell: Callable[[pb.PublishProgress | StoredPackage], None]) -> StoredPackage:
            def progress(phase: str, done: int, total: int) -> None:
                step = {"read": "chunking", "torrent": "signing", "open": "opening archives"}.get(phase, phase)
                tell(pb.PublishProgress(step=step, bytes_done=done, bytes_total=total))

            return await self._agent.publish(Path(request.path), name, version, arch, progress, request.priority)

        package: StoredPackage | None = None
        async with contextlib.aclosing(follow(work)) as states:
            async for state, _ in states:
                if isinstance(state, StoredPackage):
                    package = state
                else:
                    yield state
        assert package is not None
        total = package.manifest.total_bytes
        yield pb.PublishProgress(step="announcing", bytes_done=total, bytes_total=total)
        await self._agent.announced(package.manifest_digest)
        known = self._agent.resolve_digest(package.manifest_digest, name, version)
        yield pb.PublishProgress(step="done", bytes_done=total, bytes_total=total, done=self._package(known))

    async def pull(self, request: pb.PullRequest, _ctx: Context) -> AsyncIterator[pb.Transfer]:
        """Fetch a package and follow it to the end. When the caller goes away the fetching goes on."""
        if not request.name:
            raise InvalidInputError("the call names no package")
        destination = Path(request.destination) if request.destination else None
        if destination is not None:
            await asyncio.to_thread(_prepare, destination)
        known: KnownManifest | None = None
        async for found in self._look(request):
            if isinstance(found, KnownManifest):
                known = found
            else:
                yield found
        assert known is not None
        ticket = self._agent.pull(known, f"pull:{secrets.token_hex(8)}")
        async with self._agent.unpacking(destination) if destination else contextlib.nullcontext() as unpacking:
            async for status in paced(ticket, self._agent.stopping):
                if not status.state.final:
                    yield transfer_message(known, status)
                    if unpacking is not None:
                        await unpacking.advance(ticket.transfer)
            if ticket.package is None:
                yield transfer_message(known, ticket.status)
                raise ticket.error or NotFoundError(f"the transfer of {known.manifest.reference} was stopped")
            if unpacking is not None:
                message = transfer_message(known, ticket.status)
                message.state, message.reason, message.path = "unpacking", f"to {destination}", str(destination)
                yield message
                await unpacking.finish(ticket.package)
        message = transfer_message(known, ticket.status)
        message.path = str(destination) if destination is not None else ""
        yield message

    async def _look(self, request: pb.PullRequest) -> AsyncIterator[pb.Transfer | KnownManifest]:
        """Find out which package is meant; while that is not known, say so."""
        loop = asyncio.get_running_loop()
        patience = loop.time() + SETTLE_SECONDS
        while True:
            changed = self._agent.view.changes.next()
            try:
                yield self._agent.resolve(request.name, request.version, request.arch)
                return
            except NotFoundError as error:
                # Before the sidecar's documents have been read, not to know a package means nothing.
                settled = self._agent.view.synced or loop.time() >= patience
                if settled and not request.wait:
                    raise
                reason = str(error) if self._agent.view.synced else f"{error} ({self._sidecar_state()})"
            if self._agent.stopping.is_set():
                raise UnavailableError("the agent is stopping; ask again when it is started again")
            yield pb.Transfer(name=request.name, version=request.version, state="waiting", reason=reason)
            await within(PULSE_SECONDS, changed)
            await asyncio.sleep(BREATH_SECONDS)

    def _sidecar_state(self) -> str:
        reason = self._agent.link.reason
        return f"the sidecar is out of reach: {reason}" if reason else "the sidecar has not told all it knows yet"

    async def list_transfers(self, _request: pb.ListTransfersRequest, _ctx: Context) -> pb.ListTransfersResponse:
        """The transfers under way, then those that ended, with what they cost."""
        tickets = self._agent.transfers.active()
        messages = [transfer_message(ticket, ticket.transfer.status()) for ticket in tickets]
        under_way = {ticket.digest for ticket in tickets}
        deployed = {deployment.manifest: deployment.path for deployment in self._agent.facts.in_force()}
        for ended in self._agent.transfers.history.all():
            if ended.digest not in under_way:
                message = transfer_message(ended, ended.status)
                message.path = deployed.get(ended.digest, "")
                messages.append(message)
        return pb.ListTransfersResponse(transfers=messages)

    async def list_packages(self, _request: pb.ListPackagesRequest, _ctx: Context) -> pb.ListPackagesResponse:
        """Every package known here, by announcement or because it is held."""
        view = self._agent.view
        digests = {manifest_digest(doc_id): None for doc_id in view.all(MANIFESTS)}
        digests.update((summary.manifest_digest, None) for summary in self._agent.facts.held())
        known: dict[str, KnownManifest] = {}
        for number, digest in enumerate(digests):
            if number % _SLICE == 0:
                await asyncio.sleep(0)  # each may take a signature's check, and there may be thousands
            with contextlib.suppress(PeatError):
                known[digest] = self._agent.known(digest)
        return pb.ListPackagesResponse(packages=[self._package(manifest) for manifest in known.values()])

    async def show_package(self, request: pb.ShowPackageRequest, _ctx: Context) -> pb.ShowPackageResponse:
        """One package with its entries, as far as they are known here."""
        known = self._agent.resolve(request.name, request.version, request.arch)
        response = pb.ShowPackageResponse(package=self._package(known), annotations=dict(known.manifest.annotations))
        stored = await asyncio.to_thread(self._agent.store.package, known.digest)
        if stored is not None:
            index = stored.index
            response.unique_bytes, response.average_chunk_bytes = index.unique_bytes, index.average
            response.entries = [
                pb.Entry(
                    path=e.path,
                    kind=e.kind.name.lower(),
                    mode=e.mode,
                    size=e.size,
                    target=e.target,
                    opened=list(e.recipe.codecs) if e.recipe else [],
                )
                for e in index.files
            ]
        summary = self._agent.facts.summary(known.digest)
        response.pinned = summary is not None and summary.pinned
        return response

    async def explain(self, request: pb.ExplainRequest, _ctx: Context) -> pb.ExplainResponse:
        """Why a package is here or not."""
        if not request.name:
            raise InvalidInputError("the call names no package")
        found = explain(self._agent, request.name, request.version, request.arch)
        facts = [pb.Fact(about=f.about, subject=f.subject, state=f.state, text=f.text) for f in found.facts]
        return pb.ExplainResponse(verdict=found.verdict, facts=facts)

    async def remove_package(self, request: pb.RemovePackageRequest, _ctx: Context) -> pb.RemovePackageResponse:
        """Drop a package from this agent's store."""
        summary = self._upkeep.find(request.name, request.version, request.arch)
        freed = await self._upkeep.remove(summary, force=request.force)
        manifest = summary.manifest
        package = pb.Package(
            name=manifest.name, version=manifest.version, arch=manifest.arch, manifest=summary.manifest_digest
        )
        return pb.RemovePackageResponse(package=package, freed_bytes=freed)

    async def pin_package(self, request: pb.PinPackageRequest, _ctx: Context) -> pb.PinPackageResponse:
        """Keep a package from eviction, or no longer."""
        summary = self._upkeep.find(request.name, request.version, request.arch)
        await self._upkeep.pin(summary, request.pinned)
        known = self._agent.resolve_digest(summary.manifest_digest, summary.manifest.name, summary.manifest.version)
        return pb.PinPackageResponse(package=self._package(known))

    async def verify_store(
        self, _request: pb.VerifyStoreRequest, _ctx: Context
    ) -> AsyncIterator[pb.VerifyStoreProgress]:
        """Check every chunk, with progress."""
        async with contextlib.aclosing(follow(self._upkeep.verify)) as states:
            async for state, done in states:
                yield pb.VerifyStoreProgress(
                    bytes_done=state.bytes_done,
                    bytes_total=state.bytes_total,
                    chunks=state.chunks,
                    bad_chunks=state.bad,
                    repairing=list(state.repairing),
                    done=done,
                )

    async def collect_garbage(self, _request: pb.CollectGarbageRequest, _ctx: Context) -> pb.CollectGarbageResponse:
        """Remove chunks that belong to no package."""
        result = await self._upkeep.collect()
        return pb.CollectGarbageResponse(chunks=result.chunks, bytes=result.bytes, strays=result.strays)

    async def stat_store(self, _request: pb.StatStoreRequest, _ctx: Context) -> pb.StatStoreResponse:
        """Count what is in the store."""
        stat = await self._upkeep.stat()
        return pb.StatStoreResponse(
            packages=stat.packages,
            chunks=stat.chunks,
            chunk_bytes=stat.chunk_bytes,
            loose_chunks=stat.loose_chunks,
            loose_bytes=stat.loose_bytes,
            free_bytes=stat.free_bytes,
            delivered_bytes=sum(summary.manifest.total_bytes for summary in self._agent.facts.held()),
            path=str(self._agent.store.root),
        )

    async def broadcast(self, request: pb.BroadcastRequest, _ctx: Context) -> AsyncIterator[pb.BroadcastProgress]:
        """Send a held package to a multicast group, with progress; it ends when the caller goes away."""
        try:
            group = HostPort.parse(request.group)
        except ConfigError as error:
            raise InvalidInputError(str(error)) from error
        interface = request.interface or "0.0.0.0"  # noqa: S104
        plan = BroadcastPlan(group, request.rate_bytes_per_s, request.loss, interface, tuple(request.sites))
        known = self._agent.resolve(request.name, request.version, request.arch)

        async def work(tell: Callable[[int], None]) -> int:
            return await self._broadcasts.send(known, plan, tell)

        async with contextlib.aclosing(follow(work)) as states:
            async for sent, done in states:
                yield pb.BroadcastProgress(
                    step="done" if done else "sending",
                    sent_bytes=sent,
                    package_bytes=known.manifest.total_bytes,
                    done=done,
                )

    def _package(self, known: KnownManifest) -> pb.Package:
        manifest, agent = known.manifest, self._agent
        holders = [holding.agent_id for holding in agent.view.holders(known.digest) if holding.complete]
        held = 0
        summary = agent.facts.summary(known.digest)
        if summary is not None:
            holders.append(agent.agent_id)
            held = manifest.total_bytes
        elif (status := agent.status_of(known.digest)) is not None and status.total:
            held = manifest.total_bytes * status.verified // status.total
        copies = len(agent.view.copies(known.digest)) + (summary is not None)
        return pb.Package(
            name=manifest.name,
            version=manifest.version,
            arch=manifest.arch,
            digest=manifest.digest,
            manifest=known.digest,
            total_bytes=manifest.total_bytes,
            files=manifest.files,
            chunks=manifest.chunks,
            publisher=known.publisher,
            published_at=manifest.created,
            holders=sorted(set(holders)),
            held_bytes=held,
            copies=copies,
            under_replicated=copies < agent.config.copies,
            pinned=summary is not None and summary.pinned,
            deployed=any(deployment.manifest == known.digest for deployment in agent.facts.in_force()),
        )


def transfer_message(what: KnownManifest | Ticket | EndedTransfer, status: TransferStatus) -> pb.Transfer:
    """A transfer's status as a message."""
    manifest = what.manifest
    return pb.Transfer(
        name=manifest.name,
        version=manifest.version,
        arch=manifest.arch,
        digest=manifest.digest,
        state=_STATES[status.state],
        reason=status.reason,
        total_bytes=status.total,
        verified_bytes=status.verified,
        received_bytes=status.received,
        wasted_bytes=status.wasted,
        reused_bytes=status.reused,
        rate_bytes_per_s=status.rate,
        eta_s=status.eta or 0.0,
        elapsed_s=status.elapsed,
        sources=[pb.SourceBytes(agent_id=source.agent_id, bytes=source.bytes) for source in status.sources],
    )


def _prepare(destination: Path) -> None:
    """Check that the content can go to `destination`; an empty folder there makes way."""
    if not destination.is_absolute():
        raise InvalidInputError(f"destination {str(destination)!r} must be an absolute path")
    if destination.is_dir() and not destination.is_symlink():
        with contextlib.suppress(OSError):
            destination.rmdir()
    require_absent(destination)
