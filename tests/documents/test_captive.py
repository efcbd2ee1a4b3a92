"""A captured node with the formation's certificate of an agent can lie about itself and about nothing else."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from peat_p2p.core.errors import DeniedError
from peat_p2p.documents.authority import FormationAuthority
from peat_p2p.documents.replica import Replica
from peat_p2p.documents.rules import Rules
from peat_p2p.documents.store import MemoryStore
from peat_p2p.documents.types import BeatUpdate, CertificateUpdate, Limits, SnapshotComplete, Verdict
from peat_p2p.documents.view import EqualJudge


@pytest.fixture
async def captive(nodes, clock):
    """A replica that obeys nothing: it accepts and writes whatever it is told to."""
    authority = FormationAuthority(nodes["captive"], lambda claim: "")
    replica = Replica(MemoryStore(), authority, clock, Limits(), Rules(), EqualJudge())
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(replica.running())
        yield replica


def fields(replica, collection, doc_id):
    document = replica.get(collection, doc_id)
    return json.loads(document.json) if document else None


@pytest.mark.parametrize("captive_first", [True, False])
async def test_a_hubs_command_cannot_be_overwritten_or_deleted(make, captive, sync, clock, captive_first):
    hub, edge = await make("hub"), await make("edge")
    command = {"target_id": "edge", "command_type": "pull", "status": 1}
    await hub.put("commands", "c1", json.dumps(command))
    await sync(hub, captive)
    clock.advance(60)
    await captive.put("commands", "c1", '{"target_id":"captive","command_type":"deploy","status":5}')
    sources = [captive, hub] if captive_first else [hub, captive]
    for source in sources:
        await sync(source, edge)
    assert fields(edge, "commands", "c1") == command
    await captive.delete("commands", "c1")
    await sync(captive, edge)
    assert fields(edge, "commands", "c1") == command
    await edge.put("commands", "c1", '{"status":3}')
    await sync(edge, hub)
    await sync(captive, hub)
    assert fields(hub, "commands", "c1") == {**command, "status": 3}, "whom it is for says what became of it"


@pytest.mark.parametrize("claim_known_first", [True, False])
async def test_an_agents_documents_are_its_own(make, captive, sync, clock, claim_known_first):
    hub, edge = await make("hub"), await make("edge")
    with hub.subscribe(["platforms"]) as feed:
        await anext(feed)
        if claim_known_first:
            await edge.put("platforms", "edge", '{"last_seen":1700000000,"name":"edge"}')
            await sync(edge, hub)
            await anext(feed)
        clock.advance(60)
        await captive.put("platforms", "edge", '{"last_seen":1,"name":"lie"}')
        await captive.put("packages", "edge:tool:1-amd64", '{"version":"6.6.6"}')
        await captive.put("platforms", "drone", '{"name":"a device without a sidecar"}')
        await sync(captive, hub)
        if not claim_known_first:
            # Nobody known speaks for `edge`, so a member's word is all there is; the feed takes it back afterwards.
            assert fields(hub, "platforms", "edge") == {"last_seen": 1, "name": "lie"}
            await edge.put("platforms", "edge", '{"last_seen":1700000000,"name":"edge"}')
            await sync(edge, hub)
        assert fields(hub, "platforms", "edge") == {"last_seen": 1700000000, "name": "edge"}
        assert hub.get("packages", "edge:tool:1-amd64") is None
        assert fields(hub, "platforms", "drone") == {"name": "a device without a sidecar"}
        seen = {}
        while set(seen) != {"edge", "drone"} or seen["edge"].document != hub.get("platforms", "edge"):
            event = await anext(feed)
            seen[event.doc_id] = event


async def test_an_operator_may_set_a_field_on_an_agents_document(make, sync):
    alpha, edge, hub = await make("alpha"), await make("edge"), await make("hub")
    await edge.put("platforms", "edge", '{"last_seen":1700000000}')
    await alpha.put("platforms", "edge", '{"label":"north"}')
    for source in (edge, alpha):
        await sync(source, hub)
    assert fields(hub, "platforms", "edge") == {"label": "north", "last_seen": 1700000000}


async def test_what_nobody_would_see_is_refused_at_home(make, sync):
    edge, hub = await make("edge"), await make("hub")
    await hub.put("commands", "c1", '{"target_id":"other","status":1}')
    await sync(hub, edge)
    for attempt in (
        edge.put("platforms", "hub", '{"name":"lie"}'),
        edge.put("commands", "c1", '{"status":3}'),
        edge.put("revocations", "r1", '{"a":1}'),
        edge.delete("commands", "c1"),
    ):
        with pytest.raises(DeniedError, match="edge"):
            await attempt
    # A command of a client in the field is stored all the same; nobody else acts on it.
    assert fields(edge, "commands", "c1") == {"target_id": "other", "status": 1}
    await edge.put("commands", "mine", '{"target_id":"hub"}')


async def test_only_who_may_order_writes_orders(make, captive, sync):
    hub = await make("hub")
    await captive.put("revocations", "endpoint:x", '{"a":1}')
    outcomes = await sync(captive, hub)
    refused = [outcome for outcome in outcomes if outcome.verdict is Verdict.REJECTED]
    assert [outcome.reason[:8] for outcome in refused] == ["policy: "]
    assert hub.get("revocations", "endpoint:x") is None


async def one_update(replica, klass, collection):
    (key,) = [key for _, key in replica.changed_since(klass, 0, 100) if key.collection == collection]
    return replica.make_update(key)


async def test_nothing_can_be_forged_or_changed_on_the_way(make, captive, sync, nodes):
    hub, edge = await make("hub"), await make("edge")
    await hub.put("commands", "c1", '{"a":1}')
    await captive.put("commands", "c1", '{"a":2}')
    await sync(captive, edge)
    real, fake = await one_update(hub, 0, "commands"), await one_update(captive, 0, "commands")
    certificate = hub.make_update(hub.certificate_key(hub.node.endpoint_id))
    assert (await edge.apply([real], "x"))[0].verdict is Verdict.NEED_CERTIFICATE
    assert (await edge.apply([certificate], "x"))[0].verdict is Verdict.APPLIED
    forged = [
        replace(fake, key=real.key),
        replace(real, payload=fake.payload),
        replace(real, version=real.version + 1),
        replace(real, generation=real.generation + 1),
        replace(real, key=real.key._replace(doc_id="c2")),
        replace(real, key=real.key._replace(collection="manifests")),
        replace(real, key=real.key._replace(incarnation=real.key.incarnation + 1)),
        replace(real, signature=bytes(64)),
        replace(real, signature=b"short"),
        replace(real, payload=b""),
        replace(real, key=real.key._replace(doc_id="")),
        replace(real, key=real.key._replace(collection="_beacon.0")),
        replace(real, key=real.key._replace(collection="_unknown")),
    ]
    outcomes = await edge.apply(forged, "x")
    assert {outcome.verdict for outcome in outcomes} == {Verdict.REJECTED}
    assert all(outcome.reason for outcome in outcomes)
    assert fields(edge, "commands", "c1") == {"a": 2}
    assert (await edge.apply([real], "x"))[0].verdict is Verdict.APPLIED
    assert fields(edge, "commands", "c1") == {"a": 1}


async def test_a_certificate_counts_for_its_own_key_and_formation_only(make, nodes):
    edge = await make("edge")
    stranger, hub = nodes["stranger"].identity, nodes["hub"].identity
    for origin, certificate in (
        (stranger.endpoint_id, stranger.certificate),
        (hub.endpoint_id, nodes["captive"].identity.certificate),
        (hub.endpoint_id, b"nonsense"),
    ):
        (outcome,) = await edge.apply([CertificateUpdate(edge.certificate_key(origin), certificate)], "x")
        assert outcome.verdict is Verdict.REJECTED
        assert edge.certificate(origin) is None


async def test_a_proof_of_life_cannot_be_made_up(make, sync):
    edge, hub = await make("edge"), await make("hub")
    await edge.put("platforms", "edge", '{"last_seen":1700000000}')
    cursors = {}
    await sync(edge, hub, cursors)
    await edge.put("platforms", "edge", '{"last_seen":1700000030}')
    (key,) = [key for _, key in edge.changed_since(3, cursors[3], 10)]
    real = edge.make_update(key, cursors[3])
    assert isinstance(real, BeatUpdate)
    for beat in (
        replace(real.beat, position=real.beat.position + 1),
        replace(real.beat, preimage=bytes(16)),
        replace(real.beat, position=1 << 30),
    ):
        (outcome,) = await hub.apply([replace(real, beat=beat)], "x")
        assert outcome.verdict is Verdict.NEED_FULL
    assert fields(hub, "platforms", "edge") == {"last_seen": 1700000000}
    assert (await hub.apply([real], "x"))[0].verdict is Verdict.APPLIED
    assert (await hub.apply([real], "x"))[0].verdict is Verdict.STALE
    assert fields(hub, "platforms", "edge") == {"last_seen": 1700000030}


@pytest.mark.parametrize("revoked_first", [True, False])
async def test_a_revoked_nodes_word_counts_for_nothing(make, captive, sync, nodes, clock, revoked_first):
    from peat_p2p.trust.revocation import Revocation, seal_revocation

    alpha, hub = await make("alpha"), await make("hub")
    await captive.put("platforms", "captive", '{"last_seen":1700000000}')
    await captive.put("things", "one", '{"a":1}')
    await alpha.put("things", "one", '{"a":0,"b":2}')
    await sync(alpha, captive)
    clock.advance(60)
    await captive.put("things", "one", '{"a":3}')
    revocation = Revocation.of_endpoint(captive.node.endpoint_id, reason="lost", created_at=int(clock.wall()))
    document = json.dumps(seal_revocation(nodes["hub"], revocation))
    if revoked_first:
        await hub.put("revocations", revocation.doc_id, document)
    for source in (captive, alpha):
        await sync(source, hub)
    with hub.subscribe() as feed:
        while not isinstance(await anext(feed), SnapshotComplete):
            pass
        if not revoked_first:
            assert fields(hub, "things", "one") == {"a": 3, "b": 2}
            await hub.put("revocations", revocation.doc_id, document)
            seen = {event.doc_id: event.document for event in [await anext(feed) for _ in range(3)]}
            assert seen["captive"] is None
    assert fields(hub, "things", "one") == {"a": 0, "b": 2}
    assert hub.get("platforms", "captive") is None
    await hub.delete("revocations", revocation.doc_id)
    assert fields(hub, "things", "one") == {"a": 3, "b": 2}


async def test_one_node_cannot_fill_the_others(make, captive, sync):
    hub = await make("hub", limits=Limits(agent_bytes=20_000))
    await captive.put("platforms", "captive", '{"last_seen":1700000000}')
    await sync(captive, hub)
    for number in range(30):
        await captive.put("things", str(number), json.dumps({"a": "x" * 1000}))
        outcomes = await sync(captive, hub)
    refused = [outcome for outcome in outcomes if outcome.verdict is Verdict.REJECTED]
    assert "more than 20000 bytes" in refused[0].reason
    assert 10 < len(hub.ids("things")) < 20


async def test_a_node_is_told_when_it_has_written_too_much(make):
    from peat_p2p.core.errors import ExhaustedError

    edge = await make("edge", limits=Limits(agent_bytes=5000))
    with pytest.raises(ExhaustedError, match="5000"):
        for number in range(10):
            await edge.put("things", str(number), json.dumps({"a": "x" * 1000}))
    await edge.delete("things", "0")
    await edge.delete("things", "1")
    await edge.put("things", "last", '{"a":1}')


async def test_the_end_of_time_gives_no_power_over_who_counts_for_more(make, captive, sync):
    from peat_p2p.core.errors import ConflictError
    from peat_p2p.documents.content import Content, Value
    from peat_p2p.documents.stamps import MAX_STAMP

    hub, edge = await make("hub"), await make("edge")
    for collection in ("manifests", "things"):
        await captive.put(collection, "one", '{"a":1}')
        key = captive._desk.key(collection, "one")
        captive._desk.reissue(key, Content({"a": Value(MAX_STAMP, "1")}), 0)
        await captive._durable()
    for replica in (hub, edge):
        await sync(captive, replica)
    assert (await hub.put("manifests", "one", '{"a":2}')).json == '{"a":2}'
    for collection in ("manifests", "things"):
        with pytest.raises(ConflictError, match="end of time"):
            await edge.put(collection, "one", '{"a":3}')
