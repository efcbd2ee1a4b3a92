"""Trust taken back, between whole nodes: what is held, fetched and deployed, and who is linked."""

from __future__ import annotations

import os
import subprocess
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from peat_p2p.trust.identity import Role
from tests.network.conftest import COMMAND, environment

ALL = (Role.HUB, Role.OPERATOR, Role.PUBLISHER, Role.AGENT)
MEBI = 1 << 20


def chunks(node: Any) -> int:
    return int(node.json("store", "stat")["chunks"])


def holdings(node: Any) -> list[str]:
    found = node.call("ListDocuments", {"collection": "packages"})
    return list(found.get("docIds", []))


def test_a_revoked_package_is_held_and_fetched_by_nobody_and_flagged_where_it_runs(fleet: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "data.bin").write_bytes(os.urandom(12 * MEBI))
    depot = fleet.start("up", "depot", roles=ALL)
    runs = fleet.start("up", "runs", "--peer", depot.peer)
    slow = fleet.start("up", "slow", "--peer", depot.peer, "--download-limit", "200K")
    depot.json("publish", str(source), "--name", "app", "--version", "1")
    fleet.until(lambda: runs.json("packages"))
    order = depot.send("deploy", "--target", "runs", "--package", "app:1")
    fleet.until(lambda: depot.said(order, "runs")[0] == "completed")
    fleet.until(lambda: slow.json("packages"))
    limits = {fact["subject"]: fact["state"] for fact in slow.json("why", "app")["facts"] if fact["about"] == "limit"}
    assert limits == {"download-limit": "200000 B/s"}
    pull = subprocess.Popen(
        [*COMMAND, "pull", "app:1", "--data-dir", str(slow.data_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        fleet.until(lambda: slow.transfer("app").get("receivedBytes", 0) > 0)
        fleet.until(lambda: len(holdings(depot)) == 3)
        done = depot.peat("revoke", "package", "app:1", "--reason", "CVE-2026-0001")
        assert done.returncode == 0, done.stderr
        _, told = pull.communicate(timeout=30)
    finally:
        if pull.poll() is None:
            pull.kill()
    assert pull.returncode == 5, told
    assert "revoked" in told
    assert "CVE-2026-0001" in told
    for node in (depot, runs, slow):
        fleet.until(lambda node=node: chunks(node) == 0, what=f"{node.name} drops it")
        again = node.peat("pull", "app:1")
        assert again.returncode == 5, again.stderr
        assert "CVE-2026-0001" in again.stderr
    # Nobody says any more that it holds it, and the one that runs it says that it should not.
    fleet.until(lambda: not holdings(depot))
    fleet.until(lambda: depot.get("deployments", "runs:app").get("status") == "revoked")


def test_a_revoked_node_is_linked_to_nobody_and_obeyed_by_nobody(fleet: Any) -> None:
    boss = fleet.start("up", "boss", roles=ALL)
    edge = fleet.start("up", "edge", "--peer", boss.peer)
    thief = fleet.start("up", "thief", "--peer", boss.peer, "--peer", edge.peer, roles=ALL)
    for node in (boss, edge):
        fleet.until(lambda node=node: node.call("GetStatus").get("connectedPeers") == 2)
    thief.put("notes", "word", {"a": 1})
    for node in (boss, edge):
        fleet.until(lambda node=node: node.get("notes", "word") == {"a": 1})
    done = boss.peat("revoke", "node", "thief", "--reason", "captured")
    assert done.returncode == 0, done.stderr
    for node in (boss, edge):
        fleet.until(lambda node=node: node.call("GetStatus").get("connectedPeers") == 1)
    fleet.until(lambda: not thief.call("GetStatus").get("connectedPeers"))
    # What it says counts no more, at home either, nor what it said before; the others still hear each other.
    for node in (boss, edge):
        fleet.until(lambda node=node: node.get("notes", "word") == {}, what=f"{node.name} forgets the thief's word")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        thief.put("notes", "lie", {"a": 1})
    boss.put("notes", "truth", {"a": 1})
    fleet.until(lambda: edge.get("notes", "truth"))
