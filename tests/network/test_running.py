"""One way to run a process: settings, the ready file, stopping, restarting, and what is said when it cannot start."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from peat_p2p.trust.identity import Role


def reachable(address: str) -> bool:
    if address.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as one:
            return one.connect_ex(address.removeprefix("unix://")) == 0
    host, _, port = address.removeprefix("http://").rpartition(":")
    with socket.socket() as one:
        return one.connect_ex((host, int(port))) == 0


def test_each_service_says_where_it_really_answers(fleet: Any) -> None:
    sidecar = fleet.start("sidecar", "edge")
    agent = fleet.start("agent", "edge", "--sidecar", sidecar.ready["api"], data_dir=fleet.root / "edge-agent")
    hub = fleet.start("hub", "hq", roles=(Role.HUB,))
    up = fleet.start("up", "node", "--listen", "tcp://127.0.0.1:0")
    parts = (
        (agent, ("swarm", "metadata", "http")),
        (sidecar, ("api", "mesh")),
        (hub, ("api", "mesh", "hub", "http")),
        (up, ("api", "mesh", "swarm", "metadata", "http")),
    )
    for node, names in parts:
        assert node.ready["node_id"] == node.name
        assert len(node.ready["endpoint_id"]) == 64
        assert node.ready["pid"] == node.process.pid
        for name in names:
            assert reachable(node.ready[name]), (node.name, name)
            assert not node.ready[name].endswith(":0")
        assert all(reachable(api) for api in node.ready["apis"])
    assert up.ready["apis"] == [up.ready["api"]]  # what is asked for, and nothing else
    assert sidecar.ready["endpoint_id"] == agent.ready["endpoint_id"]
    sockets = [api for api in sidecar.ready["apis"] if api.startswith("unix://")]
    assert stat.S_IMODE(Path(sockets[0].removeprefix("unix://")).stat().st_mode) == 0o600
    for node, _ in parts:
        assert node.stop() < 5, node.name
        assert not node.ready_file.exists()


def test_the_same_settings_by_flag_environment_and_file(fleet: Any) -> None:
    other = fleet.start("sidecar", "other")
    config = fleet.root / "node.toml"
    unix = fleet.root / "x.sock"
    config.write_text(
        f'site = "reef"\nlabel = {{kind = "boat", n = "1"}}\npeer = ["{other.peer}"]\nlisten = ["unix://{unix}"]\n'
        'log-format = "json"\nno-mdns = true\nnode-id = "file"\nheartbeat-interval = 1.5\n'
    )
    by_file = fleet.start("up", "file", "--config", str(config))
    by_environment = fleet.start(
        "up",
        "env",
        env={
            "PEAT_SITE": "reef",
            "PEAT_LABEL": "kind=boat n=1",
            "PEAT_PEER": other.peer,
            "PEAT_LISTEN": f"unix://{fleet.root}/y.sock",
            "PEAT_LOG_FORMAT": "json",
            "PEAT_NODE_ID": "env",
            "PEAT_HEARTBEAT_INTERVAL": "1.5",
        },
    )
    by_flag = fleet.start(
        "up",
        "flag",
        *("--site", "reef", "--label", "kind=boat", "--label", "n=1", "--peer", other.peer, "--node-id", "flag"),
        *("--listen", f"unix://{fleet.root}/z.sock", "--log-format", "json", "--heartbeat-interval", "1.5"),
    )
    for node in (by_file, by_environment, by_flag):
        assert node.ready["api"].startswith("unix://")
        fleet.until(lambda node=node: any(link["state"] == "connected" for link in node.json("peers")))
        me = next(one for one in node.json("fleet") if one["agent_id"] == node.name)
        assert me["site"] == "reef"
        assert me["labels"] == {"kind": "boat", "n": "1"}
        for line in node.log.read_text().splitlines():
            json.loads(line)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--node-id", "someone-else"), "someone-else"),
        (("--listen", "udp://127.0.0.1:0"), "tcp://"),
        (("--listen", "tcp://127.0.0.1:99999"), "99999"),
        (("--mesh-listen", "nowhere"), "HOST:PORT"),
        (("--peer", "abc@127.0.0.1:1"), "abc"),
        (("--label", "novalue"), "KEY=VALUE"),
        (("--listen", "tcp://0.0.0.0:0"), "--insecure"),
        (("--dev",), "--dev"),
        (("--log-format", "xml"), "xml"),
        (("--config", "/nonexistent.toml"), "/nonexistent.toml"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_line(fleet: Any, arguments: tuple[str, ...], said: str) -> None:
    words = ("sidecar", "--data-dir", str(fleet.root / "d"), "--formation", str(fleet.credentials("one")), "--no-mdns")
    done = fleet.peat(*words, *arguments, timeout=20)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stop_waits_for_nobody(fleet: Any) -> None:
    """Open streams, peers that hang and a sidecar that is gone hold up no stop."""
    sidecar = fleet.start("sidecar", "edge")
    neighbour = fleet.start("sidecar", "neighbour", "--peer", sidecar.peer)
    agent = fleet.start("agent", "edge", "--sidecar", sidecar.ready["api"], data_dir=fleet.root / "edge-agent")
    script = (
        "import asyncio,sys\nfrom peat_p2p.client import SidecarClient\n"
        "async def main():\n"
        "    async with SidecarClient(sys.argv[1]) as c:\n"
        "        async for event in c.subscribe():\n"
        "            print(type(event).__name__, flush=True)\n"
        "asyncio.run(main())\n"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", script, sidecar.ready["api"]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    hanging = socket.socket()
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline()
        host, _, port = sidecar.ready["mesh"].rpartition(":")
        hanging.connect((host, int(port)))  # says nothing, for ever
        assert sidecar.stop() < 5
        time.sleep(0.5)
        assert neighbour.process.poll() is None
        assert agent.process.poll() is None
        assert agent.stop() < 5
        assert neighbour.stop() < 5
    finally:
        hanging.close()
        reader.kill()
        reader.communicate()


def test_a_stop_before_all_is_ready(fleet: Any) -> None:
    for wait in (0.05, 0.3, 0.6, 0.9, 1.2):
        node = fleet.start("up", "early", wait=False)
        time.sleep(wait)
        began = time.monotonic()
        node.process.terminate()
        status = node.process.wait(timeout=10)
        assert time.monotonic() - began < 5
        # Before Python is there to listen the system ends it; after that it ends in order.
        assert status in (0, -15), node.log.read_text()
        assert not node.ready_file.exists()


def test_a_second_process_on_the_same_data_is_refused_and_harms_nothing(fleet: Any) -> None:
    first = fleet.start("up", "one")
    before = (first.data_dir / "node.json").read_text()
    for command in ("up", "sidecar", "agent"):
        extra = ("--sidecar", first.ready["api"]) if command == "agent" else ()
        second = fleet.start(command, "one", *extra, wait=False)
        assert second.process.wait(timeout=20) == 1, command
        last = second.log.read_text().splitlines()[-1]
        assert last.startswith("peat: "), last
        assert str(first.data_dir) in last
    assert (first.data_dir / "node.json").read_text() == before
    assert first.ready_file.exists()
    assert first.json("fleet")[0]["agent_id"] == "one"
    assert all(reachable(api) for api in first.ready["apis"])


@pytest.mark.parametrize(
    ("command", "flag", "form"),
    [
        ("up", "--listen", "tcp://{}"),
        ("up", "--mesh-listen", "{}"),
        ("up", "--swarm-listen", "{}"),
        ("up", "--metadata-listen", "{}"),
        ("up", "--http-listen", "{}"),
        ("hub", "--http-listen", "{}"),
    ],
)
def test_a_port_in_use_is_named(fleet: Any, command: str, flag: str, form: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        node = fleet.start(command, "one", flag, form.format(address), roles=(Role.HUB, Role.AGENT), wait=False)
        assert node.process.wait(timeout=20) in (1, 4)
        lines = node.log.read_text().splitlines()
        assert lines[-1].startswith("peat: ")
        assert address in lines[-1]
        assert "in use" in lines[-1]
        assert not [line for line in lines if " ERROR " in line]
    fleet.start(command, "one", flag, form.format(address)).stop()  # nothing stays behind


def test_a_restart_keeps_ids_and_documents_killed_or_stopped(fleet: Any) -> None:
    node = fleet.start("up", "one")
    node.call("PutDocument", {"collection": "notes", "docId": "a", "jsonData": '{"n":9007199254740993}'})
    ids = (node.ready["node_id"], node.ready["endpoint_id"])
    for number in range(2):
        _ = node.kill() if number % 2 else node.stop()
        node = fleet.start("up", "one")
        assert (node.ready["node_id"], node.ready["endpoint_id"]) == ids
        read = node.call("GetDocument", {"collection": "notes", "docId": "a"})
        assert json.loads(read["jsonData"]) == {"n": 9007199254740993}
