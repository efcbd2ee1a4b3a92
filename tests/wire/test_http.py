import asyncio
import contextlib
import gzip
import json
import logging
import socket
import time
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp import ClientConnectionResetError, web
from connectrpc.client import ResponseMetadata
from connectrpc.code import Code
from connectrpc.codec import proto_json_codec
from connectrpc.errors import ConnectError
from connectrpc.protocol import ProtocolType
from pyqwest import Client as HttpClient

from peat_p2p.core.errors import ConfigError, InvalidInputError, UnavailableError
from peat_p2p.wire import transport as transport_module
from peat_p2p.wire.asgi import make_runner, mount
from peat_p2p.wire.auth import BearerInterceptor
from peat_p2p.wire.errors import ErrorInterceptor, cancellation_in
from peat_p2p.wire.gen.peat.node.v1.node_connect import PeatNode, PeatNodeASGIApplication, PeatNodeClient
from peat_p2p.wire.gen.peat.node.v1.node_pb import GetNodeRequest, GetNodeResponse, ReadCollectionRequest
from peat_p2p.wire.gen.peat.sidecar.v1.sidecar_connect import (
    PeatSidecar,
    PeatSidecarASGIApplication,
    PeatSidecarClient,
)
from peat_p2p.wire.gen.peat.sidecar.v1.sidecar_pb import DocumentChange, SubscribeRequest
from peat_p2p.wire.transport import AiohttpTransport


class Node(PeatNode):
    async def get_node(self, request, ctx):
        return GetNodeResponse(node_id="n")

    async def read_collection(self, request, ctx):
        match request.collection:
            case "bad":
                raise InvalidInputError("no such thing")
            case "slow":
                await asyncio.sleep(60)
            case _:
                raise ZeroDivisionError("a secret")


class Sidecar(PeatSidecar):
    def __init__(self):
        self.ended = asyncio.Event()
        self.go_on = asyncio.Event()

    async def subscribe(self, request, ctx):
        try:
            for name in request.collections:
                yield DocumentChange(collection=name)
            await self.go_on.wait()
            raise InvalidInputError("enough")
        finally:
            self.ended.set()


@pytest.fixture
def sidecar():
    return Sidecar()


@pytest.fixture
async def server(tmp_path, sidecar):
    app = web.Application()
    errors = ErrorInterceptor(read_limit_hint="--max-message raises it")
    mount(app, PeatNodeASGIApplication(Node(), interceptors=[errors], read_max_bytes=1000))
    mount(app, PeatSidecarASGIApplication(sidecar, interceptors=[errors, BearerInterceptor("s3cret")]))
    runner = make_runner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "s")).start()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield next(f"http://127.0.0.1:{a[1]}" for a in runner.addresses if isinstance(a, tuple))
    await runner.cleanup()


@pytest.fixture(params=["tcp", "unix"])
def address(request, server, tmp_path):
    return server if request.param == "tcp" else f"unix://{tmp_path}/s"


FORMS = {
    "binary": {},
    "json": {"codec": proto_json_codec()},
    "grpc-web": {"protocol": ProtocolType.GRPC_WEB},
}


@contextlib.asynccontextmanager
async def client(kind, address, *, token=None, **options):
    async with AiohttpTransport(address, token=token) as transport:
        yield kind(transport.base_url, http_client=HttpClient(transport), **options)


@pytest.mark.parametrize("form", FORMS)
async def test_a_call_in_every_protocol_compressed_and_not(address, form):
    for compression in ({}, {"send_compression": None, "accept_compression": ()}):
        async with client(PeatNodeClient, address, **FORMS[form], **compression) as node:
            assert (await node.get_node(GetNodeRequest())).node_id == "n"


@pytest.mark.parametrize("form", FORMS)
async def test_a_handlers_error_reaches_the_caller_with_its_code_and_text(address, form):
    async with client(PeatNodeClient, address, **FORMS[form]) as node:
        with pytest.raises(ConnectError, match="no such thing") as caught:
            await node.read_collection(ReadCollectionRequest(collection="bad"))
    assert caught.value.code is Code.INVALID_ARGUMENT


async def test_an_unforeseen_error_is_logged_and_says_nothing_to_the_caller(server, caplog):
    async with client(PeatNodeClient, server) as node:
        with caplog.at_level(logging.ERROR), pytest.raises(ConnectError) as caught:
            await node.read_collection(ReadCollectionRequest(collection="boom"))
    assert caught.value.code is Code.INTERNAL
    assert "secret" not in caught.value.message
    assert "a secret" in caplog.text
    assert "ReadCollection" in caplog.text


