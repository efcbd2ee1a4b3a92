"""Sidecars as processes: found by each other on a LAN, killed while they write, told of a polled agent."""

from __future__ import annotations

import http.server
import json
import random
import threading
import time
import urllib.error
from typing import Any, ClassVar


def test_two_sidecars_find_each_other_with_no_peer_given(fleet: Any) -> None:
    one = fleet.start("sidecar", "one", mdns=True)
    two = fleet.start("sidecar", "two", mdns=True)
    # What calls itself so in another formation is not let in, found or not.
    stranger = fleet.start("sidecar", "stranger", "--dev", mdns=True)
    fleet.until(lambda: two.call("GetStatus").get("connectedPeers") == 1, 30, "they find each other")
    one.put("notes", "a", {"n": 1})
    fleet.until(lambda: two.get("notes", "a") == {"n": 1}, 10)
    time.sleep(2)
    assert stranger.call("GetStatus").get("connectedPeers", 0) == 0
    assert one.call("GetStatus")["connectedPeers"] == 1
    assert one.stop() < 5


def test_killed_while_it_writes_it_keeps_what_it_promised(fleet: Any) -> None:
    far = fleet.start("sidecar", "far")
    dice = random.Random(5)
    promised: dict[str, int] = {}
    for life in range(4):
        near = fleet.start("sidecar", "near", "--peer", far.peer)
        stop = threading.Event()

        def write(near: Any = near, life: int = life, stop: threading.Event = stop) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                doc_id = f"d{number % 20}"
                try:
                    near.put("notes", doc_id, {"value": life * 1_000_000 + number})
                except (OSError, urllib.error.URLError, ValueError):
                    return  # killed half way through an answer: nothing was promised
                promised[doc_id] = life * 1_000_000 + number

        writers = [threading.Thread(target=write)]
        writers[0].start()
        time.sleep(0.3 + dice.random())
        near.kill()
        stop.set()
        writers[0].join()
    near = fleet.start("sidecar", "near", "--peer", far.peer)
    assert promised
    for doc_id, value in promised.items():
        # One more write may have been durable than was answered.
        assert value <= near.get("notes", doc_id)["value"] <= value + 1_000_000
    fleet.until(lambda: all(far.get("notes", name) == near.get("notes", name) for name in promised), 20)


class _Agent(http.server.BaseHTTPRequestHandler):
    packages: ClassVar[list[dict[str, Any]]] = []
    tags: ClassVar[list[dict[str, Any]]] = []

    def answer(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.answer({"version": "3.1", "architecture": "arm64", "k8sVersion": "1.30", "systemTime": 1})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.endswith("/ListPackages"):
            self.answer({"packages": self.packages})
        else:
            listed = [{"repoName": "r", "packageName": "app", "tags": self.tags}]
            self.answer({"registries": [{"name": "reg", "host": "h", "packages": listed}]})

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_an_agent_that_does_not_push_is_polled_when_asked_for(fleet: Any) -> None:
    _Agent.packages = [{"name": "app", "version": "1", "status": 1}]
    _Agent.tags = [
        {
            "reference": "app:1",
            "arch": "arm64",
            "version": "1",
            "totalBytes": 10,
            "pullInfo": {"downloadedBytes": 10, "status": 3},
        }
    ]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Agent)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        node = fleet.start("sidecar", "one", "--watch-agent", url, "--watch-agent-id", "old", "--watch-interval", "0.3")
        fleet.until(lambda: node.get("platforms", "old").get("k8s_version") == "1.30")
        assert node.get("platforms", "old")["agent_id"] == "old"
        fleet.until(lambda: node.get("deployments", "old:app").get("version") == "1")
        fleet.until(lambda: node.get("packages", "old:app:1-arm64").get("pull_status") == 3)
        node.put("deployments", "other:app", {"agent_id": "other"})
        _Agent.packages, _Agent.tags = [], []
        fleet.until(lambda: node.get("deployments", "old:app") == {} == node.get("packages", "old:app:1-arm64"))
        assert node.get("deployments", "other:app") == {"agent_id": "other"}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert node.stop() < 5
