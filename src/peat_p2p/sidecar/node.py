"""What a sidecar offers beyond the fixed API: `peat.node.v1.PeatNode`.

Owns reading a collection in one call, and facts about the node and its links for a person.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from connectrpc.request import RequestContext

from peat_p2p import __version__
from peat_p2p.core.config import NodeConfig
from peat_p2p.documents.replica import Replica
from peat_p2p.mesh.service import Mesh
from peat_p2p.sidecar.checks import check_collection
from peat_p2p.wire.gen.peat.node.v1 import node_pb as pb
from peat_p2p.wire.gen.peat.node.v1.node_connect import PeatNode

Context: TypeAlias = RequestContext[Any, Any]


class NodeService(PeatNode):
    """The calls of one sidecar that are ours."""

    def __init__(self, replica: Replica, mesh: Mesh, config: NodeConfig) -> None:
        self._replica = replica
        self._mesh = mesh
        self._config = config

    async def read_collection(self, request: pb.ReadCollectionRequest, ctx: Context, /) -> pb.ReadCollectionResponse:
        """Every document of a collection, by id."""
        documents = self._replica.read(check_collection(request.collection), request.id_prefix)
        return pb.ReadCollectionResponse(
            documents=[
                pb.StoredDocument(doc_id=it.doc_id, json_data=it.json)
                for it in sorted(documents, key=lambda it: it.doc_id)
            ]
        )

    async def get_node(self, request: pb.GetNodeRequest, ctx: Context, /) -> pb.GetNodeResponse:
        """Who this is."""
        node = self._replica.node
        return pb.GetNodeResponse(
            node_id=node.node_id,
            endpoint_id=node.endpoint_id,
            formation=node.formation,
            roles=sorted(node.roles),
            site=self._config.site,
            version=__version__,
            mesh_address=str(self._mesh.address),
            labels=dict(self._config.labels),
        )

    async def list_links(self, request: pb.ListLinksRequest, ctx: Context, /) -> pb.ListLinksResponse:
        """Every peer, how the link to it does, and why."""
        return pb.ListLinksResponse(
            links=[
                pb.Link(
                    endpoint_id=peer.endpoint_id,
                    node_id=peer.node_id,
                    address=next(iter(peer.addresses), ""),
                    site=peer.site,
                    state=peer.state,
                    reason=peer.reason,
                    learned=", ".join(peer.learned),
                    bytes_sent=peer.bytes_sent,
                    bytes_received=peer.bytes_received,
                    round_trip_ms=(peer.rtt or 0.0) * 1000,
                )
                for peer in self._mesh.peers()
            ]
        )
