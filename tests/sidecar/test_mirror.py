"""A reader that keeps a copy by the events alone is right in the end, whatever happens to the sidecar meanwhile."""

import asyncio
import contextlib
import random

import pytest

from peat_p2p.client import Deleted, Gap, SidecarClient, SnapshotComplete, Upserted
from peat_p2p.core.errors import UnavailableError


class Mirror:
    """The rule the SDK asks of a reader: on a gap, what the next snapshot does not name is gone."""

    def __init__(self):
        self.documents = {}
        self.gaps = 0
        self._fresh = {}
        self._in_snapshot = True

    def tell(self, event):
        match event:
            case Gap():
                self.gaps += 1
                self._fresh, self._in_snapshot = {}, True
            case SnapshotComplete():
                self.documents, self._in_snapshot = dict(self._fresh), False
            case Upserted(_, doc_id, text, _):
                (self._fresh if self._in_snapshot else self.documents)[doc_id] = text
            case Deleted(_, doc_id):
                (self._fresh if self._in_snapshot else self.documents).pop(doc_id, None)


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_mirror_is_right_after_restarts_and_lags(run, seed):
    chance = random.Random(seed)
    mirror = Mirror()

    async def follow(client):
        async with contextlib.aclosing(client.subscribe(["things"])) as events:
            async for event in events:
                mirror.tell(event)
                if chance.random() < 0.02:
                    await asyncio.sleep(0.05)

    async def write(client):
        for _ in range(40):
            doc_id = str(chance.randrange(30))
            # While the sidecar is away a write fails; whether it was kept is the store's to say.
            with contextlib.suppress(UnavailableError):
                if chance.random() < 0.3:
                    await client.delete_document("things", doc_id)
                else:
                    await client.put_document("things", doc_id, {"n": chance.random(), "pad": "x" * 5000})

    async def agree(client):
        while True:
            ids = await client.list_documents("things")
            if mirror.documents == {doc_id: await client.get_document_text("things", doc_id) for doc_id in ids}:
                return
            await asyncio.sleep(0.05)

    async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
        running = contextlib.AsyncExitStack()
        endpoints = await running.enter_async_context(run(max_pending_changes=5))
        client = await stack.enter_async_context(SidecarClient(endpoints.apis[1]))
        async with asyncio.TaskGroup() as group:
            following = group.create_task(follow(client))
            for _ in range(3):
                async with asyncio.TaskGroup() as writers:
                    for _ in range(3):
                        writers.create_task(write(client))
                    await asyncio.sleep(chance.random() * 0.3)
                    await running.aclose()
                    await asyncio.sleep(chance.random() * 0.2)
                    running = contextlib.AsyncExitStack()
                    await running.enter_async_context(run(max_pending_changes=5))
                await agree(client)
            following.cancel()
        await running.aclose()
    assert mirror.gaps >= 1
