"""Updates damaged on the way, or made up from pieces of good ones, enter nothing that their writers did not sign."""

from __future__ import annotations

import random

import pytest

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.documents.codec import decode_update, encode_update
from peat_p2p.documents.replica import Replica
from peat_p2p.documents.types import CertificateUpdate, PartKey, Verdict

CLASSES = range(4)
BATCH = 50


async def written(make, clock) -> dict[str, Replica]:
    """Replicas of a hub and an agent that wrote into every class, in two goes, with a delete and heartbeats."""
    hub, alpha = await make("hub"), await make("alpha")
    await hub.put("commands", "c1", '{"command_id":"c1","a":1}')
    await hub.put("commands", "c2", '{"command_id":"c2"}')
    await hub.delete("commands", "c2")
    await hub.put("blueprints", "b", '{"name":"b","text":"' + "blue" * 60 + '"}')
    for number in range(3):
        await alpha.put("deployments", f"alpha/{number}", '{"agent_id":"alpha","status":2}')
        await alpha.put("packages", f"alpha/{number}", '{"agent_id":"alpha","held_bytes":7}')
    for _ in range(3):
        await alpha.put("platforms", "alpha", f'{{"last_seen":{int(clock.wall())},"name":"alpha"}}')
        clock.advance(30)
    return {"hub": hub, "alpha": alpha}


def updates_of(replica: Replica, cursors: dict[int, int]) -> list[tuple[PartKey, bytes]]:
    """Whole parts, differences, proofs of life and certificates, as they travel."""
    found = []
    for klass in CLASSES:
        for _, key in replica.changed_since(klass, 0, 1000):
            for since in (0, cursors.get(klass, 0)):
                update = replica.make_update(key, since)
                if update is not None:
                    found.append((key, encode_update(update)))
    certificate = replica.certificate_key(replica.node.endpoint_id)
    update = replica.make_update(certificate)
    assert isinstance(update, CertificateUpdate)
    return [*found, (certificate, encode_update(update))]


def mutate(chance: random.Random, records: list[tuple[PartKey, bytes]]) -> tuple[PartKey, bytes]:
    key, data = chance.choice(records)
    other_key, other = chance.choice(records)
    act = chance.randrange(6)
    if act == 0 and other_key != key:
        return other_key, data
    if act == 1:
        at = chance.randrange(1, min(len(data), len(other)) + 1)
        spliced = data[:at] + other[at:]
        if spliced not in (data, other):
            return key, spliced
    if act == 2:
        return key, data[: chance.randrange(len(data))]
    damaged = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(damaged))
        what = chance.randrange(3)
        if what == 0:
            damaged[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            damaged[at : at + 1] = chance.randbytes(chance.randrange(1, 9))
        else:
            del damaged[at : at + chance.randrange(1, 9)]
        if not damaged:
            break
    return key, bytes(damaged)


def state(replica: Replica) -> dict[str, dict[str, str]]:
    return {name: {d.doc_id: d.json for d in replica.read(name)} for name in replica.collections()}


async def fuzz(make, sync, clock, seed: int, count: int) -> None:
    sources = await written(make, clock)
    knowing, empty = await make("bravo"), await make("charlie")
    cursors = {name: {klass: source.head(klass) for klass in CLASSES} for name, source in sources.items()}
    for source in sources.values():
        await sync(source, knowing)
    await sources["hub"].put("commands", "c1", '{"a":2}')
    await sources["alpha"].put("deployments", "alpha/0", '{"status":3}')
    records = [record for name, source in sources.items() for record in updates_of(source, cursors[name])]
    genuine = {(key, data) for key, data in records}
    await knowing.apply([decode_update(key, data) for key, data in records], "x")
    before = state(knowing)
    assert before["commands"] == {"c1": '{"a":2,"command_id":"c1"}'}
    chance = random.Random(seed)
    decoded = refused = 0
    for _ in range(count // BATCH):
        batch = []
        for key, data in (mutate(chance, records) for _ in range(BATCH)):
            if (key, data) in genuine:
                continue
            try:
                batch.append(decode_update(key, data))
                decoded += 1
            except InvalidInputError:
                refused += 1
        await knowing.apply(batch, "x")
        outcomes = await empty.apply(batch, "x")
        refused += sum(outcome.verdict is Verdict.REJECTED for outcome in outcomes)
    assert state(knowing) == before, "a mutated update changed something"
    for name, documents in state(empty).items():
        for doc_id, text in documents.items():
            versions = {source.get(name, doc_id).json for source in sources.values() if source.get(name, doc_id)}
            assert text in versions, "something was taken that nobody wrote"
    assert decoded > count // 2 and refused > count // 5, "the mutations must reach the signatures for this test"
    # What came of it hinders nothing.
    for source in sources.values():
        await sync(source, empty)
    assert state(empty) == before


async def test_mutated_updates_change_nothing(make, sync, clock):
    await fuzz(make, sync, clock, 1, 2_000)


@pytest.mark.soak
async def test_many_mutated_updates_change_nothing(make, sync, clock):
    await fuzz(make, sync, clock, 2, 100_000)
