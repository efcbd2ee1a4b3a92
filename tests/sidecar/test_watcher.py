import asyncio
import contextlib
import json
import logging

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.client import SidecarClient
from peat_p2p.core.clock import ManualClock
from peat_p2p.core.errors import ConfigError, InvalidInputError
from peat_p2p.documents.replica import Replica
from peat_p2p.sidecar import observed
from peat_p2p.sidecar.watcher import LIST_PACKAGES, LIST_PULLED, Watcher
from peat_p2p.trust.credentials import NodeCredentials

STATUS = {
    "version": "1.2",
    "architecture": "amd64",
    "classification": "U",
    "k8sVersion": "v1.30",
    "k8sNodeStatus": "Ready",
    "zarfVersion": "v0.40",
    "runMode": "agent",
    "systemTime": "1700000000",
}
PACKAGES = {
    "packages": [
        {"name": "core", "version": "1", "status": 2, "flavor": "upstream", "namespaceOverride": "ns"},
        {"name": "extra", "version": "2", "status": "7", "annotations": {"a": "b", "c": 5}},
    ]
}
TAG = {
    "reference": "core:1",
    "arch": "amd64",
    "version": "1",
    "totalBytes": "9007199254740993",
    "pullInfo": {"downloadedBytes": 5, "status": 3},
}
PULLED = {
    "registries": [
        {
            "name": "reg",
            "host": "reg.example",
            "packages": [{"repoName": "defense/core", "packageName": "core", "tags": [TAG]}],
        }
    ]
}


class Agent:
    """An agent that only answers."""

    def __init__(self):
        self.answers = {"/status": STATUS, LIST_PACKAGES: PACKAGES, LIST_PULLED: PULLED}
        self.asked = []

    async def answer(self, request):
        self.asked.append((request.method, request.path, await request.text()))
        answer = self.answers.get(request.path)
        if isinstance(answer, int):
            return web.Response(status=answer)
        if isinstance(answer, bytes):
            return web.Response(body=answer)
        return web.json_response(answer)


@pytest.fixture
async def agent():
    return Agent()


@pytest.fixture
async def url(agent):
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", agent.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def replica(node_config):
    credentials = NodeCredentials.load(node_config().formation)
    async with Replica.open(None, credentials, ManualClock()) as replica:
        yield replica


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
async def poll(url, replica, clock):
    watcher = Watcher(url, "edge", replica, clock, interval=10)
    async with aiohttp.ClientSession() as session:
        yield lambda: watcher.poll(session)


def stored(replica, collection):
    return {it.doc_id: json.loads(it.json) for it in replica.read(collection)}


async def test_what_the_agent_says_becomes_documents(poll, replica, agent, clock):
    assert await poll()
    now = int(clock.now)
    assert stored(replica, "platforms") == {
        "edge": {
            "agent_id": "edge",
            "platform_type": "uds-remote-agent",
            "version": "1.2",
            "architecture": "amd64",
            "classification": "U",
            "k8s_version": "v1.30",
            "k8s_node_status": "Ready",
            "zarf_version": "v0.40",
            "run_mode": "agent",
            "last_seen": now,
        }
    }
    deployments = stored(replica, "deployments")
    assert deployments.keys() == {"edge:core", "edge:extra"}
    assert deployments["edge:core"] == {
        "agent_id": "edge",
        "package": "core",
        "version": "1",
        "status": 2,
        "flavor": "upstream",
        "namespace_override": "ns",
        "annotations": {},
        "last_seen": now,
    }
    assert (deployments["edge:extra"]["status"], deployments["edge:extra"]["annotations"]) == (7, {"a": "b"})
    assert stored(replica, "packages") == {
        "edge:core:1-amd64": {
            "agent_id": "edge",
            "registry": "reg",
            "package": "core",
            "reference": "core:1",
            "arch": "amd64",
            "version": "1",
            "total_bytes": 9007199254740993,
            "held_bytes": 5,
            "pull_status": 3,
            "last_seen": now,
        }
    }
    assert agent.asked == [("GET", "/status", ""), ("POST", LIST_PACKAGES, "{}"), ("POST", LIST_PULLED, "{}")]


async def test_what_went_away_is_retired_and_nothing_of_others(poll, replica, agent):
    await replica.put("deployments", "edge2:core", '{"agent_id":"edge2"}')
    await replica.put("packages", "other:x:1-amd64", '{"agent_id":"other"}')
    await poll()
    agent.answers |= {LIST_PACKAGES: {"packages": PACKAGES["packages"][:1]}, LIST_PULLED: {}}
    await poll()
    assert stored(replica, "deployments").keys() == {"edge:core", "edge2:core"}
    assert stored(replica, "packages").keys() == {"other:x:1-amd64"}


