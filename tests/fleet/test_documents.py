import json
from dataclasses import fields as dataclass_fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.fleet import ids
from peat_p2p.fleet.commands import Command, CommandStatus, Receipt
from peat_p2p.fleet.fields import parse, whole
from peat_p2p.fleet.heartbeat import Heartbeat
from peat_p2p.fleet.holdings import Announcement, Deployment, Holding, PullStatus

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KINDS: list[Any] = [Heartbeat, Holding, Deployment, Announcement, Command, Receipt]
KEYS = sorted({f.name for kind in KINDS for f in dataclass_fields(kind)})


@given(st.sampled_from(KINDS), st.text(max_size=30), st.dictionaries(st.sampled_from(KEYS), JSON))
def test_any_document_is_read_without_failing(kind: Any, doc_id: str, document: dict[str, Any]) -> None:
    value = kind.from_document(doc_id, document)
    # and what was read is a document that reads as the same again
    again = value.to_fields()
    json.dumps(again)
    assert kind.from_document(doc_id, again) == value


@given(st.sampled_from(KINDS), st.text(max_size=60))
def test_any_text_is_read_without_failing(kind: Any, text: str) -> None:
    kind.from_document("a:b", text)


def test_a_heartbeat_round_trip() -> None:
    beat = Heartbeat(
        agent_id="edge-1",
        last_seen=1_800_000_000,
        name="Edge 1",
        site="north",
        endpoint_id="ab" * 32,
        version="1.2",
        labels={"rack": "7"},
        swarm=("10.0.0.1:7001",),
        metadata=("10.0.0.1:7002",),
        heartbeat_interval_s=5.0,
        workloads=({"name": "db", "replicas": 3},),
    )
    assert Heartbeat.from_document("edge-1", json.dumps(beat.to_fields())) == beat
    assert beat.to_fields()["swarm"] == {"swarm": ["10.0.0.1:7001"], "metadata": ["10.0.0.1:7002"]}


def test_a_value_that_went_away_overwrites_the_old_one() -> None:
    full = Heartbeat(agent_id="a", classification="secret", labels={"x": "1"}, workloads=({"n": 1},))
    merged = {**full.to_fields(), **Heartbeat(agent_id="a").to_fields()}
    assert Heartbeat.from_document("a", merged) == Heartbeat(agent_id="a")


def test_the_watchers_documents_read_well() -> None:
    """What the original's watcher wrote, see the wire's table."""
    held = Holding.from_document(
        "edge-1:ghcr.io/org/app:1.2.3-amd64",
        {"agent_id": "edge-1", "registry": "ghcr", "package": "app", "reference": "ghcr.io/org/app:1.2.3",
         "arch": "amd64", "version": "1.2.3", "total_bytes": 10, "pull_status": 3, "last_seen": 5},
    )  # fmt: skip
    assert held.complete and held.completeness == 1.0 and held.manifest == ""
    assert held.doc_id == "edge-1:ghcr.io/org/app:1.2.3-amd64"
    run = Deployment.from_document("edge-1:app", {"agent_id": "edge-1", "package": "app", "version": "1", "status": 2})
    assert run.status == 2 and run.doc_id == "edge-1:app"
    assert Deployment.from_document("edge-1:app", {"status": "Running"}).status == "Running"


def test_a_bare_holding_takes_what_its_id_says() -> None:
    held = Holding.from_document("edge-1:app:1.2-amd64", {"arch": "amd64"})
    assert (held.agent_id, held.package, held.version, held.arch) == ("edge-1", "app", "1.2", "amd64")


def test_nobody_speaks_for_another_by_a_field() -> None:
    assert Heartbeat.from_document("a", {"agent_id": "b"}).agent_id == "a"
    assert Holding.from_document("a:p:1-x", {"agent_id": "b"}).agent_id == "a"
    assert Deployment.from_document("a:p", {"agent_id": "b"}).agent_id == "a"
    assert Receipt.from_document("c:a", {"agent_id": "b", "command_id": "d"}).agent_id == "a"


@pytest.mark.parametrize(
    ("status", "held", "total", "expected"),
    [
        (PullStatus.PULLING, 5, 10, 0.5),
        (PullStatus.PULLING, 50, 10, 1.0),
        (PullStatus.FAILED, 0, 0, 0.0),
        (PullStatus.COMPLETE, 0, 10, 1.0),
        (99, 1, 4, 0.25),
    ],
)
def test_completeness(status: int, held: int, total: int, expected: float) -> None:
    holding = Holding(agent_id="a", package="p", pull_status=status, held_bytes=held, total_bytes=total)
    assert holding.completeness == expected


def test_numbers_are_read_with_care() -> None:
    assert [whole({"n": n}, "n", -1) for n in (3, 3.9, True, "3", 1e300, float("nan"), 2**63, -(2**63))] == [
        3, 3, -1, -1, -1, -1, -1, -(2**63),
    ]  # fmt: skip
    assert parse("[1]") == parse("{") == parse("[" * 100_000) == {}


def test_ids() -> None:
    assert ids.split_agent_id(ids.deployment_id("a", "x:y")) == ("a", "x:y")
    assert ids.split_receipt_id(ids.receipt_id("cmd:7", "a")) == ("cmd:7", "a")
    assert ids.holding_id("a", ids.reference_of("p", "1"), "amd64") == "a:p:1-amd64"
    assert ids.manifest_digest(ids.manifest_id("blake3:ff")) == "blake3:ff"
    assert [ids.agent_of(c, d) for c, d in
            (("platforms", "a"), ("packages", "a:p"), ("deployments", "a:p"), ("receipts", "c:a"), ("commands", "a"))
            ] == ["a", "a", "a", "a", None]  # fmt: skip


def test_whom_a_command_addresses() -> None:
    def addresses(target: str, agent: str = "a", site: str = "north") -> bool:
        return Command(id="c", target_id=target).addresses(agent, site)

    assert addresses("a") and addresses("*") and addresses("site:north")
    assert not addresses("b") and not addresses("site:south") and not addresses("")
    assert not addresses("site:", site="")
    assert Command(id="c", target_id="a").single
    assert not any(Command(id="c", target_id=t).single for t in ("*", "site:x", ""))


def test_expiry_and_payload() -> None:
    command = Command(id="c", expires_at=100, payload_json='{"package":"p"}')
    assert not command.expired(99.9) and command.expired(100) and not Command(id="c").expired(1e12)
    assert command.payload == {"package": "p"}
    assert Command(id="c", payload_json="[]").payload == Command(id="c", payload_json="{").payload == {}


def test_status_numbers() -> None:
    assert CommandStatus.of(3) is CommandStatus.COMPLETED and CommandStatus.COMPLETED.final
    assert CommandStatus.of(77) is CommandStatus.of(-1) is CommandStatus.UNSPECIFIED
    assert not CommandStatus.EXECUTING.final
