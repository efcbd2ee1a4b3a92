"""Thirty days of a thousand agents, replayed fast: what a replica keeps must not grow with what it has seen.

Every agent's sidecar is a real writer (the documents' deciding core, with its own key and chains); one replica in a
process of its own, with a real database, takes in what all of them send. Time is simulated. Heartbeats are thinned: a
few bursts a day, so that signed anchors, proofs of life, their overtaking and compaction all happen each day;
the result says how many were replayed. Each day some agents install, remove and install again, some are wiped and come
back as new writers, and some leave for good and are replaced.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from pycrdt import Doc, Map

from bench.mesh_node import heartbeat
from bench.result import Run
from peat_p2p.documents.authority import FormationAuthority
from peat_p2p.documents.judging import FormationJudge
from peat_p2p.documents.keys import certificate_key
from peat_p2p.documents.ledger import Ledger, open_ledger
from peat_p2p.documents.rules import CLASSES, Rules, is_public_name
from peat_p2p.documents.sqlite import SqliteStore
from peat_p2p.documents.store import MemoryStore
from peat_p2p.documents.types import Limits, Update
from peat_p2p.trust.anchor import TrustAnchor
from peat_p2p.trust.certificates import ca_certificate, node_certificate
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.identity import NodeUri, Role

DAY = 86_400
ROUNDS = 3  # signed anchors an agent and day
BEATS = 3  # proofs of life after each
PACKAGES = 5
_START = 1_760_000_000
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(slots=True)
class _Formation:
    """A CA in memory."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    anchor: TrustAnchor

    @classmethod
    def new(cls) -> _Formation:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = ca_certificate("month", key, _START)
        return cls(key, certificate, TrustAnchor.load(certificate.public_bytes(Encoding.PEM)))

    def node(self, name: str, role: Role) -> NodeCredentials:
        key = ec.generate_private_key(ec.SECP256R1())
        uri = NodeUri("month", name, frozenset({role}))
        certificate = node_certificate(uri, key.public_key(), 365, _START, self.certificate, self.key)
        identity = self.anchor.verify(certificate.public_bytes(Encoding.DER), _START)
        return NodeCredentials(Path(), identity, self.anchor, key, b"", b"", b"")

    def papers(self, name: str, role: Role) -> tuple[bytes, bytes, bytes]:
        """What another process makes a node's credentials from: CA in PEM, certificate in DER, key in PEM."""
        node = self.node(name, role)
        key = node.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self.certificate.public_bytes(Encoding.PEM), node.identity.certificate, key


class _Writer:
    """The sidecar of one agent: writes, and tells what changed since it was last asked."""

    def __init__(self, credentials: NodeCredentials, now: float) -> None:
        self.name = credentials.identity.node_id
        self._credentials = credentials
        self.wipe(now)
        self.put("platforms", self.name, heartbeat(self.name, "site"), now)
        for number in range(PACKAGES):
            self.install(number, "1.0", now)

    def wipe(self, now: float) -> None:
        """Lose the database: what is written from now on is a new writer's."""
        self._store = MemoryStore()
        judge = FormationJudge(self._credentials.anchor)
        authority = FormationAuthority(self._credentials)
        self.ledger: Ledger = open_ledger(self._store, authority, Limits(), Rules(), os.urandom, now, judge=judge)
        self._sent = [0] * CLASSES

    def put(self, collection: str, doc_id: str, fields: dict[str, Any], now: float) -> None:
        self.ledger.desk.put(collection, doc_id, {name: json.dumps(value) for name, value in fields.items()}, now)
        self.ledger.flush(self._store)

    def live(self, now: float) -> None:
        self.put("platforms", self.name, {"last_seen": int(now)}, now)

    def install(self, number: int, version: str, now: float) -> None:
        fields = {"agent_id": self.name, "package": f"p{number}", "version": version, "last_seen": int(now)}
        self.put("deployments", f"{self.name}:p{number}", {**fields, "status": 3}, now)
        self.put("packages", f"{self.name}:p{number}", {**fields, "reference": f"p{number}", "pull_status": 3}, now)

    def remove(self, number: int, now: float) -> None:
        for collection in ("deployments", "packages"):
            self.ledger.desk.delete(collection, f"{self.name}:p{number}", now)
        self.ledger.flush(self._store)

    def news(self) -> Iterator[Update]:
        """What a link would send: the certificate first, then what changed since."""
        if not any(self._sent):
            update = self.ledger.make_update(certificate_key(self._credentials.identity.endpoint_id))
            if update is not None:
                yield update
        for klass in range(CLASSES):
            base = self._sent[klass]
            for seq, key in self.ledger.changed_since(klass, base, 1000):
                self._sent[klass] = seq
                update = self.ledger.make_update(key, base)
                if update is not None:
                    yield update


