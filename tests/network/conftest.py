"""Whole nodes as real processes; and networks, built only where they can be, with the reason said where they cannot."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.net import why_not
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role

COMMAND = [sys.executable, "-m", "peat_p2p.cli.main"]
QUIET = ("Traceback", "never awaited", "Task was destroyed", "Unclosed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    for item in items:
        if item.get_closest_marker("network") is not None and reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tests' own environment with no setting of a node's in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PEAT_")}
    return {**kept, "COLUMNS": "200", **(extra or {})}


STATUSES = ("unspecified", "pending", "executing", "completed", "failed", "cancelled")


def _post(url: str, body: Mapping[str, Any] | None) -> Any:
    request = urllib.request.Request(url, json.dumps(body or {}).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


@dataclass
class Node:
    """One `peat` process of the test's own, with what its ready file said."""

    name: str
    process: subprocess.Popen[bytes]
    data_dir: Path
    ready_file: Path
    log: Path
    ready: dict[str, Any] = field(default_factory=dict)

    def wait_ready(self, seconds: float = 60) -> Node:
        deadline = time.monotonic() + seconds
        while not self.ready_file.exists():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"not ready:\n{self.log.read_text()}"
            time.sleep(0.02)
        self.ready = json.loads(self.ready_file.read_text())
        return self

    @property
    def peer(self) -> str:
        """What others give as --peer to reach this one."""
        return f"{self.ready['endpoint_id']}@{self.ready['mesh']}"

    def peat(
        self, *arguments: str, timeout: float = 60, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return peat(*arguments, "--data-dir", str(self.data_dir), timeout=timeout, env=env)

    def json(self, *arguments: str, timeout: float = 60) -> Any:
        done = self.peat(*arguments, "--json", timeout=timeout)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def call(self, method: str, body: Mapping[str, Any] | None = None) -> Any:
        """One call of the sidecar, as any HTTP client makes it."""
        return _post(f"{self.ready['api']}/peat.sidecar.v1.PeatSidecar/{method}", body)

    def ask_agent(self, method: str, body: Mapping[str, Any] | None = None) -> Any:
        """One call of the agent's control service."""
        return _post(f"{self.ready['http']}/peat.agent.v1.PeatAgent/{method}", body)

    def get(self, collection: str, doc_id: str) -> dict[str, Any]:
        """A document; empty when there is none."""
        found = self.call("GetDocument", {"collection": collection, "docId": doc_id})
        document: dict[str, Any] = json.loads(found.get("jsonData", "{}"))
        return document

    def put(self, collection: str, doc_id: str, document: Mapping[str, Any]) -> None:
        self.call("PutDocument", {"collection": collection, "docId": doc_id, "jsonData": json.dumps(document)})

    def send(self, *words: str) -> str:
        """`peat commands send`; the command's id."""
        [sent] = self.json("commands", "send", *words)
        return str(sent["id"])

    def said(self, command_id: str, agent: str) -> tuple[str, str]:
        """What `agent` said of a command, as this node knows it."""
        receipt = self.get("receipts", f"{command_id}:{agent}")
        return STATUSES[receipt.get("status", 0)], receipt.get("message", "")

    def transfer(self, package: str) -> dict[str, Any]:
        """What the agent says of its transfer of `package`; sizes as numbers."""
        found = [one for one in self.ask_agent("ListTransfers").get("transfers", []) if one["name"] == package]
        last: dict[str, Any] = found[-1] if found else {}
        return {name: int(value) if name.endswith("Bytes") else value for name, value in last.items()}

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> float:
        """SIGTERM; the exit status must be 0; return how long it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} does not stop:\n{self.log.read_text()}") from None
        assert status == 0, f"{self.name} ended with {status}:\n{self.log.read_text()}"
        return time.monotonic() - began


def peat(
    *arguments: str, timeout: float = 60, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=environment(env),
    )


class Fleet:
    """Nodes of one formation on this machine; each with a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.formation = Formation.init(root / "ca", "testfleet")
        self.started: list[Node] = []

    def credentials(self, name: str, *roles: Role) -> Path:
        """The folder of certificates of `name`, issued when it is asked for first."""
        folder = self.root / "nodes" / name
        if not folder.exists():
            self.formation.issue(name, roles or (Role.AGENT,), folder)
        return folder

    def start(
        self,
        command: str,
        name: str,
        *arguments: str,
        roles: tuple[Role, ...] = (),
        formation: Path | None = None,
        data_dir: Path | None = None,
        env: Mapping[str, str] | None = None,
        wait: bool = True,
        mdns: bool = False,
        argv: Callable[[list[str]], list[str]] = list,
    ) -> Node:
        """Start `peat COMMAND`, by default with a certificate of this formation, and wait until it is ready."""
        data = data_dir or self.root / "data" / name
        ready, log = self.root / f"{len(self.started)}.ready", self.root / f"{name}.log"
        words = [
            *(*COMMAND, command, "--data-dir", str(data), "--ready-file", str(ready)),
            *(() if "--dev" in arguments else ("--formation", str(formation or self.credentials(name, *roles)))),
            *(() if mdns else ("--no-mdns",)),
            *arguments,
        ]
        with log.open("ab") as out:
            process = subprocess.Popen(
                argv(words), stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment(env)
            )
        node = Node(name, process, data, ready, log)
        self.started.append(node)
        return node.wait_ready() if wait else node

    @staticmethod
    def until(check: Callable[[], Any], seconds: float = 30, what: str = "") -> Any:
        """Ask `check` until it says something true, and return that."""
        deadline = time.monotonic() + seconds
        while True:
            value = check()
            if value:
                return value
            assert time.monotonic() < deadline, f"in vain for {seconds} s: {what or check}"
            time.sleep(0.1)

    @staticmethod
    def peat(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a `peat` command that asks no node of this fleet."""
        return peat(*arguments, **options)

    def close(self) -> None:
        for node in self.started:
            if node.process.poll() is None:
                node.kill()

    def complaints(self) -> list[str]:
        """Lines of the logs that a person should never see."""
        lines = (line for log in self.root.glob("*.log") for line in log.read_text().splitlines())
        return [line for line in lines if any(word in line for word in QUIET)]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Processes of one formation; all are killed at the end, and none may have left a traceback in its log."""
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.close()
    assert fleet.complaints() == []


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, int], str]:
    """A function that makes a file of random bytes, which does not shrink: (name, bytes) to its path."""

    def make(name: str, size: int) -> str:
        (tmp_path / name).write_bytes(random.Random(name).randbytes(size))
        return str(tmp_path / name)

    return make
