"""Metadata over HTTPS: who is answered, what is refused, what survives a break."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
import zstandard
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.core.address import HostPort
from peat_p2p.core.errors import InvalidInputError, PeatError, TooLargeError, UnavailableError, UntrustedError
from peat_p2p.swarm import infopack
from peat_p2p.swarm import metadata as module
from peat_p2p.swarm.metadata import MetadataClient, Partial
from peat_p2p.swarm.peers import PeerCandidate, StaticPeers
from peat_p2p.swarm.routes import Routes
from peat_p2p.swarm.torrent import parse_info, restored, shortened

HASH = "ab" * 32


@asynccontextmanager
async def serving(node, handler) -> AsyncIterator[PeerCandidate]:
    app = web.Application()
    app.router.add_get("/{tail:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=node.credentials.server_context()).start()
    address = HostPort("127.0.0.1", runner.addresses[0][1])
    try:
        yield PeerCandidate(node.name, node.credentials.identity.endpoint_id, address, address)
    finally:
        await runner.cleanup()


async def test_manifest_and_info_of_what_is_seeded(node, content) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=200_000))
    await (await ann.start()).seed(package)
    async with MetadataClient(bob.credentials) as client:
        assert await client.manifest(ann.candidate(), package.manifest_digest) == package.envelope
        assert (await client.info(ann.candidate(), package.manifest.infohash, Partial())).meta.info == package.info
        with pytest.raises(UnavailableError, match="ann does not hold it"):
            await client.info(ann.candidate(), HASH, Partial())
        with pytest.raises(UnavailableError, match="no address"):
            await client.info(ann.candidate(metadata=None), HASH, Partial())


async def test_another_formation_and_no_certificate_are_not_answered(node, content) -> None:
    ann, mal = node("ann"), node("mal")
    await ann.start()
    async with MetadataClient(mal.credentials) as client:
        with pytest.raises(UnavailableError):
            await client.info(ann.candidate(), HASH, Partial())
    anonymous = ssl.create_default_context(cadata=ann.credentials.ca_pem.decode())
    anonymous.check_hostname = False
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            async with session.get(f"https://{ann.candidate().metadata}/peat/v1/metadata/{HASH}", ssl=anonymous) as r:
                await r.read()


class _Leading(Routes):
    """Every way leads to one local port."""

    def __init__(self, port: HostPort, *, by_bearer: bool) -> None:
        super().__init__()
        self._port = port
        self._by_bearer = by_bearer

    def by_bearer(self, address: HostPort) -> bool:
        return self._by_bearer and address == self._port

    async def metadata(self, peer: PeerCandidate, *, straight: bool = False) -> HostPort:
        return self._port


async def test_through_a_bearer_tls_has_longer_to_be_agreed_on(node, content) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=100_000))
    await (await ann.start()).seed(package)
    behind = ann.candidate().metadata

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.6)
        there, back = await asyncio.open_connection(behind.host, behind.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    sink.write(data)
            sink.close()

        async with asyncio.TaskGroup() as both:
            both.create_task(pump(reader, back))
            both.create_task(pump(there, writer))

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    port = HostPort("127.0.0.1", server.sockets[0].getsockname()[1])
    straight, led = (
        MetadataClient(bob.credentials, _Leading(port, by_bearer=by_bearer), connect_timeout=0.2)
        for by_bearer in (False, True)
    )
    async with server, straight, led:
        with pytest.raises(UnavailableError):
            await straight.info(ann.candidate(), package.manifest.infohash, Partial())
        assert (await led.info(ann.candidate(), package.manifest.infohash, Partial())).meta.info == package.info


async def test_a_broken_answer_is_continued_elsewhere(node, content, monkeypatch) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    package = ann.publish(content(size=800_000))
    await (await ann.start()).seed(package)
    packed = module.pack_info(package.info, short=True)
    etag = module.etag_of(packed)

    async def breaks(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"ETag": etag, "Content-Length": str(len(packed))})
        response.content_type = module.SHORT_FORM
        await response.prepare(request)
        await response.write(packed[: len(packed) // 2])
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    partial = Partial()
    async with serving(cat, breaks) as broken, MetadataClient(bob.credentials) as client:
        with pytest.raises(UnavailableError):
            await client.info(broken, package.manifest.infohash, partial)
        had = len(partial.body)
        assert had > 0
        seen = []
        extend = bytearray.__iadd__

        class Counting(bytearray):
            def __iadd__(self, more):  # type: ignore[no-untyped-def]
                seen.append(len(more))
                return extend(self, more)

        partial.body = Counting(partial.body)
        assert (await client.info(ann.candidate(), package.manifest.infohash, partial)).meta.info == package.info
    assert sum(seen) == len(packed) - had


async def test_short_form_is_much_shorter_and_gives_the_same(node, content) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=3_000_000))
    await (await ann.start()).seed(package)
    short, infohash = shortened(package.info), package.manifest.infohash
    assert restored(short, infohash, ann.credentials.ca_pem) == parse_info(
        package.info, infohash, ann.credentials.ca_pem
    )
    with pytest.raises(UntrustedError):
        restored(short, "0" * 64, ann.credentials.ca_pem)
    assert len(module.pack_info(package.info, short=True)) < 0.7 * len(module.pack_info(package.info, short=False))
    url = f"https://{ann.candidate().metadata}/peat/v1/metadata/{package.manifest.infohash}"
    # One that knows no short form still gets the whole.
    context = bob.credentials.client_context()
    async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as response:
        assert response.content_type == module.WHOLE_FORM
        whole = zstandard.ZstdDecompressor().stream_reader(await response.read()).read()
    assert whole == package.info


@given(st.binary(max_size=300))
def test_no_bytes_break_the_short_form(data: bytes) -> None:
    for form in (lambda: restored(data, "0" * 64, b"ca"), lambda: shortened(data)):
        with contextlib.suppress(PeatError):
            form()


async def test_another_packing_begins_anew(node, content) -> None:
    ann, bob = node("ann"), node("bob")
    package = ann.publish(content(size=200_000))
    await (await ann.start()).seed(package)
    async with MetadataClient(bob.credentials) as client:
        partial = Partial('"other"', bytearray(b"part of another packing"))
        assert (await client.info(ann.candidate(), package.manifest.infohash, partial)).meta.info == package.info


async def test_too_much_and_nonsense_are_refused(node, monkeypatch) -> None:
    ann, bob = node("ann"), node("bob")
    monkeypatch.setattr(module, "MAX_INFO_BYTES", 100_000)
    monkeypatch.setattr(infopack, "MAX_INFO_BYTES", 100_000)
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    answers = {"bomb": bomb, "noise": b"\x00" * 1000, "flood": bytes(200_000)}

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=answers[request.path.rsplit("/", 1)[1]])

    async with serving(ann, answer) as peer, MetadataClient(bob.credentials) as client:
        with pytest.raises(TooLargeError):
            await client.info(peer, "bomb", Partial())
        with pytest.raises(InvalidInputError, match="ann"):
            await client.info(peer, "noise", Partial())
        with pytest.raises(TooLargeError):
            await client.info(peer, "flood", Partial())
        with pytest.raises(InvalidInputError, match="JSON"):
            await client.manifest(peer, "noise")


async def test_false_metadata_is_not_used_and_its_sender_named(node, content) -> None:
    ann, bob, cat = node("ann"), node("bob"), node("cat")
    package = ann.publish(content(size=200_000))
    await (await ann.start()).seed(package)

    async def lies(request: web.Request) -> web.Response:
        return web.Response(body=zstandard.ZstdCompressor().compress(package.info[:-1] + b"x"))

    async with serving(cat, lies) as liar:
        source = StaticPeers([liar])
        transfer = (await bob.start()).fetch(package.envelope, source)
        async with asyncio.timeout(20):
            async for status in transfer.updates():
                if status.bad_peers:
                    break
            source.set([liar, ann.candidate()])
            await transfer.wait()
    assert transfer.status().bad_peers == ("cat",)
