import time

import pytest

from peat_p2p.client import (
    Command,
    CommandStatus,
    Deployment,
    Heartbeat,
    Holding,
    Liveness,
    Platform,
    PullStatus,
    Receipt,
    SidecarClient,
)


@pytest.fixture(params=["new", "old"])
async def client(request, address, old_address):
    async with SidecarClient(address if request.param == "new" else old_address, timeout=5) as client:
        yield client


async def test_heartbeats_make_a_fleet(client):
    await client.heartbeat(Heartbeat(agent_id="a", site="s", swarm=("h:1",), labels={"k": "v"}))
    await client.heartbeat(Heartbeat(agent_id="b", last_seen=1))
    a, b = await client.fleet()
    assert (a.agent_id, a.liveness, a.heartbeat.site, dict(a.heartbeat.labels)) == (
        "a",
        Liveness.ALIVE,
        "s",
        {"k": "v"},
    )
    assert abs(a.heartbeat.last_seen - time.time()) < 5
    assert (b.agent_id, b.liveness) == ("b", Liveness.LOST)


async def test_holders_are_those_that_report_and_do_not_retire(client):
    await client.heartbeat(Heartbeat(agent_id="a", swarm=("h:1",)))
    whole = Holding(agent_id="a", package="p", version="1", arch="x", pull_status=PullStatus.COMPLETE, total_bytes=9)
    part = Holding(agent_id="b", package="p", version="1", arch="x", pull_status=PullStatus.PULLING)
    await client.report_holding(whole)
    await client.report_holding(part)
    first, second = await client.holders("p", "1", "x")
    assert (first.agent_id, first.reachable, first.holding.complete) == ("a", True, True)
    assert (second.agent_id, second.reachable) == ("b", False)
    assert await client.holders("p", "2") == []
    assert [h.agent_id for h in await client.holdings("b")] == ["b"]
    await client.retire_holding("a", "p", "1", "x")
    assert [h.agent_id for h in await client.holders("p")] == ["b"]


async def test_deployments(client):
    await client.report_deployment(Deployment(agent_id="a", package="p", version="1", status="deployed"))
    await client.report_deployment(Deployment(agent_id="ab", package="p", version="2", status=1))
    assert [d.version for d in await client.deployments()] == ["1", "2"]
    assert [d.version for d in await client.deployments("a")] == ["1"]
    await client.retire_deployment("a", "p")
    assert [d.agent_id for d in await client.deployments()] == ["ab"]


async def test_commands_are_those_still_to_do(client):
    now = int(time.time())
    for command in (
        Command(id="mine", target_id="a", status=CommandStatus.PENDING, created_at=now),
        Command(id="all", target_id="*", created_at=now - 1),
        Command(id="site", target_id="site:s", created_at=now - 2),
        Command(id="late", target_id="a", expires_at=now - 10),
        Command(id="other", target_id="b"),
    ):
        await client.put_command(command)
    assert [c.id for c in await client.commands("a")] == ["all", "mine"]
    assert [c.id for c in await client.commands("a", "s")] == ["site", "all", "mine"]
    await client.report_receipt(Receipt(command_id="all", agent_id="a", status=CommandStatus.COMPLETED))
    assert [c.id for c in await client.commands("a")] == ["mine"]
    states = {state.command.id: state for state in await client.command_states()}
    assert [r.agent_id for r in states["all"].receipts] == ["a"]


async def test_a_read_of_a_collection_does_not_cost_a_call_per_document(client, sidecar):
    for n in range(50):
        sidecar.documents["c", f"{n:02}"] = {"n": n}
    sidecar.calls.clear()
    assert list(await client.read_collection("c")) == [f"{n:02}" for n in range(50)]
    assert list(await client.read_collection("c", "4")) == [f"4{n}" for n in range(10)]
    assert len(sidecar.calls) <= 4
    assert "GetDocument" not in sidecar.calls


async def test_reading_an_old_sidecar_ends_without_a_marker(old_address, sidecar):
    sidecar.markers = False
    sidecar.documents["c", "a"] = {"n": 1}
    async with SidecarClient(old_address, timeout=5) as client:
        started = time.monotonic()
        assert await client.read_collection("c") == {"a": {"n": 1}}
        assert await client.read_collection("empty") == {}
        assert time.monotonic() - started < 1


async def test_a_report_keeps_what_others_wrote_and_it_did_not(client, sidecar):
    await client.put_platform(Platform(id="a", name="Rover", latitude=1.5))
    await client.put_document("platforms", "a", {"labels": {"by": "operator"}, "site": "north"})
    await client.heartbeat(Heartbeat(agent_id="a", version="1"))
    stored = sidecar.documents["platforms", "a"]
    assert (stored["name"], stored["latitude"], stored["site"]) == ("Rover", 1.5, "north")
    assert (stored["labels"], stored["version"]) == ({"by": "operator"}, "1")
    await client.put_document("deployments", "a:p", {"flavor": "upstream"})
    await client.report_deployment(Deployment(agent_id="a", package="p", version="1"))
    assert sidecar.documents["deployments", "a:p"]["flavor"] == "upstream"
    await client.report_holding(Holding(agent_id="a", package="p", version="1", arch="x", held_bytes=5))
    assert sidecar.documents["packages", "a:p:1-x"].keys() == {
        *("agent_id", "package", "reference", "arch", "version", "held_bytes", "last_seen")
    }


async def test_what_a_report_filled_and_no_longer_does_is_emptied(client, sidecar):
    await client.heartbeat(Heartbeat(agent_id="a", classification="x", labels={"k": "v"}, swarm=("h:1",)))
    await client.heartbeat(Heartbeat(agent_id="a"))
    stored = sidecar.documents["platforms", "a"]
    assert (stored["classification"], stored["labels"]) == ("", {})
    assert stored["swarm"] == {"swarm": [], "metadata": []}
    await client.report_holding(Holding(agent_id="a", package="p", version="1", arch="x", held_bytes=5))
    await client.retire_holding("a", "p", "1", "x")
    await client.report_holding(Holding(agent_id="a", package="p", version="1", arch="x"))
    assert "held_bytes" not in sidecar.documents["packages", "a:p:1-x"]
