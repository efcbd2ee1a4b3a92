"""The sidecar's public API: `peat.sidecar.v1.PeatSidecar`.

Owns the 20 methods, each a few lines over the replica and the mesh. Handlers raise PeatError; the interceptor turns it
into a code. Must not know how it is served.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from connectrpc.request import RequestContext
from protobuf import Message

from peat_p2p.client.queries import from_proto
from peat_p2p.core.address import HostPort, check_endpoint_id
from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import InvalidInputError
from peat_p2p.documents.jsontext import split_object
from peat_p2p.documents.replica import Replica
from peat_p2p.mesh.service import Mesh
from peat_p2p.sidecar import policy
from peat_p2p.sidecar.checks import check_collection, check_id
from peat_p2p.sidecar.feed import Feeds
from peat_p2p.sidecar.sealing import SIGNED, signature_fields
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.wire.documents import COLLECTIONS, from_json, to_fields
from peat_p2p.wire.gen.peat.sidecar.v1 import sidecar_pb as pb
from peat_p2p.wire.gen.peat.sidecar.v1.sidecar_connect import PeatSidecar

Context: TypeAlias = RequestContext[Any, Any]
M = TypeVar("M", bound=Message[Any])

# A heartbeat fills these too. The wire cannot tell an empty text from one that was not set, so an empty one in a put
# leaves what is there.
_FILLED_BY_HEARTBEATS: dict[type[Message[Any]], tuple[str, ...]] = {pb.Platform: ("platform_type", "name")}

# A long read gives way to other calls after so many documents.
BREATHER = 500


class SidecarService(PeatSidecar):
    """The calls of one sidecar. `phase` is asked at each GetStatus."""

    def __init__(
        self,
        replica: Replica,
        mesh: Mesh,
        credentials: NodeCredentials,
        feeds: Feeds,
        clock: Clock,
        phase: Callable[[], pb.NodePhase],
    ) -> None:
        self._replica = replica
        self._mesh = mesh
        self._credentials = credentials
        self._feeds = feeds
        self._clock = clock
        self._phase = phase

    async def get_status(self, request: pb.GetStatusRequest, ctx: Context, /) -> pb.GetStatusResponse:
        """Who this is and how it does."""
        return pb.GetStatusResponse(
            node_id=self._replica.node.node_id,
            endpoint_addr=self._mesh.endpoint_addr,
            sync_active=self._mesh.sync_active,
            connected_peers=self._connected(),
            phase=self._phase(),
        )

    async def connect_peer(self, request: pb.ConnectPeerRequest, ctx: Context, /) -> pb.ConnectPeerResponse:
        """Learn of a peer."""
        if request.relay_url and not request.addresses:
            raise InvalidInputError("this mesh has no relays: give the peer's addresses as HOST:PORT")
        addresses = [str(HostPort.parse(address)) for address in request.addresses]
        self._mesh.connect_peer(check_endpoint_id(request.endpoint_id), addresses)
        return pb.ConnectPeerResponse()

    async def disconnect_peer(self, request: pb.DisconnectPeerRequest, ctx: Context, /) -> pb.DisconnectPeerResponse:
        """Forget a peer."""
        self._mesh.disconnect_peer(check_endpoint_id(request.endpoint_id))
        return pb.DisconnectPeerResponse()

    async def list_peers(self, request: pb.ListPeersRequest, ctx: Context, /) -> pb.ListPeersResponse:
        """Every peer that is known."""
        return pb.ListPeersResponse(
            peers=[
                pb.PeerInfo(endpoint_id=peer.endpoint_id, addresses=list(peer.addresses), connected=peer.connected)
                for peer in self._mesh.peers()
            ]
        )

    async def put_document(self, request: pb.PutDocumentRequest, ctx: Context, /) -> pb.PutDocumentResponse:
        """Merge a JSON object into a document."""
        collection, doc_id = check_collection(request.collection), check_id(request.doc_id)
        await self._put_fields(collection, doc_id, split_object(request.json_data))
        return pb.PutDocumentResponse()

    async def get_document(self, request: pb.GetDocumentRequest, ctx: Context, /) -> pb.GetDocumentResponse:
        """One document as it is stored."""
        document = self._replica.get(check_collection(request.collection), check_id(request.doc_id))
        return pb.GetDocumentResponse() if document is None else pb.GetDocumentResponse(json_data=document.json)

    async def delete_document(self, request: pb.DeleteDocumentRequest, ctx: Context, /) -> pb.DeleteDocumentResponse:
        """Delete a document; that there was none is no error."""
        collection, doc_id = check_collection(request.collection), check_id(request.doc_id)
        policy.require(self._replica.node, collection, doc_id, (), deletes=True)
        await self._replica.delete(collection, doc_id)
        return pb.DeleteDocumentResponse()

    async def list_documents(self, request: pb.ListDocumentsRequest, ctx: Context, /) -> pb.ListDocumentsResponse:
        """The ids of a collection."""
        return pb.ListDocumentsResponse(doc_ids=list(self._replica.ids(check_collection(request.collection))))

    async def put_platform(self, request: pb.PutPlatformRequest, ctx: Context, /) -> pb.PutPlatformResponse:
        """Write a platform."""
        await self._put(request.platform, pb.Platform)
        return pb.PutPlatformResponse()

    async def get_platforms(self, request: pb.GetPlatformsRequest, ctx: Context, /) -> pb.GetPlatformsResponse:
        """Every platform."""
        return pb.GetPlatformsResponse(platforms=await self._read(pb.Platform))

    async def put_cell(self, request: pb.PutCellRequest, ctx: Context, /) -> pb.PutCellResponse:
        """Write a cell."""
        await self._put(request.cell, pb.Cell)
        return pb.PutCellResponse()

    async def get_cells(self, request: pb.GetCellsRequest, ctx: Context, /) -> pb.GetCellsResponse:
        """Every cell."""
        return pb.GetCellsResponse(cells=await self._read(pb.Cell))

    async def put_track(self, request: pb.PutTrackRequest, ctx: Context, /) -> pb.PutTrackResponse:
        """Write a track."""
        await self._put(request.track, pb.Track)
        return pb.PutTrackResponse()

    async def get_tracks(self, request: pb.GetTracksRequest, ctx: Context, /) -> pb.GetTracksResponse:
        """Every track."""
        return pb.GetTracksResponse(tracks=await self._read(pb.Track))

    async def put_command(self, request: pb.PutCommandRequest, ctx: Context, /) -> pb.PutCommandResponse:
        """Write a command and sign it."""
        await self._put(request.command, pb.Command)
        return pb.PutCommandResponse()

    async def get_commands(self, request: pb.GetCommandsRequest, ctx: Context, /) -> pb.GetCommandsResponse:
        """Every command."""
        return pb.GetCommandsResponse(commands=await self._read(pb.Command))

    def subscribe(self, request: pb.SubscribeRequest, ctx: Context, /) -> AsyncIterator[pb.DocumentChange]:
        """What is there, a marker, and then what changes."""
        collections = [check_collection(name) for name in request.collections]
        query = None if request.query is None else from_proto(request.query)
        return self._feeds.stream(collections, query)

    async def start_sync(self, request: pb.StartSyncRequest, ctx: Context, /) -> pb.StartSyncResponse:
        """Let the mesh exchange documents."""
        await self._mesh.start_sync()
        return pb.StartSyncResponse()

    async def stop_sync(self, request: pb.StopSyncRequest, ctx: Context, /) -> pb.StopSyncResponse:
        """Stop the mesh from exchanging documents."""
        await self._mesh.stop_sync()
        return pb.StopSyncResponse()

    async def get_sync_stats(self, request: pb.GetSyncStatsRequest, ctx: Context, /) -> pb.GetSyncStatsResponse:
        """What the mesh has moved."""
        stats = self._mesh.stats
        return pb.GetSyncStatsResponse(
            sync_active=self._mesh.sync_active,
            connected_peers=self._connected(),
            bytes_sent=stats.bytes_sent,
            bytes_received=stats.bytes_received,
        )

    def _connected(self) -> int:
        return sum(peer.connected for peer in self._mesh.peers())

    async def _put(self, message: Message[Any] | None, kind: type[Message[Any]]) -> None:
        what = kind.__name__.lower()
        if message is None:
            raise InvalidInputError(f"the request holds no {what}")
        fields = to_fields(message)
        doc_id = check_id(json.loads(fields["id"]), what)
        collection = COLLECTIONS[kind]
        silent = {key for key in _FILLED_BY_HEARTBEATS.get(kind, ()) if fields[key] == '""'}
        if silent:
            present = self._replica.get(collection, doc_id)
            there = set() if present is None else split_object(present.json).keys()
            fields = {key: text for key, text in fields.items() if key not in silent & there}
        await self._put_fields(collection, doc_id, fields)

    async def _put_fields(self, collection: str, doc_id: str, fields: Mapping[str, str]) -> None:
        if collection in SIGNED:
            present = self._replica.get(collection, doc_id)
            text = None if present is None else present.json
            now = self._clock.wall()
            added = signature_fields(self._credentials, collection, doc_id, text, _parsed(fields), now)
            fields = {**fields, **added}
        policy.require(self._replica.node, collection, doc_id, fields)
        await self._replica.put_fields(collection, doc_id, fields)

    async def _read(self, kind: type[M]) -> list[M]:
        messages: list[M] = []
        for document in self._replica.read(COLLECTIONS[kind]):
            messages.append(from_json(kind, document.doc_id, document.json))
            if len(messages) % BREATHER == 0:
                await asyncio.sleep(0)
        return messages


def _parsed(fields: Mapping[str, str]) -> dict[str, Any]:
    try:
        return {key: json.loads(text) for key, text in fields.items()}
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"what is signed must be plain JSON: {error}") from None
