import asyncio
import time

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from peat_p2p.client import Cell, Command, CommandStatus, Link, Peer, Platform, SidecarClient, Status, SyncStats, Track
from peat_p2p.core.errors import (
    DeniedError,
    InvalidInputError,
    PeatError,
    UnavailableError,
)
from peat_p2p.wire.errors import RemoteError


@pytest.fixture
async def client(address):
    async with SidecarClient(address, timeout=5) as client:
        yield client


async def test_status_peers_and_sync(client):
    assert await client.get_status() == Status("n", "e@h:1", True, 0, "ready")
    await client.connect_peer("f" * 64, ["h:1", "h:2"])
    assert await client.list_peers() == [Peer("f" * 64, ("h:1", "h:2"), True)]
    await client.disconnect_peer("f" * 64)
    assert await client.list_peers() == []
    await client.stop_sync()
    await client.start_sync()
    assert await client.get_sync_stats() == SyncStats(True, 2, 2**40, 1)
    info = await client.get_node()
    assert (info.roles, dict(info.labels)) == (("agent", "hub"), {"a": "b"})
    assert await client.list_links() == [Link("e", "", "", "", "connected", "", "", 0, 0, 1.5)]


async def test_documents(client):
    assert await client.get_document("c", "a") is None
    await client.put_document("c", "a", {"x": 1, "s": "é"})
    await client.put_document("c", "a", '{"y": [true, null]}')
    assert await client.get_document("c", "a") == {"x": 1, "s": "é", "y": [True, None]}
    assert await client.list_documents("c") == ["a"]
    assert await client.read_collection("c") == {"a": {"x": 1, "s": "é", "y": [True, None]}}
    await client.delete_document("c", "a")
    assert await client.get_document_text("c", "a") is None


@pytest.mark.parametrize("document", [{"x": object()}, {"x": float("nan")}, {"x": float("inf")}])
async def test_what_is_not_json_is_refused_before_it_is_sent(client, sidecar, document):
    with pytest.raises(InvalidInputError, match="JSON"):
        await client.put_document("c", "a", document)
    assert sidecar.calls == []


async def test_typed_values_come_back_as_they_went(client):
    platform = Platform(id="p", status=2, latitude=1.5, capabilities=("a",), callsign="")
    cell = Cell(id="c", platform_count=3, leader_id="p")
    track = Track(id="t", altitude_m=0.0, category=1)
    command = Command(id="k", target_id="a", status=CommandStatus.PENDING, expires_at=2**62, payload_json="{}")
    await client.put_platform(platform)
    await client.put_cell(cell)
    await client.put_track(track)
    await client.put_command(command)
    assert await client.get_platforms() == [platform]
    assert await client.get_cells() == [cell]
    assert await client.get_tracks() == [track]
    assert await client.get_commands() == [command]
    assert type((await client.get_platforms())[0].status) is int


async def test_a_read_is_tried_again_and_a_write_is_not(client, sidecar, unavailable):
    sidecar.failures = [unavailable, unavailable]
    assert (await client.get_status()).node_id == "n"
    assert sidecar.calls == ["GetStatus"] * 3
    sidecar.calls.clear()
    sidecar.failures = [unavailable]
    with pytest.raises(UnavailableError, match="busy"):
        await client.put_document("c", "a", {})
    assert sidecar.calls == ["PutDocument"]


async def test_a_read_is_not_tried_for_ever(client, sidecar, unavailable):
    sidecar.failures = [unavailable] * 10
    with pytest.raises(UnavailableError, match="busy"):
        await client.get_status()
    assert len(sidecar.calls) == 3


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.INVALID_ARGUMENT, InvalidInputError),
        (Code.PERMISSION_DENIED, DeniedError),
        (Code.UNAUTHENTICATED, DeniedError),
        (Code.INTERNAL, RemoteError),
    ],
)
async def test_an_answer_is_an_answer_and_is_not_asked_for_again(client, sidecar, code, kind):
    sidecar.failures = [ConnectError(code, "because")]
    with pytest.raises(kind, match="because"):
        await client.get_status()
    assert len(sidecar.calls) == 1


async def test_nobody_there_names_the_address(unused_address):
    async with SidecarClient(unused_address) as client:
        with pytest.raises(UnavailableError, match=f"sidecar at {unused_address}: Connect call failed|refused"):
            await client.get_status()
        with pytest.raises(UnavailableError, match=unused_address):
            await client.put_document("c", "a", {})


async def test_a_call_ends_with_its_time_limit(address):
    async with SidecarClient(address, timeout=0.2) as client:
        started = time.monotonic()
        with pytest.raises(UnavailableError, match=f"{address} did not answer within 0.2 s"):
            await client.put_document("slow", "a", {})
        assert time.monotonic() - started < 2


async def test_cancellation_stays_cancellation(client):
    async def call():
        await client.put_document("slow", "a", {})

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await call()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(call())
        await asyncio.sleep(0.1)
        task.cancel()
    assert task.cancelled()


async def test_outside_its_context_the_client_says_it_is_closed(address):
    client = SidecarClient(address)
    with pytest.raises(UnavailableError, match="closed"):
        await client.get_status()
    async with client:
        await client.get_status()
    with pytest.raises(UnavailableError, match="closed"):
        await client.get_status()


async def test_many_calls_at_once(client, sidecar):
    async with asyncio.TaskGroup() as group:
        for n in range(200):
            group.create_task(client.put_document("c", str(n), {"n": n}))
    assert len(await client.read_collection("c")) == 200


async def test_every_error_is_of_the_project(client, sidecar):
    for code in Code:
        sidecar.failures = [ConnectError(code, "x")] * 3
        with pytest.raises(PeatError):
            await client.get_status()
        sidecar.failures = []
