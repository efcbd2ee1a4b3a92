"""The agent's control service: what the command line asks of the agent beside it.

Owns the translation between `peat.agent.v1` messages and the agent. Errors leave as PeatError and become Connect codes
in the interceptor. Must not decide anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from connectrpc.request import RequestContext

from peat_p2p.agent.history import EndedTransfer
from peat_p2p.agent.service import Agent, require_absent
from peat_p2p.agent.transfers import Ticket
from peat_p2p.agent.view import KnownManifest
from peat_p2p.content.manifest import check_name
from peat_p2p.content.store import StoredPackage
from peat_p2p.core.errors import InvalidInputError, NotFoundError, PeatError
from peat_p2p.swarm.status import TransferState, TransferStatus
from peat_p2p.wire.gen.peat.agent.v1 import agent_pb as pb
from peat_p2p.wire.gen.peat.agent.v1.agent_connect import PeatAgent

SETTLE_SECONDS = 5.0  # a node that has just started is given this long to hear of packages before one is "unknown"
BREATH_SECONDS = 0.1  # messages of a stream are at least this far apart
PULSE_SECONDS = 1.0  # and at most this far
DEFAULT_ARCH = "any"

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

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def publish(self, request: pb.PublishRequest, _ctx: Context) -> AsyncIterator[pb.PublishProgress]:
        """Publish a path on this machine, with progress."""
        name, version, arch = request.name, request.version, request.arch or DEFAULT_ARCH
        check_name(name, version, arch)
        latest: list[pb.PublishProgress] = []
        news = asyncio.Event()
        loop = asyncio.get_running_loop()

        def tell(message: pb.PublishProgress) -> None:
            latest[:] = [message]
            news.set()

        def progress(phase: str, done: int, total: int) -> None:
            step = {"read": "chunking", "torrent": "signing"}.get(phase, phase)
            message = pb.PublishProgress(step=step, bytes_done=done, bytes_total=total)
            loop.call_soon_threadsafe(tell, message)

        yield pb.PublishProgress(step="scanning")
        async with asyncio.TaskGroup() as group:
            task = group.create_task(
                _catching(self._agent.publish(Path(request.path), name, version, arch, progress)), name="publish"
            )
            task.add_done_callback(lambda _: news.set())
            try:
                while not task.done():
                    await news.wait()
                    news.clear()
                    if latest and not task.done():
                        yield latest.pop()
                        await asyncio.sleep(BREATH_SECONDS)
            finally:
                task.cancel()  # the caller went away: so does the publishing
        package = _outcome(task.result())
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
        async for status in _paced(ticket):
            if not status.state.final:
                yield transfer_message(known, status)
        if ticket.package is None:
            yield transfer_message(known, ticket.status)
            raise ticket.error or NotFoundError(f"the transfer of {known.manifest.reference} was stopped")
        if destination is not None:
            message = transfer_message(known, ticket.status)
            message.state, message.reason, message.path = "unpacking", f"to {destination}", str(destination)
            yield message
            await self._agent.unpack(ticket.package, destination, lambda *_: None)
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
            yield pb.Transfer(name=request.name, version=request.version, state="waiting", reason=reason)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PULSE_SECONDS):
                    await changed.wait()
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
        known = {manifest.digest: manifest for manifest in self._agent.view.manifests()}
        for summary in self._agent.facts.held():
            if summary.manifest_digest not in known:
                manifest = summary.manifest
                with contextlib.suppress(PeatError):
                    known[summary.manifest_digest] = self._agent.resolve_digest(
                        summary.manifest_digest, manifest.name, manifest.version
                    )
        return pb.ListPackagesResponse(packages=[self._package(manifest) for manifest in known.values()])

    def _package(self, known: KnownManifest) -> pb.Package:
        manifest, agent = known.manifest, self._agent
        holders = [holding.agent_id for holding in agent.view.holders(known.digest) if holding.complete]
        held = 0
        if agent.facts.summary(known.digest) is not None:
            holders.append(agent.agent_id)
            held = manifest.total_bytes
        elif (status := agent.status_of(known.digest)) is not None and status.total:
            held = manifest.total_bytes * status.verified // status.total
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


async def _paced(ticket: Ticket) -> AsyncIterator[TransferStatus]:
    """A ticket's status, neither more nor less often than a person wants to see it, to the end."""
    while True:
        changed = ticket.changes.next()
        yield ticket.status if ticket.ended else ticket.transfer.status()
        if ticket.ended:
            return
        await asyncio.sleep(BREATH_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PULSE_SECONDS):
                await changed.wait()


async def _catching(work: Any) -> StoredPackage | Exception:
    """The result of `work`, its error as a value: in a TaskGroup it would come out wrapped."""
    try:
        package: StoredPackage = await work
    except Exception as error:
        return error
    return package


def _outcome(result: StoredPackage | Exception) -> StoredPackage:
    if isinstance(result, Exception):
        raise result
    return result


def _prepare(destination: Path) -> None:
    """Check that the content can go to `destination`; an empty folder there makes way."""
    if not destination.is_absolute():
        raise InvalidInputError(f"destination {str(destination)!r} must be an absolute path")
    if destination.is_dir() and not destination.is_symlink():
        with contextlib.suppress(OSError):
            destination.rmdir()
    require_absent(destination)