def _replica(pipe: Connection, path: Path, ca_pem: bytes, certificate: bytes, key_pem: bytes) -> None:
    """The process that is measured: takes updates in, keeps house by the day, tells its size."""
    anchor, key = TrustAnchor.load(ca_pem), load_pem_private_key(key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    credentials = NodeCredentials(Path(), anchor.verify(certificate, _START), anchor, key, b"", b"", b"")
    store = SqliteStore(path)
    judge = FormationJudge(credentials.anchor)
    ledger = open_ledger(store, FormationAuthority(credentials), Limits(), Rules(), os.urandom, _START, judge=judge)
    verdicts: dict[str, int] = {}
    while True:
        what, argument, now = pipe.recv()
        if what == "apply":
            for update in argument:
                verdict = ledger.apply(update, "ab" * 32, now).verdict.name
                verdicts[verdict] = verdicts.get(verdict, 0) + 1
            ledger.flush(store)
        elif what == "day":
            ledger.tend(now)
            ledger.flush(store)
            pipe.send(_size(ledger, path) | {"verdicts": dict(verdicts)})
        else:
            store.close()
            return


def _size(ledger: Ledger, path: Path) -> dict[str, Any]:
    with Path("/proc/self/statm").open() as file:
        rss = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    files = [path, path.with_name(path.name + "-wal")]
    live = sum(
        ledger.shelf.document(collection, doc_id) is not None
        for collection in ledger.shelf.collections()
        if is_public_name(collection)
        for doc_id in ledger.shelf.doc_ids(collection)
    )
    stored = sum(file.stat().st_size for file in files if file.exists())
    return {"rss": rss, "stored": stored, "parts": ledger.shelf.part_count, "documents": live}


class _FullHistory:
    """What keeps every change: one shared map of whole documents, its updates appended to a log, each writer of a
    day with a client id of its own, as when every restart takes a fresh one."""

    def __init__(self) -> None:
        self._state: Doc[Map[str]] = Doc()
        self.log_bytes = 0

    def day(self, writers: list[tuple[str, int]]) -> None:
        """Each (document, number of writes) of a day."""
        fresh: Doc[Map[str]] = Doc()
        root = fresh.get("documents", type=Map)
        fresh.apply_update(self._state.get_update())
        for name, count in writers:
            for number in range(count):
                before = fresh.get_state()
                root[name] = json.dumps({**heartbeat(name, "site"), "n": number})
                self.log_bytes += len(fresh.get_update(before))
        self._state = fresh

    @property
    def state_bytes(self) -> int:
        return len(self._state.get_update())


def month(run: Run) -> None:
    agents, days = (60, 12) if run.quick else (1000, 30)
    rng = Random(run.seed)
    formation = _Formation.new()
    run.parameter(
        agents=agents,
        days=days,
        heartbeats_per_agent_and_day=ROUNDS * (1 + BEATS),
        real_heartbeats_per_agent_and_day=DAY // 30,
        replaced_a_day=0.01,
        wiped_a_day=0.01,
        installs_a_day=0.2,
    )
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="peat-bench-month-") as folder:
        ours, theirs = _SPAWN.Pipe()
        replica = _SPAWN.Process(
            target=_replica, args=(theirs, Path(folder) / "documents.db", *formation.papers("hub", Role.HUB))
        )
        replica.start()
        try:
            rows, beats = _days(run, ours, formation, agents, days, rng)
            ours.send(("stop", None, 0))
            replica.join(30)
        finally:
            replica.kill()
            replica.join()
    run.record("heartbeats replayed", beats)
    run.record("replay", time.monotonic() - began, unit="s")
    run.record("days", rows)
    run.record("store at the end", rows[-1]["stored"] / 1e6, unit="MB")
    run.record("memory at the end", rows[-1]["rss"] / 1e6, unit="MB")
    history = _FullHistory()
    log = []
    names = [f"agent-{number:04d}" for number in range(agents)]
    for number in range(1, min(days, 5) + 1):
        history.day([(name, ROUNDS * (1 + BEATS)) for name in names])
        log.append({"day": number, "log": history.log_bytes, "state": history.state_bytes})
    run.baseline("one shared map of whole documents, every update kept (heartbeats alone)", {"days": log})
    run.plot(
        "month",
        f"What one replica keeps of {agents} agents, by day",
        x="day",
        y="MB",
        series={
            "store": [[row["day"], row["stored"] / 1e6] for row in rows],
            "memory of the process": [[row["day"], row["rss"] / 1e6] for row in rows],
            "full history, heartbeats alone": [[row["day"], row["log"] / 1e6] for row in log],
        },
    )
    first, last = rows[0], rows[-1]
    run.at_most("store, last day / first day", last["stored"] / first["stored"], 1.5)
    run.at_most("memory, last day / first day", last["rss"] / first["rss"], 1.5)
    run.at_most("updates that were refused", float(last["verdicts"].get("REJECTED", 0)), 0)