async def test_what_is_the_same_is_not_written_again(poll, replica, clock):
    await poll()
    clock.advance(10)
    before = {c: [(d.doc_id, d.version) for d in replica.read(c)] for c in ("deployments", "packages")}
    await poll()
    after = {c: [(d.doc_id, d.version) for d in replica.read(c)] for c in ("deployments", "packages")}
    assert after == before
    assert stored(replica, "platforms")["edge"]["last_seen"] == int(clock.now)


@pytest.mark.parametrize(
    "answer", [500, 404, b"not json", b"[]", b'{"packages": 5, "registries": "x"}', b"[" * 100_000]
)
async def test_a_list_that_cannot_be_read_retires_nothing(poll, replica, agent, answer, caplog):
    await poll()
    agent.answers |= {LIST_PACKAGES: answer, LIST_PULLED: answer}
    with caplog.at_level(logging.INFO):
        assert await poll()
        assert await poll()
    assert stored(replica, "deployments").keys() == {"edge:core", "edge:extra"}
    assert stored(replica, "packages").keys() == {"edge:core:1-amd64"}
    assert sum("cannot read" in message for message in caplog.messages) == 2


@pytest.mark.parametrize("answer", [500, b"", b"null"])
async def test_an_agent_that_does_not_answer_is_not_said_to_be_alive(poll, replica, agent, answer):
    agent.answers["/status"] = answer
    assert not await poll()
    assert stored(replica, "platforms") == {}
    assert [path for _, path, _ in agent.asked] == ["/status"]


async def test_a_newcomer_and_a_return_are_logged_once(poll, agent, caplog):
    with caplog.at_level(logging.INFO):
        await poll()
        agent.answers["/status"] = 503
        await poll()
        await poll()
        agent.answers["/status"] = STATUS
        await poll()
    said = " ".join(caplog.messages)
    assert said.count("is new") == 3
    assert said.count("cannot read status") == 1
    assert said.count("can be read again") == 1


async def test_an_agent_that_is_away_is_asked_less_and_less(replica, clock):
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 8:
            raise asyncio.CancelledError

    watcher = Watcher("http://127.0.0.1:1", "edge", replica, clock, interval=10)
    with pytest.raises(asyncio.CancelledError):
        await watcher.run(sleep)
    assert pauses == [20, 40, 80, 160, 300, 300, 300, 300]


async def test_an_address_that_is_none_is_refused(replica, clock):
    with pytest.raises(ConfigError, match="agent to watch"):
        Watcher("127.0.0.1:80", "edge", replica, clock, interval=1)


async def test_the_sidecar_watches_when_told_to(run, url):
    async with run(watch_agent=url, watch_interval_s=0.05) as endpoints, SidecarClient(endpoints.api) as client:
        async with asyncio.timeout(10):
            while len(await client.list_documents("packages")) < 1:
                await asyncio.sleep(0.02)
        assert await client.list_documents("platforms") == ["n1"]


async def test_the_sidecar_watches_nothing_by_default(endpoints, agent, url):
    async with SidecarClient(endpoints.api) as client, contextlib.aclosing(client.subscribe()) as events:
        await anext(events)
    assert agent.asked == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(
    ["packages", "registries", "tags", "name", "reference", "arch", "totalBytes", "pullInfo", "status", "annotations"]
)
shaped = st.recursive(
    json_values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5), max_leaves=20
)


@given(shaped)
def test_whatever_an_agent_answers_is_read_or_refused(answer):
    for read in (observed.heartbeat, observed.deployments, observed.holdings):
        with contextlib.suppress(InvalidInputError):
            json.dumps(read("edge", answer, 5))


@given(st.dictionaries(st.text(max_size=3), st.dictionaries(st.sampled_from("ab"), st.integers(0, 2)), max_size=4))
def test_a_plan_leads_to_what_was_observed(present):
    observed_now = {doc_id: {**fields, "last_seen": 9} for doc_id, fields in list(present.items())[::2]} | {
        "new": {"a": 1, "last_seen": 9}
    }
    plan = observed.plan(present, observed_now)
    result = {doc_id: {**fields, **plan.writes.get(doc_id, {})} for doc_id, fields in present.items()}
    result = {**plan.writes, **result}
    for doc_id in plan.deletes:
        del result[doc_id]
    assert result.keys() == observed_now.keys()
    for doc_id, fields in observed_now.items():
        assert {k: v for k, v in fields.items() if k != "last_seen"}.items() <= result[doc_id].items()