async def test_a_message_over_the_limit_is_refused_with_a_hint(address):
    async with client(PeatNodeClient, address, send_compression=None) as node:
        with pytest.raises(ConnectError, match=r"1000 bytes; --max-message raises it") as caught:
            await node.read_collection(ReadCollectionRequest(collection="x" * 2000))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


async def test_the_limit_holds_for_what_a_small_body_decompresses_to(server):
    async with client(PeatNodeClient, server) as node:
        with pytest.raises(ConnectError) as caught:
            await node.read_collection(ReadCollectionRequest(collection="x" * 200_000))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("form", FORMS)
async def test_a_stream_sends_each_message_at_once_and_its_error_at_the_end(address, sidecar, form):
    async with client(PeatSidecarClient, address, token="s3cret", **FORMS[form]) as api:
        stream = api.subscribe(SubscribeRequest(collections=["a", "b"]))
        async with asyncio.timeout(5):
            assert (await anext(stream)).collection == "a"
            assert (await anext(stream)).collection == "b"
            assert not sidecar.ended.is_set()
            sidecar.go_on.set()
            with pytest.raises(ConnectError, match="enough") as caught:
                await anext(stream)
    assert caught.value.code is Code.INVALID_ARGUMENT


async def test_an_open_stream_costs_nothing_while_it_is_silent(server):
    async with client(PeatSidecarClient, server, token="s3cret") as api:
        stream = api.subscribe(SubscribeRequest(collections=["a"]))
        await anext(stream)
        used = time.process_time()
        await asyncio.sleep(0.5)
        used = time.process_time() - used
        await stream.aclose()
    assert used < 0.25


async def test_a_reader_that_leaves_ends_the_handler(server, sidecar):
    async with client(PeatSidecarClient, server, token="s3cret") as api:
        stream = api.subscribe(SubscribeRequest(collections=["a"]))
        await anext(stream)
        await stream.aclose()
    async with asyncio.timeout(5):
        await sidecar.ended.wait()


@pytest.mark.parametrize(
    ("token", "says"), [(None, "wants a token"), ("wrong", "not the one"), ("S3CRET", "not the one")]
)
async def test_without_the_token_nothing_is_answered(server, sidecar, token, says):
    async with client(PeatSidecarClient, server, token=token) as api:
        with pytest.raises(ConnectError, match=says) as caught:
            await anext(api.subscribe(SubscribeRequest(collections=["a"])))
    assert caught.value.code is Code.UNAUTHENTICATED
    assert not sidecar.ended.is_set()


async def test_a_cancelled_call_can_be_told_from_a_failed_one(server):
    async with client(PeatNodeClient, server) as node:
        with pytest.raises(ConnectError) as caught:
            async with asyncio.timeout(0.1):
                await node.read_collection(ReadCollectionRequest(collection="slow"))
    assert cancellation_in(caught.value) is not None


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:1", "refused|Connect call failed"),
        ("unix:///nowhere/at/all", "No such file"),
        ("https://127.0.0.1:1", "refused|Connect call failed"),
    ],
)
async def test_an_address_nobody_answers_on_is_unavailable(address, says):
    async with client(PeatNodeClient, address) as node:
        with pytest.raises(ConnectError, match=says) as caught:
            await node.get_node(GetNodeRequest())
    assert caught.value.code is Code.UNAVAILABLE


async def test_https_to_a_server_without_tls_says_so(server):
    async with client(PeatNodeClient, server.replace("http:", "https:")) as node:
        with pytest.raises(ConnectError, match="TLS") as caught:
            await node.get_node(GetNodeRequest())
    assert caught.value.code is Code.UNAVAILABLE


@pytest.mark.parametrize("address", ["", "127.0.0.1:80", "ftp://h:1", "unix://relative", "http://", "http://h:port"])
def test_what_is_not_an_address_is_refused(address):
    with pytest.raises(ConfigError, match=r"address|absolute"):
        AiohttpTransport(address)


async def test_a_closed_transport_says_so(server):
    transport = AiohttpTransport(server)
    with pytest.raises(ConnectError, match="closed") as caught:
        await PeatNodeClient(transport.base_url, http_client=HttpClient(transport)).get_node(GetNodeRequest())
    assert isinstance(caught.value.__cause__, UnavailableError)


