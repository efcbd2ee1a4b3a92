"""The SDK for programs without asyncio.

Owns a thread with an event loop on which a SidecarClient lives; each method runs the asynchronous one of the same name
there and waits. Rule: an exception comes out as it was raised, and leaving the `with` leaves no thread behind.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ssl
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from peat_p2p.client.calls import JsonObject
from peat_p2p.client.channel import DEFAULT_TIMEOUT
from peat_p2p.client.client import SidecarClient
from peat_p2p.client.model import Cell, Event, Link, NodeInfo, Peer, Platform, Status, SyncStats, Track
from peat_p2p.core.errors import UnavailableError
from peat_p2p.documents.query import Query
from peat_p2p.fleet.commands import Command, Receipt
from peat_p2p.fleet.heartbeat import Heartbeat
from peat_p2p.fleet.holdings import Deployment, Holding
from peat_p2p.fleet.view import AgentState, CommandState, Holder

T = TypeVar("T")


class SyncSidecarClient:
    """SidecarClient with blocking calls, for one thread or many. Use as a context manager."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self.address = address
        self._client = SidecarClient(address, token=token, tls=tls, timeout=timeout)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> Self:
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name=f"peat-sdk {self.address}", daemon=True
        )
        self._thread.start()
        started.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread, loop, stop = self._thread, self._loop, self._stop
        self._thread = self._loop = self._stop = None
        if thread is not None and loop is not None and stop is not None:
            loop.call_soon_threadsafe(stop.set)
            thread.join()

    async def _serve(self, started: concurrent.futures.Future[None]) -> None:
        try:
            async with self._client:
                self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
                stop = self._stop
                started.set_result(None)
                await stop.wait()
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            call.close()
            raise UnavailableError(f"the client of {self.address} is closed; use it inside its `with`")
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise UnavailableError(f"the client of {self.address} was closed during the call") from None
        except BaseException:
            # KeyboardInterrupt: the caller is gone, so the call must not go on behind its back.
            future.cancel()
            raise

    def get_status(self) -> Status:
        """Who the sidecar is and how it does."""
        return self._run(self._client.get_status())

    def connect_peer(self, endpoint_id: str, addresses: Sequence[str] = (), relay_url: str = "") -> None:
        """Tell the sidecar of a peer; it keeps trying to reach it."""
        self._run(self._client.connect_peer(endpoint_id, addresses, relay_url))

    def disconnect_peer(self, endpoint_id: str) -> None:
        """Make the sidecar drop a peer and forget it."""
        self._run(self._client.disconnect_peer(endpoint_id))

    def list_peers(self) -> list[Peer]:
        """The peers the sidecar knows."""
        return self._run(self._client.list_peers())

    def put_document(self, collection: str, doc_id: str, document: JsonObject | str) -> None:
        """Merge a JSON object (or its text) into a document, key by key. Durable on return."""
        self._run(self._client.put_document(collection, doc_id, document))

    def get_document(self, collection: str, doc_id: str) -> dict[str, Any] | None:
        """A document, or None if there is none."""
        return self._run(self._client.get_document(collection, doc_id))

    def get_document_text(self, collection: str, doc_id: str) -> str | None:
        """A document's JSON text with its numbers as they were written, or None if there is none."""
        return self._run(self._client.get_document_text(collection, doc_id))

    def delete_document(self, collection: str, doc_id: str) -> None:
        """Delete a document, here and (as the mesh goes) everywhere."""
        self._run(self._client.delete_document(collection, doc_id))

    def list_documents(self, collection: str) -> list[str]:
        """The ids of a collection's documents."""
        return self._run(self._client.list_documents(collection))

    def read_collection(self, collection: str, prefix: str = "") -> dict[str, dict[str, Any]]:
        """Every document of a collection whose id begins with `prefix`, by id."""
        return self._run(self._client.read_collection(collection, prefix))

    def put_platform(self, platform: Platform) -> None:
        """Write a platform; other keys of its document stay."""
        self._run(self._client.put_platform(platform))

    def get_platforms(self) -> list[Platform]:
        """Every document of `platforms`, as far as it reads as a platform."""
        return self._run(self._client.get_platforms())

    def put_cell(self, cell: Cell) -> None:
        """Write a cell."""
        self._run(self._client.put_cell(cell))

    def get_cells(self) -> list[Cell]:
        """Every cell."""
        return self._run(self._client.get_cells())

    def put_track(self, track: Track) -> None:
        """Write a track."""
        self._run(self._client.put_track(track))

    def get_tracks(self) -> list[Track]:
        """Every track."""
        return self._run(self._client.get_tracks())

    def put_command(self, command: Command) -> None:
        """Write a command; the sidecar signs it."""
        self._run(self._client.put_command(command))

    def get_commands(self) -> list[Command]:
        """Every command, whoever it is for. Nothing here is proved."""
        return self._run(self._client.get_commands())

    def start_sync(self) -> None:
        """Let the mesh exchange documents."""
        self._run(self._client.start_sync())

    def stop_sync(self) -> None:
        """Stop the mesh from exchanging documents until `start_sync`."""
        self._run(self._client.stop_sync())

    def get_sync_stats(self) -> SyncStats:
        """What the mesh has moved."""
        return self._run(self._client.get_sync_stats())

    def get_node(self) -> NodeInfo:
        """Who the sidecar is, by its certificate and configuration."""
        return self._run(self._client.get_node())

    def list_links(self) -> list[Link]:
        """The links of the mesh and why each is in its state."""
        return self._run(self._client.list_links())

    def subscribe(self, collections: Sequence[str] = (), query: Query | None = None) -> Iterator[Event]:
        """What is there and what changes, for ever; see SidecarClient.subscribe. Waits in `next` for what comes."""
        events = self._client.subscribe(collections, query)
        try:
            while True:
                yield self._run(_next(events))
        finally:
            if self._loop is not None:
                self._run(events.aclose())

    def heartbeat(self, beat: Heartbeat) -> None:
        """Say that an agent is there and how it does. `last_seen` 0 stands for now."""
        self._run(self._client.heartbeat(beat))

    def report_deployment(self, deployment: Deployment) -> None:
        """Say what an agent runs of a package. `last_seen` 0 stands for now."""
        self._run(self._client.report_deployment(deployment))

    def retire_deployment(self, agent_id: str, package: str) -> None:
        """Say that an agent no longer runs a package."""
        self._run(self._client.retire_deployment(agent_id, package))

    def report_holding(self, holding: Holding) -> None:
        """Say what an agent has of a package. `last_seen` 0 stands for now."""
        self._run(self._client.report_holding(holding))

    def retire_holding(self, agent_id: str, package: str, version: str, arch: str) -> None:
        """Say that an agent no longer has a package."""
        self._run(self._client.retire_holding(agent_id, package, version, arch))

    def report_receipt(self, receipt: Receipt) -> None:
        """Say what became of a command at an agent."""
        self._run(self._client.report_receipt(receipt))

    def fleet(self) -> list[AgentState]:
        """Every agent that ever sent a heartbeat, and whether it is alive."""
        return self._run(self._client.fleet())

    def deployments(self, agent_id: str | None = None, package: str | None = None) -> list[Deployment]:
        """What agents run."""
        return self._run(self._client.deployments(agent_id, package))

    def holdings(self, agent_id: str | None = None) -> list[Holding]:
        """What agents have."""
        return self._run(self._client.holdings(agent_id))

    def holders(self, package: str, version: str | None = None, arch: str | None = None) -> list[Holder]:
        """Who has a package: complete ones first, alive before lost."""
        return self._run(self._client.holders(package, version, arch))

    def commands(self, for_agent: str, site: str = "") -> list[Command]:
        """What an agent is still to do, oldest first. Signatures are not checked here."""
        return self._run(self._client.commands(for_agent, site))

    def command_states(self) -> list[CommandState]:
        """Every command with what its addressees said, oldest first."""
        return self._run(self._client.command_states())


async def _next(events: AsyncGenerator[Event, None]) -> Event:
    return await anext(events)
