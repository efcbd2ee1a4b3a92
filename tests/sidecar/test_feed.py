import asyncio
import contextlib

import pytest

from peat_p2p.client import Eq, Gap, Greater, Not, SidecarClient, SnapshotComplete, Upserted
from peat_p2p.client.model import Deleted
from peat_p2p.core.errors import InvalidInputError
from peat_p2p.wire.gen.peat.sidecar.v1 import sidecar_pb as pb


@pytest.fixture(autouse=True)
async def limit():
    async with asyncio.timeout(30):
        yield


async def snapshot(events):
    found = []
    while not isinstance(event := await anext(events), SnapshotComplete):
        found.append(event)
    return found


async def test_no_collection_named_means_all(run):
    async with run() as endpoints, SidecarClient(endpoints.api) as client:
        await client.put_document("one", "a", {"n": 1})
        await client.put_document("two", "b", {"n": 1})
        async with contextlib.aclosing(client.subscribe()) as events:
            found = [(e.collection, e.doc_id) for e in await snapshot(events)]
            assert [it for it in found if it[0] in ("one", "two")] == [("one", "a"), ("two", "b")]


async def test_an_empty_collection_gives_the_marker_at_once(run):
    async with (
        run() as endpoints,
        SidecarClient(endpoints.api) as client,
        contextlib.aclosing(client.subscribe(["nothing"])) as events,
    ):
        assert await snapshot(events) == []


async def test_a_query_filters_the_snapshot_and_what_follows(run):
    async with run() as endpoints, SidecarClient(endpoints.api) as client:
        for n in range(4):
            await client.put_document("things", str(n), {"n": n, "s": f"v{n}"})
        async with contextlib.aclosing(client.subscribe(["things"], Greater("n", "1"))) as events:
            assert [e.doc_id for e in await snapshot(events)] == ["2", "3"]
            await client.put_document("things", "0", {"n": 0})
            await client.put_document("things", "1", {"n": 7})
            assert (await anext(events)).doc_id == "1"
            await client.put_document("things", "3", {"n": 0})
            assert await anext(events) == Deleted("things", "3")
        async with contextlib.aclosing(client.subscribe(["things"], Not(Eq("s", '"v2"')))) as events:
            assert [e.doc_id for e in await snapshot(events)] == ["0", "1", "3"]


async def test_a_query_that_is_no_query_is_refused(run):
    async with run() as endpoints, SidecarClient(endpoints.api) as client:
        with pytest.raises(InvalidInputError, match="JSON scalar"):
            await anext(client.subscribe(["things"], Eq("n", "nonsense")))


async def test_changes_come_in_the_order_they_were_made(run):
    async with (
        run() as endpoints,
        SidecarClient(endpoints.api) as client,
        contextlib.aclosing(client.subscribe(["things"])) as events,
    ):
        assert await snapshot(events) == []
        for n in range(200):
            await client.put_document("things", f"{n:03}", {"n": n})
        assert [(await anext(events)).doc_id for _ in range(200)] == [f"{n:03}" for n in range(200)]


async def test_a_slow_reader_is_told_and_gets_a_fresh_snapshot(run, stub):
    async with (
        run(max_pending_changes=10) as endpoints,
        SidecarClient(endpoints.api) as writer,
        SidecarClient(endpoints.apis[1]) as reader,
        contextlib.aclosing(reader.subscribe(["things"])) as events,
    ):
        assert await snapshot(events) == []
        # What the sockets hold must be filled before the sidecar can notice that nobody reads.
        text = "x" * 100_000
        for n in range(60):
            await writer.put_document("things", f"{n:02}", {"text": text})
        before = []
        while not isinstance(event := await anext(events), Gap):
            before.append(event)
        assert "slow" in event.reason
        assert 0 < len(before) < 60
        fresh = await snapshot(events)
        assert [e.doc_id for e in fresh] == [f"{n:02}" for n in range(60)]
        await writer.put_document("things", "last", {"n": 1})
        assert (await anext(events)).doc_id == "last"


async def test_a_reader_that_never_reads_does_not_hold_up_writers_or_the_stop(run, stub):
    async with run(max_pending_changes=10) as endpoints, stub(endpoints.api) as api:
        stream = api.subscribe(pb.SubscribeRequest(collections=["things"]))
        assert (await anext(stream)).marker == pb.StreamMarker.SNAPSHOT_COMPLETE
        async with SidecarClient(endpoints.api) as writer:
            for n in range(60):
                await writer.put_document("things", str(n), {"text": "x" * 100_000})
        stopping = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - stopping < 4


async def test_stopping_tells_readers_and_they_come_back(run):
    async with contextlib.AsyncExitStack() as stack:
        first = contextlib.AsyncExitStack()
        endpoints = await first.enter_async_context(run())
        client = await stack.enter_async_context(SidecarClient(endpoints.apis[1]))
        events = await stack.enter_async_context(contextlib.aclosing(client.subscribe(["things"])))
        assert await snapshot(events) == []
        loop = asyncio.get_running_loop()
        stopping = loop.time()
        await first.aclose()
        assert loop.time() - stopping < 1
        gap = await anext(events)
        assert isinstance(gap, Gap)
        assert "stopping" in gap.reason
        async with run() as again:
            assert again.apis[1] == endpoints.apis[1]
            await client.put_document("things", "a", {"n": 1})
            found = [await anext(events), await anext(events)]
            assert any(isinstance(event, Upserted) for event in found)
            assert any(isinstance(event, SnapshotComplete) for event in found)
            await events.aclose()
