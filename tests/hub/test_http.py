import asyncio
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from peat_p2p.core.clock import ManualClock
from peat_p2p.hub.history import History
from peat_p2p.hub.http import make_app
from peat_p2p.hub.service import HubService
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.revocation import RevocationSet

NOW = 1_800_000_000
ORDER = {"target_id": "site:north", "command_type": "deploy", "payload": {"package": "app", "version": "1.0"}}


@pytest.fixture
async def api(service: HubService) -> Any:
    async with TestClient(TestServer(make_app(service, node_id="hub-1", max_body_bytes=4096))) as client:
        yield client


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def get(api: Any, path: str, status: int = 200) -> Any:
    answer = await api.get(path)
    body = await answer.json()
    assert answer.status == status, body
    return body


async def test_the_fleet(api: Any, sidecar: Any, clock: ManualClock) -> None:
    sidecar.put("platforms", "edge-1", last_seen=NOW - 5, site="north", heartbeat_interval_s=10, labels={"a": "b"})
    sidecar.put("platforms", "edge-2", last_seen=NOW - 5000, site="south")
    sidecar.put("deployments", "edge-1:app", version="1.0", status="deployed")
    sidecar.put("packages", "edge-1:app:1.0-amd64", package="app", version="1.0", arch="amd64", pull_status=3)
    await settle()
    answer = await get(api, "/api/fleet")
    assert answer["current"] is True and answer["at"] == NOW
    assert answer["counts"] == {"alive": 1, "lost": 1}
    edge = answer["agents"][0]
    assert (edge["agent_id"], edge["liveness"], edge["site"], edge["complete_packages"]) == (
        "edge-1",
        "alive",
        "north",
        1,
    )
    assert edge["deployments"] == [{"package": "app", "version": "1.0", "status": "deployed", "digest": ""}]
    clock.advance(1000)
    assert (await get(api, "/api/fleet"))["counts"] == {"lost": 2}


async def test_packages(api: Any, sidecar: Any) -> None:
    sidecar.put("manifests", "ff", name="app", version="1.10.0", arch="amd64")
    sidecar.put("packages", "edge-1:app:1.9.0-amd64", package="app", version="1.9.0", arch="amd64", pull_status=2,
                held_bytes=1, total_bytes=4)  # fmt: skip
    await settle()
    (app,) = (await get(api, "/api/packages"))["packages"]
    assert app["newest"] == "1.10.0"
    assert [v["version"] for v in app["versions"]] == ["1.10.0", "1.9.0"]
    assert app["versions"][0]["manifests"] == ["blake3:ff"]
    assert app["versions"][1]["holders"] == [
        {"agent_id": "edge-1", "completeness": 0.25, "manifest": "", "liveness": "unknown", "reachable": False}
    ]


async def test_an_order_goes_through_the_sidecar_and_its_receipts_come_back(api: Any, sidecar: Any) -> None:
    for agent in ("edge-1", "edge-2"):
        sidecar.put("platforms", agent, last_seen=NOW, site="north")
    answer = await api.post("/api/commands", json=ORDER)
    made = await answer.json()
    assert answer.status == 201, made
    written = sidecar.documents["commands", made["id"]]
    assert written["target_id"] == "site:north" and written["envelope"]
    sidecar.put("receipts", f"{made['id']}:edge-1", status=3, message="done")
    await settle()
    (listed,) = (await get(api, "/api/commands"))["commands"]
    assert listed["id"] == made["id"] and listed["counts"] == {"completed": 1} and listed["silent"] == ["edge-2"]
    assert listed["receipts"][0]["message"] == "done" and listed["payload"] == ORDER["payload"]
    assert (await get(api, f"/api/commands/{made['id']}"))["gone"] is False


async def test_an_id_is_given_once(api: Any, sidecar: Any) -> None:
    assert (await api.post("/api/commands", json={**ORDER, "id": "c1"})).status == 201
    answer = await api.post("/api/commands", json={**ORDER, "id": "c1"})
    assert answer.status == 409
    assert "c1 already" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_argument"),
        (b"[]", "application/json", 400, "invalid_argument"),
        (b"{}", "application/json; charset=utf-8", 400, "invalid_argument"),
        (b"{}", "text/plain", 400, "invalid_argument"),
        (b'{"payload": "' + b"x" * 5000 + b'"}', "application/json", 413, "too_large"),
    ],
)
async def test_bad_bodies(api: Any, sidecar: Any, body: bytes, kind: str, status: int, code: str) -> None:
    answer = await api.post("/api/commands", data=body, headers={"Content-Type": kind})
    assert (answer.status, (await answer.json())["error"]["code"]) == (status, code)
    assert sidecar.documents == {}


