"""The official Connect conformance suite's client, on the transport of the SDK.

Reads ClientCompatRequests from standard input, makes each call, answers with ClientCompatResponses on standard output.
The only argument is the folder with the code generated from the suite's proto files. The SDK makes unary calls and
reads server streams, so these are what is tried.
"""

import asyncio
import struct
import sys
from pathlib import Path

import connectrpc
from connectrpc.client import ResponseMetadata
from connectrpc.code import Code
from connectrpc.codec import proto_binary_codec, proto_json_codec
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError
from connectrpc.protocol import ProtocolType
from connectrpc.request import Headers
from protobuf import Oneof, Registry
from pyqwest import Client as HttpClient

from peat_p2p.wire.errors import cancellation_in
from peat_p2p.wire.transport import AiohttpTransport

# The suite's package lies inside the namespace of the library itself.
connectrpc.__path__.append(str(Path(sys.argv[1]) / "connectrpc"))

from connectrpc.conformance.v1 import client_compat_pb as compat  # noqa: E402
from connectrpc.conformance.v1 import config_pb  # noqa: E402
from connectrpc.conformance.v1 import service_pb as pb  # noqa: E402
from connectrpc.conformance.v1.service_connect import ConformanceServiceClient  # noqa: E402

AT_ONCE = 8
CANCELLED = ConnectError(Code.CANCELED, "cancelled by the caller")


def listed(headers):
    found = {}
    for name, value in headers.allitems():
        found.setdefault(name, []).append(value)
    return [pb.Header(name=name, value=values) for name, values in found.items()]


def client_of(asked, transport):
    options = {"read_max_bytes": asked.message_receive_limit} if asked.message_receive_limit else {}
    return ConformanceServiceClient(
        transport.base_url,
        http_client=HttpClient(transport),
        codec=proto_json_codec(Registry(pb.desc())) if asked.codec == config_pb.Codec.JSON else proto_binary_codec(),
        protocol=ProtocolType.GRPC_WEB if asked.protocol == config_pb.Protocol.GRPC_WEB else ProtocolType.CONNECT,
        send_compression=GzipCompression() if asked.compression == config_pb.Compression.GZIP else None,
        **options,
    )


async def call(asked, client, result):
    """Make the call; what it brings goes into `result` as it comes."""
    headers = Headers()
    for header in asked.request_headers:
        for value in header.value:
            headers.add(header.name, value)
    options = {"headers": headers, "timeout_ms": asked.timeout_ms if asked.has_field("timeout_ms") else None}
    (message,) = asked.request_messages
    timing = asked.cancel.cancel_timing if asked.cancel is not None else None
    last = timing.value if isinstance(timing, Oneof) and timing.field == "after_num_responses" else None
    match asked.method:
        case "Unary":
            result.payloads.append((await client.unary(message.unpack(pb.UnaryRequest), **options)).payload)
        case "IdempotentUnary":
            options["use_get"] = asked.use_get_http_method
            request = message.unpack(pb.IdempotentUnaryRequest)
            result.payloads.append((await client.idempotent_unary(request, **options)).payload)
        case "Unimplemented":
            await client.unimplemented(message.unpack(pb.UnimplementedRequest), **options)
        case "ServerStream":
            stream = client.server_stream(message.unpack(pb.ServerStreamRequest), **options)
            async for response in stream:
                result.payloads.append(response.payload)
                if len(result.payloads) == last:
                    await stream.aclose()
                    raise CANCELLED


async def perform(asked):
    result = compat.ClientResponseResult()
    timing = asked.cancel.cancel_timing if asked.cancel is not None else None
    delay = timing.value / 1000 if isinstance(timing, Oneof) and timing.field == "after_close_send_ms" else None
    error = None
    async with AiohttpTransport(f"http://{asked.host}:{asked.port}") as transport:
        with ResponseMetadata() as metadata:
            try:
                async with asyncio.timeout(delay):
                    try:
                        await call(asked, client_of(asked, transport), result)
                    except ConnectError as failed:
                        # As the SDK does: a cancellation stays one.
                        raise cancellation_in(failed) or failed from None
            except TimeoutError:
                error = CANCELLED
            except ConnectError as failed:
                error = failed
        result.response_headers.extend(listed(metadata.headers))
        result.response_trailers.extend(listed(metadata.trailers))
        if metadata.http_status is not None and asked.protocol == config_pb.Protocol.CONNECT:
            result.http_status_code = metadata.http_status
    if error is not None:
        details = [detail._any for detail in error.details]
        result.error = pb.Error(code=config_pb.Code[error.code.name], message=error.message, details=details)
    return result


async def serve():
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    slots = asyncio.Semaphore(AT_ONCE)

    async def answer(asked):
        async with slots:
            response = compat.ClientCompatResponse(test_name=asked.test_name)
            try:
                async with asyncio.timeout(30):
                    response.result = Oneof("response", await perform(asked))
            except Exception as error:
                response.result = Oneof("error", compat.ClientErrorResult(message=repr(error)))
            data = response.to_binary()
            sys.stdout.buffer.write(struct.pack(">I", len(data)) + data)
            sys.stdout.buffer.flush()

    async with asyncio.TaskGroup() as group:
        while size := await reader.read(4):
            size += await reader.readexactly(4 - len(size))
            data = await reader.readexactly(struct.unpack(">I", size)[0])
            group.create_task(answer(compat.ClientCompatRequest.from_binary(data)))


asyncio.run(serve())
