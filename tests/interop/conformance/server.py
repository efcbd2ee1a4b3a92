"""The service of the official Connect conformance suite, served the way the sidecar serves its own.

Reads a ServerCompatRequest from standard input, answers with its address on standard output, serves until killed. The
only argument is the folder with the code generated from the suite's proto files.
"""

import asyncio
import struct
import sys
from pathlib import Path

import connectrpc
from aiohttp import web
from connectrpc.code import Code
from connectrpc.codec import proto_binary_codec, proto_json_codec
from connectrpc.errors import ConnectError, ErrorDetail
from protobuf import Oneof, Registry
from protobuf.wkt import Any

from peat_p2p.wire.asgi import make_runner, mount
from peat_p2p.wire.errors import ErrorInterceptor

# The suite's package lies inside the namespace of the library itself.
connectrpc.__path__.append(str(Path(sys.argv[1]) / "connectrpc"))

from connectrpc.conformance.v1 import config_pb, server_compat_pb  # noqa: E402
from connectrpc.conformance.v1 import service_pb as pb  # noqa: E402
from connectrpc.conformance.v1.service_connect import (  # noqa: E402
    ConformanceService,
    ConformanceServiceASGIApplication,
)


def facts(ctx, requests, timeout_ms):
    headers = {}
    for name, value in ctx.request_headers.allitems():
        headers.setdefault(name, []).append(value)
    return pb.ConformancePayload.RequestInfo(
        request_headers=[pb.Header(name=name, value=values) for name, values in headers.items()],
        requests=[Any.pack(request) for request in requests],
        **({} if timeout_ms is None else {"timeout_ms": int(timeout_ms)}),
    )


def set_metadata(ctx, definition):
    for headers, target in (
        (definition.response_headers, ctx.response_headers),
        (definition.response_trailers, ctx.response_trailers),
    ):
        for header in headers:
            for value in header.value:
                target.add(header.name, value)


def failure(error, request_info):
    details = [ErrorDetail(detail) for detail in error.details]
    if request_info is not None:
        details.append(ErrorDetail(request_info))
    return ConnectError(Code(config_pb.Code(int(error.code)).name.lower()), error.message or "", details)


async def answer(kind, requests, definition, ctx, timeout_ms):
    payload = pb.ConformancePayload(request_info=facts(ctx, requests, timeout_ms))
    if definition is not None:
        set_metadata(ctx, definition)
        await asyncio.sleep(definition.response_delay_ms / 1000)
        match definition.response:
            case Oneof("error", error):
                raise failure(error, payload.request_info)
            case Oneof("response_data", data):
                payload.data = data
    return kind(payload=payload)


async def answers(kind, requests, definition, ctx, timeout_ms):
    if definition is None:
        return
    set_metadata(ctx, definition)
    request_info = facts(ctx, requests, timeout_ms)
    for data in definition.response_data:
        await asyncio.sleep(definition.response_delay_ms / 1000)
        payload = pb.ConformancePayload(data=data)
        if request_info is not None:
            payload.request_info = request_info
        request_info = None
        yield kind(payload=payload)
    if definition.error is not None:
        raise failure(definition.error, request_info)


class Service(ConformanceService):
    async def unary(self, request, ctx):
        return await answer(pb.UnaryResponse, [request], request.response_definition, ctx, ctx.timeout_ms)

    async def idempotent_unary(self, request, ctx):
        return await answer(pb.IdempotentUnaryResponse, [request], request.response_definition, ctx, ctx.timeout_ms)

    async def client_stream(self, request, ctx):
        timeout_ms = ctx.timeout_ms
        requests = [message async for message in request]
        definition = requests[0].response_definition if requests else None
        return await answer(pb.ClientStreamResponse, requests, definition, ctx, timeout_ms)

    def server_stream(self, request, ctx):
        return answers(pb.ServerStreamResponse, [request], request.response_definition, ctx, ctx.timeout_ms)

    async def bidi_stream(self, request, ctx):
        # HTTP/1.1 has no full duplex: everything is read before anything is answered.
        timeout_ms = ctx.timeout_ms
        requests = [message async for message in request]
        definition = requests[0].response_definition if requests else None
        async for response in answers(pb.BidiStreamResponse, requests, definition, ctx, timeout_ms):
            yield response


async def main():
    (size,) = struct.unpack(">I", sys.stdin.buffer.read(4))
    asked = server_compat_pb.ServerCompatRequest.from_binary(sys.stdin.buffer.read(size))
    app = web.Application()
    mount(
        app,
        ConformanceServiceASGIApplication(
            Service(),
            interceptors=[ErrorInterceptor()],
            read_max_bytes=asked.message_receive_limit or None,
            codecs=[proto_json_codec(Registry(pb.desc())), proto_binary_codec()],
        ),
    )
    runner = make_runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    where = server_compat_pb.ServerCompatResponse(host="127.0.0.1", port=runner.addresses[0][1]).to_binary()
    sys.stdout.buffer.write(struct.pack(">I", len(where)) + where)
    sys.stdout.buffer.flush()
    await asyncio.Event().wait()


asyncio.run(main())
