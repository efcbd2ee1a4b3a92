from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Node:
    """A `peat` service of the test's own, with what its ready file says."""

    process: subprocess.Popen[bytes]
    ready: dict[str, Any]
    data_dir: Path
    log: Path

    def peat(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a `peat` command against this node."""
        return peat(*arguments, "--data-dir", str(self.data_dir), timeout=timeout)

    def stop(self) -> tuple[int, float]:
        """SIGTERM; return the exit status and how long it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20), time.monotonic() - began


def peat(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "peat_p2p.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env={**os.environ, "COLUMNS": "200"},
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Start `peat COMMAND ARGUMENTS` and wait for its ready file; everything started is killed at the end."""
    started: list[Node] = []

    def run(command: str, *arguments: str, name: str = "node") -> Node:
        data_dir, ready, log = tmp_path / name, tmp_path / f"{name}-{len(started)}.ready", tmp_path / f"{name}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "peat_p2p.cli.main", command, "--data-dir", str(data_dir)),
                    *("--ready-file", str(ready), "--no-mdns", *arguments),
                ],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
            )
        node = Node(process, {}, data_dir, log)
        started.append(node)
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None, f"ended with {process.returncode}:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"not ready:\n{log.read_text()}"
            time.sleep(0.05)
        node.ready = json.loads(ready.read_text())
        return node

    yield run
    for node in started:
        if node.process.poll() is None:
            node.process.kill()
            node.process.wait()