async def test_errors_are_json(api: Any) -> None:
    assert (await get(api, "/nothing", 404))["error"]["code"] == "not_found"
    assert (await get(api, "/api/commands/none", 404))["error"]["message"] == "there is no command none"
    assert (await get(api, "/api/commands?limit=x", 400))["error"]["code"] == "invalid_argument"
    assert (await get(api, "/api/history?before=-1", 400))["error"]["code"] == "invalid_argument"
    answer = await api.put("/api/commands", json={})
    assert answer.status == 405 and (await answer.json())["error"]["code"] == "method_not_allowed"
    assert "POST" in answer.headers["Allow"]


async def test_a_sidecar_out_of_reach_is_said_and_reading_goes_on(api: Any, sidecar: Any) -> None:
    sidecar.put("platforms", "edge-1", last_seen=NOW)
    await settle()
    sidecar.down = True
    answer = await api.post("/api/commands", json=ORDER)
    assert answer.status == 503 and "refused" in (await answer.json())["error"]["message"]
    assert len((await get(api, "/api/fleet"))["agents"]) == 1


async def test_what_fails_unforeseen_tells_nothing(service: HubService, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ZeroDivisionError("the secret")

    monkeypatch.setattr(service, "fleet", broken)
    async with TestClient(TestServer(make_app(service, node_id="hub-1"))) as client:
        answer = await client.get("/api/fleet")
        assert answer.status == 500 and "secret" not in await answer.text()


async def test_a_token_is_asked_for(service: HubService) -> None:
    app = make_app(service, node_id="hub-1", token="a-long-enough-token")
    async with TestClient(TestServer(app)) as client:
        assert (await client.get("/healthz")).status == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic a-long-enough-token"}):
            answer = await client.get("/api/fleet", headers=headers)
            assert answer.status == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
        good = {"Authorization": "Bearer a-long-enough-token"}
        assert (await client.get("/api/fleet", headers=good)).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8080", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example:80", 403), ("10.0.0.1", 403)],
)
async def test_a_page_whose_name_points_here_is_kept_out(api: Any, service: HubService, host: str, status: int) -> None:
    assert (await api.get("/api/fleet", headers={"Host": host})).status == status
    async with TestClient(TestServer(make_app(service, node_id="hub-1", loopback=False))) as open_to_all:
        assert (await open_to_all.get("/api/fleet", headers={"Host": host})).status == 200


async def test_the_history_fills(api: Any, sidecar: Any, service: HubService, history: History) -> None:
    sidecar.put("platforms", "edge-1", last_seen=NOW, site="north")
    sidecar.put("platforms", "edge-1", last_seen=NOW + 30)
    sidecar.put("platforms", "edge-1", site="south")
    sidecar.put("commands", "c1", target_id="*", command_type="pull", created_at=5)
    await settle()
    sidecar.delete("commands", "c1")
    await settle()
    await service._flush()
    events = (await get(api, "/api/history"))["events"]
    assert [(e["kind"], e["doc_id"]) for e in events] == [
        ("gone", "c1"), ("appeared", "c1"), ("changed", "edge-1"), ("appeared", "edge-1"),
    ]  # fmt: skip
    assert events[2]["detail"] == {"site": ["north", "south"]}
    assert len((await get(api, "/api/history?limit=1"))["events"]) == 1
    assert len((await get(api, f"/api/history?before={events[1]['id']}&collection=platforms"))["events"]) == 2
    (past,) = (await get(api, "/api/commands"))["commands"]
    assert past["id"] == "c1" and past["gone_at"] == NOW
    told = await get(api, "/api/commands/c1")
    assert told["gone"] is True and told["target_id"] == "*" and len(told["events"]) == 2


