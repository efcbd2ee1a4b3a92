"""Who is not trusted gets nowhere, and it is said why: by whole nodes, through their own commands and APIs."""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role

DAY = 86400.0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "empty").mkdir(parents=True)
    (folder / "data.bin").write_bytes(os.urandom(300_000))
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("run.sh")
    return folder


def reasons(node: Any) -> list[str]:
    return [link["reason"] for link in node.json("peers")]


def test_another_formation_is_refused_by_both_and_named(fleet: Any) -> None:
    ours = fleet.start("sidecar", "ours")
    other = Formation.init(fleet.root / "ca2", "strangers")
    other.issue("theirs", [Role.AGENT], fleet.root / "theirs")
    theirs = fleet.start("sidecar", "theirs", "--peer", ours.peer, formation=fleet.root / "theirs")
    fleet.until(lambda: any(reason for reason in reasons(theirs)))
    [link] = theirs.json("peers")
    assert link["state"] != "connected"
    # TLS 1.3 tells the caller little; whichever end noticed says what is wrong.
    assert "formation" in link["reason"] or "certificate" in link["reason"], link
    ours.put("notes", "secret", {"a": 1})
    time.sleep(1)
    assert theirs.get("notes", "secret") == {}
    assert ours.call("GetStatus").get("connectedPeers", 0) == 0


def test_an_expired_certificate_does_not_start_and_says_what_to_do(fleet: Any) -> None:
    folder = fleet.root / "old"
    fleet.formation.issue("old", [Role.AGENT], folder, days=1, at=time.time() - 3 * DAY)
    for command in ("sidecar", "agent", "up"):
        extra = ("--sidecar", "http://127.0.0.1:1") if command == "agent" else ()
        done = fleet.peat(
            *(command, "--data-dir", str(fleet.root / "d"), "--formation", str(folder), "--no-mdns", *extra), timeout=20
        )
        assert done.returncode == 5, (command, done.stderr)
        assert "expired" in done.stderr
        assert "renew" in done.stderr
        assert str(folder / "node.crt") in done.stderr
        assert "Traceback" not in done.stderr


def test_a_certificate_that_expires_while_running_gives_no_new_link(fleet: Any) -> None:
    folder = fleet.root / "short"
    # A certificate is good from a day before `at`, so this one has some seconds left.
    fleet.formation.issue("short", [Role.AGENT], folder, days=1, at=time.time() - DAY + 6)
    ours = fleet.start("sidecar", "ours")
    short = fleet.start("sidecar", "short", formation=folder)
    time.sleep(7)
    endpoint, _, address = short.peer.partition("@")
    ours.call("ConnectPeer", {"endpointId": endpoint, "addresses": [address]})
    fleet.until(lambda: any("expired" in reason for reason in reasons(ours)), what="the reason says expired")
    assert not [link for link in ours.json("peers") if link["state"] == "connected"]


def test_publishing_needs_the_role(fleet: Any, source: Path) -> None:
    node = fleet.start("up", "edge", roles=(Role.AGENT,))
    done = node.peat("publish", str(source), "--name", "app", "--version", "1")
    assert done.returncode == 5
    assert "publisher" in done.stderr
    assert node.json("packages") == []


def test_what_is_tampered_with_is_not_acted_on(fleet: Any, source: Path) -> None:
    """A captured agent rewrites manifests and commands in its own sidecar; the mesh carries that; nobody follows it."""
    hub = fleet.start("up", "hub", roles=(Role.HUB, Role.PUBLISHER))
    captured = fleet.start("up", "captured", "--peer", hub.peer)
    victim = fleet.start("up", "victim", "--peer", hub.peer, "--peer", captured.peer)
    published = hub.json("publish", str(source), "--name", "app", "--version", "1.0")
    digest = published["manifest"].removeprefix("blake3:")
    document = fleet.until(lambda: captured.get("manifests", digest))
    fleet.until(lambda: victim.get("manifests", digest))

    # 1. A manifest with another version inside, under a digest of its own: the signature is not over it.
    envelope = json.loads(json.dumps(document["envelope"]))
    payload = json.loads(base64.b64decode(envelope["payload"]))
    payload["version"] = "6.6"
    envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    captured.put("manifests", "66" * 32, {**document, "version": "6.6", "envelope": envelope})
    # 2. A command of its own making, to everyone; its sidecar signs it as what it is: an agent.
    now = int(time.time())
    order = {
        "id": "evil",
        "targetId": "*",
        "commandType": "pull",
        "createdAt": str(now),
        "expiresAt": str(now + 600),
        "payloadJson": json.dumps({"package": "app", "version": "1.0"}),
    }
    captured.call("PutCommand", {"command": order})
    # 3. A true command of the hub whose payload is changed under way.
    command_id = hub.send("pull", "--target", "victim", "--package", "late:1.0")
    fleet.until(lambda: captured.get("commands", command_id))
    with pytest.raises(urllib.error.HTTPError) as caught:  # an honest sidecar does not even take it
        captured.put("commands", command_id, {"payload_json": json.dumps({"package": "app"}), "target_id": "*"})
    assert json.loads(caught.value.read())["code"] == "permission_denied"
    assert fleet.until(lambda: victim.get("commands", "evil"), what="what was forged reaches the victim")
    fleet.until(lambda: victim.get("manifests", "66" * 32))
    time.sleep(2)
    assert [package["version"] for package in victim.json("packages")] == ["1.0"]
    assert victim.json("packages")[0]["held_bytes"] == 0, "nothing was fetched on a forged order"
    done = victim.peat("pull", "app:6.6", timeout=20)
    assert done.returncode in (3, 5), done.stderr
    assert victim.said("evil", "victim")[0] in ("unspecified", "failed")
    # And what is right goes on working.
    assert victim.json("pull", "app:1.0")["state"] == "complete"


def test_bad_calls_have_their_codes_and_words(fleet: Any) -> None:
    node = fleet.start("sidecar", "one", "--max-document-bytes", "2000")

    def refused(method: str, body: bytes) -> tuple[int, str, str]:
        request = urllib.request.Request(
            f"{node.ready['api']}/peat.sidecar.v1.PeatSidecar/{method}", body, {"content-type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        answer = json.loads(caught.value.read())
        return caught.value.code, answer["code"], answer["message"]

    def document(collection: str, doc_id: str, text: str) -> bytes:
        return json.dumps({"collection": collection, "docId": doc_id, "jsonData": text}).encode()

    for body in (
        document("notes", "a", "{no"),
        document("notes", "a", "[]"),
        document("notes", "", "{}"),
        document("no/tes", "a", "{}"),
        document("", "a", "{}"),
        b"{no",
    ):
        status, code, message = refused("PutDocument", body)
        assert (status, code) == (400, "invalid_argument"), body
        assert len(message) > 10
    status, code, message = refused("PutDocument", document("notes", "big", json.dumps({"a": "x" * 3000})))
    assert (status, code) == (429, "resource_exhausted")
    assert "2000" in message
