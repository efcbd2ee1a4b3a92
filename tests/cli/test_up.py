"""`peat up` and the services as real processes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_a_node_with_no_configuration_publishes_pulls_and_stops(start: Callable[..., Any], tmp_path: Path) -> None:
    node = start("up", "--dev")
    ready = node.ready
    assert re.fullmatch(r"[0-9a-f]{64}", ready["endpoint_id"])
    assert ready["node_id"]
    for part in ("mesh", "swarm", "metadata"):
        host, port = ready[part].rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=5):
            pass
    assert ready["api"].startswith("http://127.0.0.1:")
    assert ready["http"].startswith("http://127.0.0.1:")

    source = tmp_path / "build"
    (source / "bin").mkdir(parents=True)
    (source / "bin" / "tool").write_bytes(os.urandom(300_000))
    (source / "bin" / "tool").chmod(0o755)
    published = node.peat("publish", str(source), "--name", "app", "--version", "1.0", "--json")
    assert published.returncode == 0, published.stderr
    listed = node.peat("packages", "--json")
    assert listed.returncode == 0, listed.stderr
    assert "app" in listed.stdout
    out = tmp_path / "out"
    pulled = node.peat("pull", "app:1.0", "--to", str(out), "--json")
    assert pulled.returncode == 0, pulled.stderr
    assert (out / "bin" / "tool").read_bytes() == (source / "bin" / "tool").read_bytes()
    fleet = node.peat("fleet", "--json")
    assert fleet.returncode == 0, fleet.stderr
    assert ready["node_id"] in fleet.stdout

    status, seconds = node.stop()
    assert status == 0, node.log.read_text()
    assert seconds < 5
    assert not (node.data_dir / "node.json").exists()
    gone = node.peat("fleet")
    assert gone.returncode == 3
    assert "nothing is running" in gone.stderr


def test_a_restarted_node_is_the_same_node(start: Callable[..., Any]) -> None:
    first = start("up", "--dev", "--node-id", "same")
    assert first.peat("fleet", "--json").returncode == 0
    first.process.kill()
    first.process.wait()
    second = start("up", "--dev", "--node-id", "same")
    assert second.ready["endpoint_id"] == first.ready["endpoint_id"]
    assert "same" in second.peat("fleet", "--json").stdout


def test_a_port_in_use_is_named(start: Callable[..., Any], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for flag in ("--listen", "--mesh-listen", "--swarm-listen", "--http-listen", "--metadata-listen"):
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "peat_p2p.cli.main", "up", "--dev", "--no-mdns"),
                    *("--data-dir", str(tmp_path / "n"), flag, address),
                ],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode != 0, flag
            assert address in done.stderr, (flag, done.stderr)
            assert "Traceback" not in done.stderr, (flag, done.stderr)


def test_settings_come_from_the_environment_and_a_file(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "peat.toml"
    file.write_text('dev = true\nsite = "alpha"\n[label]\nrole = "test"\n')
    monkeypatch.setenv("PEAT_NODE_ID", "from-env")
    node = start("sidecar", "--config", str(file))
    assert node.ready["node_id"] == "from-env"


def test_json_logs_are_json(start: Callable[..., Any]) -> None:
    node = start("up", "--dev", "--log-format", "json")
    node.stop()
    lines = node.log.read_text().splitlines()
    assert lines
    for line in lines:
        assert {"time", "level", "logger", "message"} <= json.loads(line).keys()
