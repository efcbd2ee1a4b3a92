"""The sidecar's fixed API, method by method.

Owns the 20 calls of `peat.sidecar.v1.PeatSidecar` (Subscribe is in `subscription.py`) and those of
`peat.node.v1.PeatNode`, from and to plain values.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import Any, TypeVar

from protobuf import Message

from peat_p2p.client.channel import DEFAULT_TIMEOUT, ChannelClient
from peat_p2p.client.model import (
    Cell,
    Link,
    NodeInfo,
    Peer,
    Platform,
    Status,
    SyncStats,
    Track,
)
from peat_p2p.core.errors import InvalidInputError
from peat_p2p.fleet.commands import Command, CommandStatus
from peat_p2p.wire.gen.peat.node.v1 import node_pb as node
from peat_p2p.wire.gen.peat.node.v1.node_connect import PeatNodeClient
from peat_p2p.wire.gen.peat.sidecar.v1 import sidecar_pb as pb
from peat_p2p.wire.gen.peat.sidecar.v1.sidecar_connect import PeatSidecarClient

JsonObject = Mapping[str, object]
V = TypeVar("V")
M = TypeVar("M", bound=Message[Any])


class SidecarCalls(ChannelClient):
    """The calls of one sidecar."""

    _WHAT = "sidecar"

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        super().__init__(address, token=token, tls=tls, timeout=timeout)
        self._sidecar = self._channel.client(PeatSidecarClient)
        self._node = self._channel.client(PeatNodeClient)

    async def get_status(self) -> Status:
        """Who the sidecar is and how it does."""
        it = await self._channel.read(lambda: self._sidecar.get_status(pb.GetStatusRequest()))
        phase = it.phase.name.lower() if isinstance(it.phase, pb.NodePhase) else "unspecified"
        return Status(it.node_id, it.endpoint_addr, it.sync_active, it.connected_peers, phase)

    async def connect_peer(self, endpoint_id: str, addresses: Sequence[str] = (), relay_url: str = "") -> None:
        """Tell the sidecar of a peer; it keeps trying to reach it."""
        request = pb.ConnectPeerRequest(endpoint_id=endpoint_id, addresses=list(addresses), relay_url=relay_url)
        await self._channel.write(lambda: self._sidecar.connect_peer(request))

    async def disconnect_peer(self, endpoint_id: str) -> None:
        """Make the sidecar drop a peer and forget it."""
        request = pb.DisconnectPeerRequest(endpoint_id=endpoint_id)
        await self._channel.write(lambda: self._sidecar.disconnect_peer(request))

    async def list_peers(self) -> list[Peer]:
        """The peers the sidecar knows."""
        response = await self._channel.read(lambda: self._sidecar.list_peers(pb.ListPeersRequest()))
        return [Peer(peer.endpoint_id, tuple(peer.addresses), peer.connected) for peer in response.peers]

    async def put_document(self, collection: str, doc_id: str, document: JsonObject | str) -> None:
        """Merge a JSON object (or its text) into a document, key by key. Durable on return."""
        text = document if isinstance(document, str) else _dump(document)
        request = pb.PutDocumentRequest(collection=collection, doc_id=doc_id, json_data=text)
        await self._channel.write(lambda: self._sidecar.put_document(request))

    async def get_document(self, collection: str, doc_id: str) -> dict[str, Any] | None:
        """A document, or None if there is none."""
        text = await self.get_document_text(collection, doc_id)
        return None if text is None else parse_document(text)

    async def get_document_text(self, collection: str, doc_id: str) -> str | None:
        """A document's JSON text with its numbers as they were written, or None if there is none."""
        request = pb.GetDocumentRequest(collection=collection, doc_id=doc_id)
        response = await self._channel.read(lambda: self._sidecar.get_document(request))
        return response.json_data if response.has_field("json_data") else None

    async def delete_document(self, collection: str, doc_id: str) -> None:
        """Delete a document, here and (as the mesh goes) everywhere."""
        request = pb.DeleteDocumentRequest(collection=collection, doc_id=doc_id)
        await self._channel.write(lambda: self._sidecar.delete_document(request))

    async def list_documents(self, collection: str) -> list[str]:
        """The ids of a collection's documents."""
        request = pb.ListDocumentsRequest(collection=collection)
        response = await self._channel.read(lambda: self._sidecar.list_documents(request))
        return list(response.doc_ids)

    async def put_platform(self, platform: Platform) -> None:
        """Write a platform; other keys of its document stay."""
        request = pb.PutPlatformRequest(platform=_to_message(pb.Platform, platform))
        await self._channel.write(lambda: self._sidecar.put_platform(request))

    async def get_platforms(self) -> list[Platform]:
        """Every document of `platforms`, as far as it reads as a platform."""
        response = await self._channel.read(lambda: self._sidecar.get_platforms(pb.GetPlatformsRequest()))
        return [_from_message(Platform, message) for message in response.platforms]

    async def put_cell(self, cell: Cell) -> None:
        """Write a cell."""
        request = pb.PutCellRequest(cell=_to_message(pb.Cell, cell))
        await self._channel.write(lambda: self._sidecar.put_cell(request))

    async def get_cells(self) -> list[Cell]:
        """Every cell."""
        response = await self._channel.read(lambda: self._sidecar.get_cells(pb.GetCellsRequest()))
        return [_from_message(Cell, message) for message in response.cells]

    async def put_track(self, track: Track) -> None:
        """Write a track."""
        request = pb.PutTrackRequest(track=_to_message(pb.Track, track))
        await self._channel.write(lambda: self._sidecar.put_track(request))

    async def get_tracks(self) -> list[Track]:
        """Every track."""
        response = await self._channel.read(lambda: self._sidecar.get_tracks(pb.GetTracksRequest()))
        return [_from_message(Track, message) for message in response.tracks]

    async def put_command(self, command: Command) -> None:
        """Write a command; the sidecar signs it."""
        request = pb.PutCommandRequest(command=_to_message(pb.Command, command))
        await self._channel.write(lambda: self._sidecar.put_command(request))

    async def get_commands(self) -> list[Command]:
        """Every command, whoever it is for. The typed call carries no signature: nothing here is proved."""
        response = await self._channel.read(lambda: self._sidecar.get_commands(pb.GetCommandsRequest()))
        return [
            Command(**{**_values(message), "status": CommandStatus.of(int(message.status))})
            for message in response.commands
        ]

    async def start_sync(self) -> None:
        """Let the mesh exchange documents."""
        await self._channel.write(lambda: self._sidecar.start_sync(pb.StartSyncRequest()))

    async def stop_sync(self) -> None:
        """Stop the mesh from exchanging documents until `start_sync`."""
        await self._channel.write(lambda: self._sidecar.stop_sync(pb.StopSyncRequest()))

    async def get_sync_stats(self) -> SyncStats:
        """What the mesh has moved."""
        it = await self._channel.read(lambda: self._sidecar.get_sync_stats(pb.GetSyncStatsRequest()))
        return SyncStats(it.sync_active, it.connected_peers, it.bytes_sent, it.bytes_received)

    async def get_node(self) -> NodeInfo:
        """Who the sidecar is, by its certificate and configuration."""
        it = await self._channel.read(lambda: self._node.get_node(node.GetNodeRequest()))
        return NodeInfo(
            it.node_id,
            it.endpoint_id,
            it.formation,
            tuple(it.roles),
            it.site,
            it.version,
            it.mesh_address,
            MappingProxyType(dict(it.labels)),
        )

    async def list_links(self) -> list[Link]:
        """The links of the mesh and why each is in its state."""
        response = await self._channel.read(lambda: self._node.list_links(node.ListLinksRequest()))
        return [_from_message(Link, message) for message in response.links]


def parse_document(text: str) -> dict[str, Any]:
    """A stored document. What a sidecar stores is always a JSON object; anything else reads as an empty one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _dump(document: JsonObject) -> str:
    try:
        return json.dumps(dict(document), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"the document cannot be written as JSON: {error}") from None


def _to_message(kind: type[M], value: object) -> M:
    fields = {field.name: getattr(value, field.name) for field in kind.desc().fields}
    return kind(
        **{key: list(item) if isinstance(item, tuple) else item for key, item in fields.items() if item is not None}
    )


def _from_message(kind: type[V], message: Message[Any]) -> V:
    return kind(**_values(message))


def _values(message: Message[Any]) -> dict[str, Any]:
    """The message's fields as plain values; an optional one that is absent is left out."""
    fields: dict[str, Any] = {}
    for field in message.desc().fields:
        if field.presence == _OPTIONAL and not message.has_field(field.name):
            continue
        value = getattr(message, field.name)
        if isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, Enum):
            value = value.value
        fields[field.name] = value
    return fields


_OPTIONAL = 1  # a field descriptor's `presence` of proto3 `optional`
