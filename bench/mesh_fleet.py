"""The fleet of processes the mesh bench runs: formation, nodes in namespaces or on loopback, their remote control."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.net import Network
from bench.result import ROOT
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role


@dataclass(slots=True)
class NodeProcess:
    """One running `bench.mesh_node`."""

    name: str
    process: subprocess.Popen[bytes]
    control: Path
    log: Path
    address: str = ""
    endpoint_id: str = ""

    @property
    def peer(self) -> str:
        return f"{self.endpoint_id}@{self.address}"

    def ask(self, do: str, timeout: float = 300.0, **rest: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(timeout)
            try:
                channel.connect(str(self.control))
            except OSError as error:
                raise OSError(f"{self.name} does not answer; its log ends: {self.log.read_text()[-1500:]}") from error
            channel.sendall(json.dumps({"do": do, **rest}).encode() + b"\n")
            with channel.makefile("rb") as answers:
                line = answers.readline()
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}; its log ends: {self.log.read_text()[-500:]}")
        return answer


class Processes:
    """Starts and stops nodes; inside `network` if there is one, where a node's host has the node's name."""

    def __init__(self, root: Path, network: Network | None, engine: str) -> None:
        self._root = root
        self._network = network
        self._engine = engine
        self._formation = Formation.init(root / "formation", "bench")
        self._nodes: dict[str, NodeProcess] = {}
        self._starts = 0

    def start(
        self,
        name: str,
        *peers: NodeProcess,
        site: str = "",
        budget: float | None = None,
        topology: bool = False,
        memory: bool = False,
        watch: bool = True,
    ) -> NodeProcess:
        folder = self._root / name
        if not folder.exists():
            self._formation.issue(name, [Role.OPERATOR, Role.AGENT], folder)
        self._starts += 1
        host = self._network.address(name) if self._network is not None else "127.0.0.1"
        control = self._root / f"{name}.sock"
        control.unlink(missing_ok=True)
        config = {
            "name": name,
            "engine": self._engine,
            "node_dir": str(folder),
            "database": "" if memory else str(self._root / f"{name}.sqlite"),
            "listen": f"{host}:0",
            "peers": [peer.peer for peer in peers],
            "site": site,
            "budget": budget,
            "topology": topology,
            "watch": watch,
            "control": str(control),
        }
        path = self._root / f"{name}.json"
        path.write_text(json.dumps(config))
        log = self._root / f"{name}-{self._starts}.log"
        argv = [sys.executable, "-m", "bench.mesh_node", str(path)]
        with log.open("wb") as output:
            options: dict[str, Any] = {"stdout": output, "stderr": output, "cwd": str(ROOT)}
            if self._network is not None:
                process = self._network.start(name, argv, **options)
            else:
                process = subprocess.Popen(argv, **options)
        node = NodeProcess(name, process, control, log)
        self._nodes[name] = node
        deadline = time.monotonic() + 120
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended at once: {log.read_text()[-2000:]}")
            try:
                info = node.ask("info")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{name} does not answer: {log.read_text()[-2000:]}") from None
                time.sleep(0.05)
        node.address, node.endpoint_id = info["address"], info["endpoint_id"]
        return node

    def stop(self, node: NodeProcess) -> None:
        with contextlib.suppress(OSError, RuntimeError, json.JSONDecodeError):
            node.ask("stop", timeout=10)
        try:
            node.process.wait(15)
        except subprocess.TimeoutExpired:
            node.process.kill()
            node.process.wait()
        self._nodes.pop(node.name, None)

    def stop_all(self) -> None:
        for node in list(self._nodes.values()):
            self.stop(node)


@contextlib.contextmanager
def processes(network: Network | None = None, engine: str = "mesh") -> Iterator[Processes]:
    """A formation and room for nodes; everything ends with the context."""
    with tempfile.TemporaryDirectory(prefix="peat-bench-mesh-") as folder:
        fleet = Processes(Path(folder), network, engine)
        try:
            yield fleet
        finally:
            fleet.stop_all()


def wait_until(condition: Any, within: float, every: float = 0.1) -> float | None:
    """Seconds until the condition held; None if it did not within the time."""
    began = time.monotonic()
    while time.monotonic() - began < within:
        if condition():
            return time.monotonic() - began
        time.sleep(every)
    return None
