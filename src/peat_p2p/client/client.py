"""What a user of the SDK imports: one sidecar, asynchronously.

Owns the calls that mean something in a fleet (heartbeats, holdings, deployments, commands) on top of the fixed API.
Rule: one call reads a collection, however many documents it has. Must not know pages of what documents mean: that is in
`fleet/`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from peat_p2p.client.calls import SidecarCalls, parse_document
from peat_p2p.client.channel import DEFAULT_TIMEOUT
from peat_p2p.client.model import Deleted, Event, SnapshotComplete, Upserted
from peat_p2p.client.queries import to_proto
from peat_p2p.client.subscription import follow, read_once
from peat_p2p.documents.query import Query
from peat_p2p.fleet import ids
from peat_p2p.fleet.commands import Command, Receipt
from peat_p2p.fleet.heartbeat import Heartbeat
from peat_p2p.fleet.holdings import Deployment, Holding
from peat_p2p.fleet.view import AgentState, CommandState, FleetView, Holder
from peat_p2p.wire.errors import UnsupportedCallError
from peat_p2p.wire.gen.peat.node.v1 import node_pb as node

# A sidecar that lacks ReadCollection may lack the snapshot marker too: silence this long after the last document
# that ListDocuments named is taken for the end.
QUIET_SECONDS = 2.0


class SidecarClient(SidecarCalls):
    """A sidecar, and the fleet as it sees it. Use as an async context manager; every call raises PeatError."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        super().__init__(address, token=token, tls=tls, timeout=timeout)
        self._lacks_read_collection = False
        self._said: dict[tuple[str, str], frozenset[str]] = {}  # what this client has filled, by document

    async def read_collection(self, collection: str, prefix: str = "") -> dict[str, dict[str, Any]]:
        """Every document of a collection whose id begins with `prefix`, by id."""
        if not self._lacks_read_collection:
            request = node.ReadCollectionRequest(collection=collection, id_prefix=prefix)
            try:
                response = await self._channel.read(lambda: self._node.read_collection(request))
            except UnsupportedCallError:
                self._lacks_read_collection = True
            else:
                return {it.doc_id: parse_document(it.json_data) for it in response.documents}
        return await self._read_by_snapshot(collection, prefix)

    def subscribe(self, collections: Sequence[str] = (), query: Query | None = None) -> AsyncGenerator[Event, None]:
        """What is there and what changes, for ever: Upserted and Deleted, SnapshotComplete once all that was there has
        been told, and Gap when something may have been missed and the telling begins anew.

        Loses and finds the sidecar by itself. Leave it with `contextlib.aclosing`.
        """
        wire = None if query is None else to_proto(query)
        return follow(self._channel, self._sidecar, collections, wire)

    async def heartbeat(self, beat: Heartbeat) -> None:
        """Say that an agent is there and how it does. `last_seen` 0 stands for now.

        Empty fields are left as they are in the document, where somebody else may have filled them, unless this client
        filled them before. This holds for deployments and holdings too.
        """
        beat = beat if beat.last_seen else replace(beat, last_seen=int(time.time()))
        await self._report(ids.PLATFORMS, beat.agent_id, beat.to_fields())

    async def report_deployment(self, deployment: Deployment) -> None:
        """Say what an agent runs of a package. `last_seen` 0 stands for now."""
        deployment = deployment if deployment.last_seen else replace(deployment, last_seen=int(time.time()))
        await self._report(ids.DEPLOYMENTS, deployment.doc_id, deployment.to_fields())

    async def retire_deployment(self, agent_id: str, package: str) -> None:
        """Say that an agent no longer runs a package."""
        await self._retire(ids.DEPLOYMENTS, ids.deployment_id(agent_id, package))

    async def report_holding(self, holding: Holding) -> None:
        """Say what an agent has of a package. `last_seen` 0 stands for now."""
        holding = holding if holding.last_seen else replace(holding, last_seen=int(time.time()))
        await self._report(ids.PACKAGES, holding.doc_id, holding.to_fields())

    async def retire_holding(self, agent_id: str, package: str, version: str, arch: str) -> None:
        """Say that an agent no longer has a package."""
        doc_id = ids.holding_id(agent_id, ids.reference_of(package, version), arch)
        await self._retire(ids.PACKAGES, doc_id)

    async def report_receipt(self, receipt: Receipt) -> None:
        """Say what became of a command at an agent."""
        await self.put_document(ids.RECEIPTS, receipt.doc_id, receipt.to_fields())

    async def fleet(self) -> list[AgentState]:
        """Every agent that ever sent a heartbeat, and whether it is alive."""
        return (await self._view(ids.PLATFORMS)).agents(time.time())

    async def deployments(self, agent_id: str | None = None, package: str | None = None) -> list[Deployment]:
        """What agents run."""
        prefix = f"{agent_id}:" if agent_id else ""
        return (await self._view(ids.DEPLOYMENTS, prefix=prefix)).deployments(agent_id, package)

    async def holdings(self, agent_id: str | None = None) -> list[Holding]:
        """What agents have."""
        prefix = f"{agent_id}:" if agent_id else ""
        return (await self._view(ids.PACKAGES, prefix=prefix)).holdings(agent_id)

    async def holders(self, package: str, version: str | None = None, arch: str | None = None) -> list[Holder]:
        """Who has a package: complete ones first, alive before lost."""
        view = await self._view(ids.PACKAGES, ids.PLATFORMS)
        return view.holders(package, time.time(), version=version, arch=arch)

    async def commands(self, for_agent: str, site: str = "") -> list[Command]:
        """What an agent is still to do, oldest first: addressed to it (or to its `site`), not expired, not done.

        Their signatures are not checked here: open each with `fleet.commands.open_command` before acting on it.
        """
        view = await self._view(ids.COMMANDS, ids.RECEIPTS)
        return view.pending(for_agent, site, time.time())

    async def command_states(self) -> list[CommandState]:
        """Every command with what its addressees said, oldest first."""
        return (await self._view(ids.COMMANDS, ids.RECEIPTS, ids.PLATFORMS)).commands()

    async def _report(self, collection: str, doc_id: str, fields: Mapping[str, object]) -> None:
        filled = {key for key, value in fields.items() if not _is_empty(value)}
        said = self._said.get((collection, doc_id), frozenset())
        await self.put_document(collection, doc_id, {key: fields[key] for key in fields if key in filled | said})
        self._said[collection, doc_id] = said | filled

    async def _retire(self, collection: str, doc_id: str) -> None:
        await self.delete_document(collection, doc_id)
        self._said.pop((collection, doc_id), None)

    async def _view(self, *collections: str, prefix: str = "") -> FleetView:
        documents = {name: await self.read_collection(name, prefix) for name in collections}
        return FleetView.of(documents, time.time())

    async def _read_by_snapshot(self, collection: str, prefix: str) -> dict[str, dict[str, Any]]:
        missing = set(await self.list_documents(collection))
        found: dict[str, dict[str, Any]] = {}
        if not missing:
            return found
        stream = read_once(self._channel, self._sidecar, [collection], None)
        # The timeout also ends the wait for a document that was deleted since it was listed.
        with contextlib.suppress(TimeoutError):
            async with contextlib.aclosing(stream), asyncio.timeout(QUIET_SECONDS) as quiet:
                loop = asyncio.get_running_loop()
                async for event in stream:
                    quiet.reschedule(loop.time() + QUIET_SECONDS)
                    match event:
                        case Upserted(_, doc_id, _, document):
                            found[doc_id] = dict(document)
                            missing.discard(doc_id)
                        case Deleted(_, doc_id):
                            found.pop(doc_id, None)
                            missing.discard(doc_id)
                        case SnapshotComplete():
                            missing.clear()
                    if not missing:
                        break
        return {doc_id: found[doc_id] for doc_id in sorted(found) if doc_id.startswith(prefix)}


def _is_empty(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_is_empty(item) for item in value.values())
    return not value
