"""A whole fleet's documents in one replica: memory, restart, heartbeats, filling an empty peer; figures on stdout."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from peat_p2p.core.clock import SystemClock
from peat_p2p.documents.authority import FormationAuthority
from peat_p2p.documents.judging import FormationJudge
from peat_p2p.documents.keys import certificate_key
from peat_p2p.documents.ledger import open_ledger
from peat_p2p.documents.replica import Replica
from peat_p2p.documents.rules import Rules
from peat_p2p.documents.store import MemoryStore
from peat_p2p.documents.types import Limits, Verdict
from peat_p2p.trust.anchor import TrustAnchor
from peat_p2p.trust.certificates import ca_certificate, key_pem, node_certificate
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.identity import NodeUri, Role

# Opens the database as a restarted sidecar would, and lives through two rounds of heartbeats.
RESTART = """
import asyncio, json, pickle, sys, time
from pathlib import Path
from peat_p2p.core.clock import SystemClock
from peat_p2p.documents.chain import Chain
from peat_p2p.documents.codec import encode_update
from peat_p2p.documents.replica import Replica
from peat_p2p.documents.types import Beat, BeatUpdate, SnapshotComplete, Verdict
from peat_p2p.trust.credentials import NodeCredentials

def megabytes():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024

async def main():
    seeds = pickle.loads(Path(sys.argv[3]).read_bytes())
    found = {"before_mb": megabytes()}
    begin, cpu = time.monotonic(), time.process_time()
    async with Replica.open(Path(sys.argv[2]), NodeCredentials.load(Path(sys.argv[1])), SystemClock()) as replica:
        found["ready_s"], found["ready_cpu_s"] = time.monotonic() - begin, time.process_time() - cpu
        found["documents"] = replica.counts().documents
        found["ready_mb"] = megabytes()
        for collection in replica.collections():
            replica.read(collection)
        found["all_read_mb"] = megabytes()
        with replica.subscribe(["platforms"]) as feed:
            while not isinstance(await anext(feed), SnapshotComplete):
                pass
            keys = [key for _, key in replica.changed_since(3, 0, 10**6) if key.collection == "platforms"]
            busy = size = 0
            for turn in (30, 60):
                beats = [BeatUpdate(key, Beat(turn, Chain(*seeds[key.doc_id]).preimage(turn))) for key in keys]
                for start in range(0, len(beats), 17):  # a tenth of a second's
                    some = beats[start : start + 17]
                    cpu = time.process_time()
                    head = replica.head(3)
                    outcomes = await replica.apply(some, "ab" * 32)
                    assert all(outcome.verdict is Verdict.APPLIED for outcome in outcomes)
                    for _, key in replica.changed_since(3, head, 100):  # to two other links
                        size = max(size, len(encode_update(replica.make_update(key, head))))
                        encode_update(replica.make_update(key, head))
                    for _ in some:
                        await anext(feed)
                    busy += time.process_time() - cpu
            found["beat_bytes"] = size
            found["core_share_at_167"] = busy / (2 * len(keys)) * 167
        found["end_mb"] = megabytes()
    print(json.dumps(found))

asyncio.run(main())
"""


class Formation:
    """A CA in memory: a fleet's worth of nodes without files."""

    def __init__(self) -> None:
        self.now = SystemClock().wall()
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = ca_certificate("large", self.key, self.now)
        self.pem = self.certificate.public_bytes(Encoding.PEM)
        self.anchor = TrustAnchor.load(self.pem)

    def node(self, name: str, role: Role, directory: Path) -> NodeCredentials:
        key = ec.generate_private_key(ec.SECP256R1())
        uri = NodeUri("large", name, frozenset({role}))
        certificate = node_certificate(uri, key.public_key(), 365, self.now, self.certificate, self.key)
        identity = self.anchor.verify(certificate.public_bytes(Encoding.DER), self.now)
        return NodeCredentials(directory, identity, self.anchor, key, b"", b"", b"")