async def test_a_gap_keeps_the_old_answers_until_the_new_ones_are_whole(
    api: Any, sidecar: Any, service: HubService, history: History
) -> None:
    sidecar.put("platforms", "edge-1", last_seen=NOW)
    sidecar.put("platforms", "edge-2", last_seen=NOW)
    await settle()
    from peat_p2p.client.model import Gap, SnapshotComplete, Upserted

    service.take(Gap("lagged"))
    answer = await get(api, "/api/fleet")
    assert len(answer["agents"]) == 2 and answer["current"] is False
    service.take(Upserted("platforms", "edge-2", "{}", {"last_seen": NOW}))
    assert len((await get(api, "/api/fleet"))["agents"]) == 2
    service.take(SnapshotComplete())
    answer = await get(api, "/api/fleet")
    assert [a["agent_id"] for a in answer["agents"]] == ["edge-2"] and answer["current"] is True
    await service._flush()
    assert [(d.doc_id, d.gone_at) for d in history.documents("platforms", gone=True, limit=9)] == [("edge-1", NOW)]


async def test_notes_are_bounded_while_the_history_cannot_be_written(
    sidecar: Any, service: HubService, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peat_p2p.core.errors import ExhaustedError
    from peat_p2p.hub import service as module

    def full(entries: Any) -> None:
        raise ExhaustedError("the disk is full")

    monkeypatch.setattr(module, "MAX_UNWRITTEN", 10)
    with monkeypatch.context() as broken:
        broken.setattr(history, "record", full)
        for n in range(25):
            sidecar.put("platforms", f"edge-{n}", last_seen=NOW)
        await settle()
        await service._flush()
    await service._flush()
    assert [e.doc_id for e in history.events(limit=100)] == [f"edge-{n}" for n in range(24, 14, -1)]


async def test_a_command_is_withdrawn(api: Any, sidecar: Any) -> None:
    made = await (await api.post("/api/commands", json=ORDER)).json()
    await settle()
    assert (await api.delete(f"/api/commands/{made['id']}")).status == 204
    await settle()
    assert sidecar.documents == {}
    assert (await api.delete(f"/api/commands/{made['id']}")).status == 404


async def test_a_node_and_a_package_are_revoked(api: Any, sidecar: Any, credentials: NodeCredentials) -> None:
    sidecar.put("platforms", "edge-1", last_seen=NOW, endpoint_id="ab" * 32)
    await settle()
    answer = await api.post("/api/revocations", json={"node_id": "edge-1", "reason": "lost"})
    assert (answer.status, await answer.json()) == (
        201,
        {"kind": "endpoint", "subject": "ab" * 32, "reason": "lost", "created_at": NOW, "by": "hub-1"},
    )
    assert (await api.post("/api/revocations", json={"manifest": "blake3:" + "cd" * 32})).status == 201
    sidecar.put("revocations", "package:" + "ef" * 32, kind="package", subject="ef" * 32, created_at=1)
    await settle()
    stored = {d: doc for (c, d), doc in sidecar.documents.items() if c == "revocations"}
    revoked = RevocationSet.read(stored, credentials.anchor)
    assert revoked.endpoints() == {"ab" * 32} and revoked.packages() == {"cd" * 32}
    listed = (await get(api, "/api/revocations"))["revocations"]
    assert sorted((it["subject"][:2], it["by"]) for it in listed) == [("ab", "hub-1"), ("cd", "hub-1")], (
        "unsigned: none"
    )


@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 400), ({"node_id": "a", "endpoint_id": "b"}, 400), ({"node_id": 3}, 400), ({"node_id": "a/b"}, 400),
     ({"endpoint_id": "ab"}, 400), ({"manifest": "ab" * 32, "reason": 3}, 400), ({"what": "x"}, 400),
     ({"manifest": "ab" * 32, "reason": "x" * 1000}, 400), ({"node_id": "unheard-of"}, 404)],
)  # fmt: skip
async def test_bad_revocations(api: Any, sidecar: Any, body: Any, status: int) -> None:
    assert (await api.post("/api/revocations", json=body)).status == status
    assert sidecar.documents == {}


async def test_a_hub_does_not_revoke_itself(api: Any, credentials: NodeCredentials) -> None:
    answer = await api.post("/api/revocations", json={"endpoint_id": credentials.identity.endpoint_id})
    assert answer.status == 409
