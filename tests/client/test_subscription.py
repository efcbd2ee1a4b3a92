import asyncio
import contextlib

import pytest

from peat_p2p.client import Deleted, Eq, Gap, SidecarClient, SnapshotComplete, Upserted
from peat_p2p.core.errors import InvalidInputError
from peat_p2p.wire.gen.peat.sidecar.v1 import sidecar_pb as pb


@pytest.fixture(autouse=True)
async def limit():
    async with asyncio.timeout(20):
        yield


async def test_snapshot_marker_changes(address, sidecar):
    sidecar.documents["c", "a"] = {"n": 1}
    async with SidecarClient(address) as client, contextlib.aclosing(client.subscribe(["c"])) as events:
        assert await anext(events) == Upserted("c", "a", '{"n": 1}', {"n": 1})
        assert await anext(events) == SnapshotComplete()
        await client.put_document("c", "b", {"n": 2})
        assert await anext(events) == Upserted("c", "b", '{"n": 2}', {"n": 2})
        await client.delete_document("c", "a")
        assert await anext(events) == Deleted("c", "a")
    await asyncio.sleep(0.1)
    assert sidecar.feeds == []


async def test_a_slow_reader_is_told_of_the_gap(address, sidecar):
    async with SidecarClient(address) as client, contextlib.aclosing(client.subscribe()) as events:
        assert await anext(events) == SnapshotComplete()
        sidecar.feeds[0].put_nowait(pb.DocumentChange(marker=pb.StreamMarker.LAGGED))
        assert isinstance(await anext(events), Gap)


async def test_a_marker_of_the_future_is_passed_over(address, sidecar):
    async with SidecarClient(address) as client, contextlib.aclosing(client.subscribe()) as events:
        assert await anext(events) == SnapshotComplete()
        sidecar.feeds[0].put_nowait(pb.DocumentChange(marker=77))
        await client.put_document("c", "b", {})
        assert isinstance(await anext(events), Upserted)


async def test_the_sidecar_goes_away_and_comes_back(sidecar, serve, port_of):
    async with contextlib.AsyncExitStack() as stack:
        first = contextlib.AsyncExitStack()
        address = await first.enter_async_context(serve(sidecar))
        client = await stack.enter_async_context(SidecarClient(address))
        events = await stack.enter_async_context(contextlib.aclosing(client.subscribe(["c"])))
        assert await anext(events) == SnapshotComplete()
        await first.aclose()
        gap = await anext(events)
        assert isinstance(gap, Gap)
        assert gap.reason
        sidecar.documents["c", "meanwhile"] = {}
        async with serve(sidecar, port=port_of(address)):
            assert await anext(events) == Upserted("c", "meanwhile", "{}", {})
            assert await anext(events) == SnapshotComplete()
            await events.aclose()


async def test_an_absence_is_told_once_even_at_the_start(sidecar, serve, unused_address, port_of):
    told = []
    async with SidecarClient(unused_address) as client:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.5), contextlib.aclosing(client.subscribe()) as events:
                while True:
                    told.append(await anext(events))
    assert [type(event) for event in told] == [Gap]
    assert unused_address in told[0].reason


async def test_a_stream_that_ends_is_opened_again(address, sidecar):
    async with SidecarClient(address) as client, contextlib.aclosing(client.subscribe()) as events:
        assert await anext(events) == SnapshotComplete()
        sidecar.feeds[0].put_nowait(None)
        assert isinstance(await anext(events), Gap)
        assert await anext(events) == SnapshotComplete()


async def test_a_refused_subscription_is_not_tried_again(address, sidecar):
    async with SidecarClient(address) as client:
        with pytest.raises(InvalidInputError, match="no such collection"):
            await anext(client.subscribe(["refused"]))
    assert sidecar.calls == ["Subscribe"]


async def test_a_query_goes_along(address, sidecar, monkeypatch):
    asked = []
    original = type(sidecar).subscribe

    def subscribe(self, request, ctx):
        asked.append(request.query)
        return original(self, request, ctx)

    monkeypatch.setattr(type(sidecar), "subscribe", subscribe)
    async with SidecarClient(address) as client:
        async with contextlib.aclosing(client.subscribe(["c"], Eq("n", "1"))) as events:
            await anext(events)
        async with contextlib.aclosing(client.subscribe(["c"])) as events:
            await anext(events)
    assert asked[0].q.value == pb.QueryEq(field="n", value="1")
    assert asked[1] is None


async def test_cancelling_a_reader_leaves_nothing_open(address, sidecar):
    async with SidecarClient(address) as client:

        async def read():
            async with contextlib.aclosing(client.subscribe()) as events:
                async for _ in events:
                    pass

        async with asyncio.TaskGroup() as group:
            task = group.create_task(read())
            while not sidecar.feeds:
                await asyncio.sleep(0.01)
            task.cancel()
        assert task.cancelled()
        while sidecar.feeds:
            await asyncio.sleep(0.01)