def agents_documents(name: str, now: int):
    text = json.dumps
    yield (
        "platforms",
        name,
        {
            "agent_id": text(name),
            "platform_type": '"uds-remote-agent"',
            "version": '"1.2.3"',
            "architecture": '"amd64"',
            "k8s_version": '"v1.31.2+k3s1"',
            "k8s_node_status": '"Ready"',
            "labels": text({"region": "north", "tier": "edge"}),
            "last_seen": str(now),
            "name": text(name),
            "endpoint_id": text("ab" * 32),
            "swarm": text({"swarm": ["10.0.0.1:6881"], "metadata": ["10.0.0.1:6882"]}),
            "workloads": text([{"name": f"w{number}", "status": "running"} for number in range(4)]),
        },
    )
    for number in range(5):
        package = {"agent_id": text(name), "package": text(f"p{number}"), "version": '"1.0.0"', "last_seen": str(now)}
        yield "deployments", f"{name}:p{number}", {**package, "status": '"deployed"', "path": text(f"/opt/p{number}")}
        held = {"pull_status": "3", "total_bytes": "123456789", "manifest": text("blake3:" + "cd" * 32)}
        yield "packages", f"{name}:p{number}:1.0.0-amd64", {**package, "registry": '"local"', "arch": '"amd64"', **held}


def updates_of(credentials: NodeCredentials, now: float):
    """All that a sidecar of one agent would send to an empty peer, and the seed of its chain."""
    store, judge = MemoryStore(), FormationJudge(credentials.anchor)
    authority = FormationAuthority(credentials)
    ledger = open_ledger(store, authority, Limits(), Rules(), os.urandom, now, judge=judge, chain_length=128)
    for collection, doc_id, fields in agents_documents(credentials.identity.node_id, int(now)):
        ledger.desk.put(collection, doc_id, fields, now)
    ledger.flush(store)
    ledger.tend(now)
    ledger.flush(store)
    (chain,) = ledger.shelf.chains.values()
    found = [ledger.make_update(certificate_key(credentials.identity.endpoint_id))]
    for klass in range(4):
        for _, key in ledger.changed_since(klass, 0, 100):
            found.append(ledger.make_update(key))
    return found, (chain.seed, chain.length)


async def measure(agents: int, directory: Path) -> dict[str, float]:
    formation = Formation()
    hub = formation.node("hub", Role.HUB, directory)
    (directory / "ca.crt").write_bytes(formation.pem)
    (directory / "node.key").write_bytes(key_pem(hub.private_key))
    certificate = x509.load_der_x509_certificate(hub.identity.certificate)
    (directory / "node.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    seeds = {}
    fill = fill_cpu = 0.0
    count = 0
    async with Replica.open(directory / "documents.db", hub, SystemClock()) as replica:
        for first in range(0, agents, 100):
            updates = []
            for number in range(first, min(first + 100, agents)):
                credentials = formation.node(f"agent-{number:05d}", Role.AGENT, directory)
                some, seeds[f"agent-{number:05d}"] = updates_of(credentials, formation.now)
                updates += some
            begin, cpu = time.monotonic(), time.process_time()
            outcomes = await replica.apply(updates, "ab" * 32)
            fill += time.monotonic() - begin
            fill_cpu += time.process_time() - cpu
            count += len(updates)
            assert {outcome.verdict for outcome in outcomes} <= {Verdict.APPLIED, Verdict.STALE}
    (directory / "seeds").write_bytes(pickle.dumps(seeds))
    arguments = [str(directory), str(directory / "documents.db"), str(directory / "seeds")]
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", RESTART, *arguments], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    found |= {"agents": agents, "fill_s": fill, "fill_cpu_s": fill_cpu, "fill_updates": count}
    found["file_mb"] = (directory / "documents.db").stat().st_size / 1e6
    return found


async def test_a_small_fleet_in_one_replica(tmp_path):
    found = await measure(50, tmp_path)
    assert found["documents"] == 50 * 11
    assert found["beat_bytes"] <= 20
    assert found["end_mb"] - found["before_mb"] < 40


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_five_thousand_agents_in_one_replica(tmp_path):
    found = await measure(5000, tmp_path)
    print(json.dumps(found))
    # What it costs in time and memory has its bars in `python -m bench mesh scale`.
    assert found["documents"] == 55_000
    assert found["beat_bytes"] <= 20
