import asyncio
import contextlib
import json
import re
import socket

import pytest
from aiohttp import web
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from peat_p2p.core.errors import InvalidInputError, UnavailableError
from peat_p2p.wire.asgi import make_runner, mount
from peat_p2p.wire.documents import COLLECTIONS, from_mapping, to_fields
from peat_p2p.wire.errors import ErrorInterceptor
from peat_p2p.wire.gen.peat.node.v1 import node_pb as node
from peat_p2p.wire.gen.peat.node.v1.node_connect import PeatNode, PeatNodeASGIApplication
from peat_p2p.wire.gen.peat.sidecar.v1 import sidecar_pb as pb
from peat_p2p.wire.gen.peat.sidecar.v1.sidecar_connect import PeatSidecar, PeatSidecarASGIApplication


class FakeSidecar(PeatSidecar):
    """Documents in a dict; the calls made are counted."""

    def __init__(self):
        self.documents = {}
        self.calls = []
        self.feeds = []
        self.failures = []  # errors to raise, one per call
        self.markers = True

    def count(self, name):
        self.calls.append(name)
        if self.failures:
            raise self.failures.pop(0)

    async def get_status(self, request, ctx):
        self.count("GetStatus")
        return pb.GetStatusResponse(node_id="n", endpoint_addr="e@h:1", sync_active=True, phase=pb.NodePhase.READY)

    async def put_document(self, request, ctx):
        self.count("PutDocument")
        if request.collection == "slow":
            await asyncio.sleep(60)
        key = (request.collection, request.doc_id)
        self.documents[key] = {**self.documents.get(key, {}), **json.loads(request.json_data)}
        self.tell(*key)
        return pb.PutDocumentResponse()

    async def get_document(self, request, ctx):
        self.count("GetDocument")
        found = self.documents.get((request.collection, request.doc_id))
        return pb.GetDocumentResponse() if found is None else pb.GetDocumentResponse(json_data=json.dumps(found))

    async def delete_document(self, request, ctx):
        self.count("DeleteDocument")
        self.documents.pop((request.collection, request.doc_id), None)
        self.tell(request.collection, request.doc_id)
        return pb.DeleteDocumentResponse()

    async def list_documents(self, request, ctx):
        self.count("ListDocuments")
        return pb.ListDocumentsResponse(doc_ids=[i for c, i in self.documents if c == request.collection])

    async def connect_peer(self, request, ctx):
        self.count("ConnectPeer")
        self.peer = pb.PeerInfo(endpoint_id=request.endpoint_id, addresses=request.addresses, connected=True)
        return pb.ConnectPeerResponse()

    async def disconnect_peer(self, request, ctx):
        self.count("DisconnectPeer")
        self.peer = None
        return pb.DisconnectPeerResponse()

    async def list_peers(self, request, ctx):
        return pb.ListPeersResponse(peers=[self.peer] if self.peer else [])

    async def start_sync(self, request, ctx):
        self.count("StartSync")
        return pb.StartSyncResponse()

    async def stop_sync(self, request, ctx):
        self.count("StopSync")
        return pb.StopSyncResponse()

    async def get_sync_stats(self, request, ctx):
        return pb.GetSyncStatsResponse(sync_active=True, connected_peers=2, bytes_sent=2**40, bytes_received=1)

    async def subscribe(self, request, ctx):
        self.count("Subscribe")
        if request.collections == ["refused"]:
            raise InvalidInputError("no such collection")
        feed = asyncio.Queue()
        self.feeds.append(feed)
        try:
            for key in list(self.documents):
                if not request.collections or key[0] in request.collections:
                    yield self.change(*key)
            if self.markers:
                yield pb.DocumentChange(marker=pb.StreamMarker.SNAPSHOT_COMPLETE)
            while (change := await feed.get()) is not None:
                if isinstance(change, Exception):
                    raise change
                yield change
        finally:
            self.feeds.remove(feed)

    def change(self, collection, doc_id):
        found = self.documents.get((collection, doc_id))
        kind = pb.ChangeType.DELETE if found is None else pb.ChangeType.UPSERT
        text = {} if found is None else {"json_data": json.dumps(found)}
        return pb.DocumentChange(collection=collection, doc_id=doc_id, change_type=kind, **text)

    def tell(self, collection, doc_id):
        for feed in self.feeds:
            feed.put_nowait(self.change(collection, doc_id))


def _typed(kind):
    name = kind.__name__
    one, many = name.lower(), f"{name.lower()}s"

    async def put(self, request, ctx):
        message = getattr(request, one)
        self.documents[COLLECTIONS[kind], message.id] = {k: json.loads(v) for k, v in to_fields(message).items()}
        return getattr(pb, f"Put{name}Response")()

    async def get(self, request, ctx):
        found = [from_mapping(kind, i, d) for (c, i), d in self.documents.items() if c == COLLECTIONS[kind]]
        return getattr(pb, f"Get{name}sResponse")(**{many: found})

    setattr(FakeSidecar, f"put_{one}", put)
    setattr(FakeSidecar, f"get_{many}", get)


for _kind in COLLECTIONS:
    _typed(_kind)


class FakeNode(PeatNode):
    def __init__(self, sidecar):
        self.sidecar = sidecar

    async def read_collection(self, request, ctx):
        self.sidecar.count("ReadCollection")
        found = sorted((i, d) for (c, i), d in self.sidecar.documents.items() if c == request.collection)
        return node.ReadCollectionResponse(
            documents=[
                node.StoredDocument(doc_id=i, json_data=json.dumps(d))
                for i, d in found
                if i.startswith(request.id_prefix)
            ]
        )

    async def get_node(self, request, ctx):
        return node.GetNodeResponse(node_id="n", roles=["agent", "hub"], labels={"a": "b"})

    async def list_links(self, request, ctx):
        return node.ListLinksResponse(links=[node.Link(endpoint_id="e", state="connected", round_trip_ms=1.5)])


@contextlib.asynccontextmanager
async def run(sidecar, *, port=0, with_node=True):
    app = web.Application()
    errors = ErrorInterceptor()
    mount(app, PeatSidecarASGIApplication(sidecar, interceptors=[errors]))
    if with_node:
        mount(app, PeatNodeASGIApplication(FakeNode(sidecar), interceptors=[errors]))
    runner = make_runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        for feed in list(sidecar.feeds):
            feed.put_nowait(UnavailableError("stopping"))
        await runner.cleanup()


@pytest.fixture
def sidecar():
    return FakeSidecar()


@pytest.fixture
async def address(sidecar):
    async with run(sidecar) as address:
        yield address


@pytest.fixture
async def old_address(sidecar):
    """A sidecar that has the fixed API alone."""
    async with run(sidecar, with_node=False) as address:
        yield address


@pytest.fixture
def serve():
    return run


@pytest.fixture
def unused_address():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture
def unavailable():
    return ConnectError(Code.UNAVAILABLE, "busy")


@pytest.fixture
def port_of():
    return lambda address: int(re.search(r":(\d+)$", address)[1])