def _days(
    run: Run, pipe: Connection, formation: _Formation, agents: int, days: int, rng: Random
) -> tuple[list[dict[str, Any]], int]:
    writers = [_Writer(formation.node(f"agent-{number:04d}", Role.AGENT), _START) for number in range(agents)]
    joined = agents
    rows: list[dict[str, Any]] = []
    beats = 0
    for day in range(1, days + 1):
        morning = _START + (day - 1) * DAY
        for round_ in range(ROUNDS):
            now = morning + round_ * DAY // ROUNDS
            for place, writer in enumerate(writers):
                _chance(writer, rng, now, day)
                if round_ == 0 and day > 1 and rng.random() < 0.01:
                    writers[place] = writer = _Writer(formation.node(f"agent-{joined:04d}", Role.AGENT), now)
                    joined += 1
                elif round_ == 0 and day > 1 and rng.random() < 0.01:
                    writer.wipe(now)
                    writer.put("platforms", writer.name, heartbeat(writer.name, "site"), now)
            for beat in range(1 + BEATS):
                at = now + 30 * beat
                for first in range(0, len(writers), 50):
                    news: list[Update] = []
                    for writer in writers[first : first + 50]:
                        writer.live(at)
                        news += writer.news()
                    pipe.send(("apply", news, at))
                beats += len(writers)
        evening = morning + DAY - 1
        for writer in writers:
            writer.ledger.tend(evening)
            writer.ledger.flush(writer._store)
            pipe.send(("apply", list(writer.news()), evening))
        pipe.send(("day", None, evening))
        rows.append({"day": day, **pipe.recv()})
        run.say(f"day {day}: {rows[-1]}")
    return rows, beats


def _chance(writer: _Writer, rng: Random, now: float, day: int) -> None:
    """Now and then a package is installed anew, or removed and installed again."""
    if rng.random() < 0.2 / ROUNDS:
        number = rng.randrange(PACKAGES)
        if rng.random() < 0.5:
            writer.remove(number, now)
        writer.install(number, f"1.{day}", now + 1)
