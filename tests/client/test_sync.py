import asyncio
import threading
import time

import pytest

from peat_p2p.client import (
    Gap,
    Heartbeat,
    Platform,
    SidecarClient,
    SnapshotComplete,
    SyncSidecarClient,
    Upserted,
)
from peat_p2p.core.errors import ConfigError, UnavailableError


@pytest.fixture
def running(sidecar, serve):
    """A sidecar on a thread of its own, as for a program without asyncio."""
    stop, ready, found = threading.Event(), threading.Event(), []

    async def main():
        async with serve(sidecar) as address:
            found.append(address)
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    ready.wait()
    yield found[0]
    stop.set()
    thread.join()


def test_calls_without_asyncio(running):
    before = threading.active_count()
    with SyncSidecarClient(running) as client:
        assert client.get_status().node_id == "n"
        client.put_document("c", "a", {"n": 1})
        assert client.read_collection("c") == {"a": {"n": 1}}
        client.heartbeat(Heartbeat(agent_id="a"))
        assert [agent.agent_id for agent in client.fleet()] == ["a"]
    assert threading.active_count() == before


def test_a_heartbeat_keeps_what_others_wrote(running, sidecar):
    with SyncSidecarClient(running) as client:
        client.put_platform(Platform(id="a", name="Rover"))
        client.heartbeat(Heartbeat(agent_id="a", version="1"))
        assert sidecar.documents["platforms", "a"]["name"] == "Rover"


def test_subscribe_is_a_plain_iterator(running, sidecar):
    sidecar.documents["c", "a"] = {}
    with SyncSidecarClient(running) as client:
        events = client.subscribe(["c"])
        assert isinstance(next(events), Upserted)
        assert next(events) == SnapshotComplete()
        client.put_document("c", "b", {"n": 1})
        assert next(events).doc_id == "b"
        events.close()
        deadline = time.monotonic() + 5
        while sidecar.feeds and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not sidecar.feeds


def test_errors_come_out_as_they_are(unused_address):
    with SyncSidecarClient(unused_address) as client:
        with pytest.raises(UnavailableError, match=unused_address):
            client.get_status()
        assert isinstance(next(client.subscribe()), Gap)
    with pytest.raises(UnavailableError, match="closed"):
        client.get_status()
    with pytest.raises(ConfigError):
        SyncSidecarClient("nonsense")


def test_one_client_for_many_threads(running):
    with SyncSidecarClient(running) as client:
        threads = [threading.Thread(target=lambda n=n: client.put_document("c", str(n), {"n": n})) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(client.list_documents("c")) == 20


def test_closing_ends_a_call_that_waits(running):
    ended = []

    def wait(client):
        try:
            client.put_document("slow", "a", {})
        except UnavailableError as error:
            ended.append(str(error))

    with SyncSidecarClient(running) as client:
        thread = threading.Thread(target=wait, args=(client,))
        thread.start()
        time.sleep(0.2)
    thread.join(5)
    assert ended
    assert "closed" in ended[0]


def test_both_faces_have_the_same_calls():
    def calls(kind):
        return {name for name in dir(kind) if not name.startswith("_")}

    assert calls(SyncSidecarClient) == calls(SidecarClient)