@pytest.mark.parametrize(
    ("path", "kind", "body", "status"),
    [
        ("/peat.node.v1.PeatNode/GetNode", "application/json", b"{", 400),
        ("/peat.node.v1.PeatNode/GetNode", "application/json", b"[1]", 400),
        ("/peat.node.v1.PeatNode/GetNode", "application/json", b"\xff\xfe", 400),
        ("/peat.node.v1.PeatNode/ReadCollection", "application/json", b'{"collection": 5}', 400),
        ("/peat.node.v1.PeatNode/ReadCollection", "application/proto", b"\x0a\x05ab", 400),
        ("/peat.node.v1.PeatNode/NoSuchMethod", "application/json", b"{}", 404),
        ("/peat.node.v1.NoSuchService/GetNode", "application/json", b"{}", 404),
        ("/", "application/json", b"{}", 404),
        ("/peat.node.v1.PeatNode/GetNode", "text/plain", b"{}", 415),
        ("/peat.node.v1.PeatNode/GetNode", "application/json", b"{}", 200),
        ("/peat.node.v1.PeatNode/GetNode", "application/json", b'{"unknown": {"deep": [1]}}', 200),
    ],
)
async def test_plain_http(server, caplog, path, kind, body, status):
    async with (
        aiohttp.ClientSession() as session,
        session.post(server + path, data=body, headers={"content-type": kind}) as answer,
    ):
        assert answer.status == status
        if status == 400:
            error = json.loads(await answer.read())
            assert error["code"] == "invalid_argument"
            assert error["message"]
    assert not caplog.records


async def test_a_body_that_says_gzip_and_is_not(server):
    url = f"{server}/peat.node.v1.PeatNode/GetNode"
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    async with aiohttp.ClientSession() as session:
        async with session.post(url, data=b"not gzip", headers=headers) as answer:
            assert (answer.status, (await answer.json())["code"]) == (400, "invalid_argument")
        async with session.post(url, data=gzip.compress(b"{}"), headers=headers) as answer:
            assert (answer.status, await answer.json()) == (200, {"nodeId": "n"})
        async with session.post(url, data=b"{}", headers={**headers, "content-encoding": "snappy"}) as answer:
            assert (answer.status, (await answer.json())["code"]) == (501, "unimplemented")


async def test_a_callers_deadline_ends_its_call(server):
    url = f"{server}/peat.node.v1.PeatNode/ReadCollection"
    headers = {"connect-timeout-ms": "50"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json={"collection": "slow"}, headers=headers) as answer,
    ):
        assert (answer.status, (await answer.json())["code"]) == (504, "deadline_exceeded")


async def test_no_cross_origin_reads(server):
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    async with aiohttp.ClientSession() as session:
        async with session.options(f"{server}/peat.node.v1.PeatNode/GetNode", headers=headers) as answer:
            assert answer.status >= 400
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        async with session.post(f"{server}/peat.node.v1.PeatNode/GetNode", json={}, headers=headers) as answer:
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]


async def test_a_client_that_stops_in_the_middle_of_a_body_leaves_no_trace(server, caplog):
    host, port = server.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /peat.node.v1.PeatNode/GetNode HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 100\r\n\r\n{"
    )
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await asyncio.sleep(0.05)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


async def test_a_caller_that_is_gone_before_the_answer_leaves_no_trace(server, sidecar, caplog):
    host, port = server.removeprefix("http://").split(":")
    body = b'\0\0\0\0\x15{"collections":["a"]}'
    request = (
        b"POST /peat.sidecar.v1.PeatSidecar/Subscribe HTTP/1.1\r\nhost: x\r\nauthorization: bearer s3cret\r\n"
        b"content-type: application/connect+json\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    for wait in range(20):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(request + body)
        await writer.drain()
        await asyncio.sleep(wait / 4000)
        writer.transport.abort()
    await asyncio.sleep(0.1)
    assert sidecar.ended.is_set()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text


async def test_a_write_to_a_caller_that_left_is_no_error_of_ours(caplog):
    gone = ClientConnectionResetError("Cannot write to closing transport")
    await ErrorInterceptor().on_end(None, SimpleNamespace(method=SimpleNamespace(name="X")), gone)
    assert not caplog.records


async def test_a_tcp_connection_notices_a_dead_peer(server, monkeypatch):
    opened = []
    original = transport_module._watched_socket
    monkeypatch.setattr(transport_module, "_watched_socket", lambda at: opened.append(original(at)) or opened[-1])
    async with client(PeatNodeClient, server) as node:
        await node.get_node(GetNodeRequest())
        assert opened[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert opened[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60


async def test_response_metadata_still_works_through_the_transport(server):
    async with client(PeatNodeClient, server) as node:
        with ResponseMetadata() as metadata:
            await node.get_node(GetNodeRequest())
    assert metadata.http_status == 200
