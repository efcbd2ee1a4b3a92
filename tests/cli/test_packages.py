"""The commands a person uses on a running node."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from peat_p2p.cli.main import exit_status, peat
from peat_p2p.cli.output import ago, duration, plain, rate, size
from peat_p2p.core.errors import NotFoundError, PeatError
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.txt").write_text("alpha\n" * 1000)
    (folder / "b.bin").write_bytes(bytes(range(256)) * 2000)
    return folder


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def ask(node: Any, *arguments: str) -> Done:
    """Run a command against a node, in this process: the interpreter's start is half of each command's time."""
    result = CliRunner().invoke(peat, [*arguments, "--data-dir", str(node.data_dir)])
    if isinstance(result.exception, PeatError):
        return Done(exit_status(result.exception), result.stdout, f"peat: {result.exception}")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def loads(done: Any) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_pin_is_kept_shown_and_taken_back(start: Callable[..., Any], source: Path) -> None:
    node = start("up", "--dev", "--node-id", "n1")
    loads(ask(node, "publish", str(source), "--name", "app", "--version", "1.0", "--json"))
    loads(ask(node, "packages", "pin", "app:1.0", "--json"))
    assert "pinned" in ask(node, "packages").stdout
    refused = ask(node, "packages", "rm", "app:1.0")
    assert refused.returncode == 1
    assert "unpin it (`peat packages unpin app:1.0`)" in refused.stderr
    assert node.stop()[0] == 0
    node = start("up", "--dev", "--node-id", "n1")
    assert loads(ask(node, "packages", "show", "app:1.0", "--json"))["pinned"] is True
    assert "is no longer pinned" in ask(node, "packages", "unpin", "app:1.0").stdout
    assert loads(ask(node, "packages", "show", "app:1.0", "--json"))["pinned"] is False
    assert ask(node, "packages", "rm", "app:1.0", "--force").returncode == 0
    unknown = ask(node, "packages", "pin", "ghost:9")
    assert unknown.returncode == 3
    assert "ghost:9" in unknown.stderr


def test_publish_pull_deploy_on_one_node(start: Callable[..., Any], source: Path, tmp_path: Path) -> None:
    node = start("up", "--dev", "--node-id", "n1", "--heartbeat-interval", "0.5")
    published = loads(ask(node, "publish", str(source), "--name", "app", "--version", "1.0", "--json"))
    assert published["holders"] == ["n1"]
    assert published["total_bytes"] == sum(file.stat().st_size for file in source.iterdir())
    [listed] = loads(ask(node, "packages", "--json"))
    assert listed == {**published, "holders": ["n1"]}
    assert "app" in ask(node, "packages").stdout

    out = tmp_path / "out"
    pulled = loads(ask(node, "pull", "app:1.0", "--to", str(out), "--json"))
    assert pulled["state"] == "complete"
    assert (out / "b.bin").read_bytes() == (source / "b.bin").read_bytes()
    again = ask(node, "pull", "app:1.0", "--to", str(out))
    assert again.returncode == 1
    assert "exists already" in again.stderr
    unknown = node.peat("pull", "ghost:9")
    assert unknown.returncode == 3
    assert unknown.stderr.strip().endswith("peat: ghost:9 is not known here: nobody in reach has published it")

    sent = loads(ask(node, "commands", "send", "deploy", "--target", "n1", "--package", "app:1.0", "--json"))
    for _ in range(20):
        [state] = loads(ask(node, "commands", "list", "--json"))
        if state["status_name"] == "completed":
            break
    assert (state["id"], state["status_name"]) == (sent[0]["id"], "completed")
    assert state["receipts"][0]["agent_id"] == "n1"
    assert (node.data_dir / "deployments/app/current/a.txt").read_text() == "alpha\n" * 1000
    wide = ask(node, "commands", "list", "--wide").stdout
    assert "is deployed at" in wide
    assert "app:1.0 is here, whole and verified" in ask(node, "why", "app").stdout
    shown = ask(node, "packages", "show", "app", "--files").stdout
    assert published["manifest"] in shown
    assert "b.bin" in shown
    assert loads(ask(node, "store", "stat", "--json"))["packages"] == 1
    verified = loads(ask(node, "store", "verify", "--json"))
    assert (verified["bad_chunks"], verified["repairing"]) == (0, [])
    refused = ask(node, "packages", "rm", "app:1.0")
    assert refused.returncode == 1
    assert "last known copy" in refused.stderr
    [agent] = loads(ask(node, "fleet", "--json"))
    assert (agent["agent_id"], agent["state"]) == ("n1", "alive")
    assert agent["deployments"][0]["version"] == "1.0"
    assert agent["holdings"][0]["manifest"] == published["manifest"]
    assert "no peers" in ask(node, "peers").stdout
    chunk = next(path for path in (node.data_dir / "store/chunks").glob("*/*"))
    chunk.chmod(0o600)
    chunk.write_bytes(b"rot" * 100)
    rotten = ask(node, "store", "verify")
    assert rotten.returncode == 1
    assert "fetched again: app:1.0" in rotten.stdout
    assert "on its way" in ask(node, "why", "app").stdout


def test_two_nodes_exchange_a_package(start: Callable[..., Any], source: Path, tmp_path: Path) -> None:
    formation = Formation.init(tmp_path / "ca", "f1")
    for name, roles in (("hub", [Role.HUB, Role.PUBLISHER]), ("edge", [Role.AGENT])):
        formation.issue(name, roles, tmp_path / "certificates" / name)
    hub = start("up", "--formation", str(tmp_path / "certificates/hub"), name="hub")
    peer = f"{hub.ready['endpoint_id']}@{hub.ready['mesh']}"
    edge = start("up", "--formation", str(tmp_path / "certificates/edge"), "--peer", peer, name="edge")
    published = loads(ask(hub, "publish", str(source), "--name", "app", "--version", "1.0", "--json"))
    pulled = loads(ask(edge, "pull", "app", "--wait", "--to", str(tmp_path / "out"), "--json"))
    assert [origin["agent_id"] for origin in pulled["sources"]] == ["hub"]
    assert (tmp_path / "out/a.txt").read_bytes() == (source / "a.txt").read_bytes()
    [link] = loads(ask(edge, "peers", "--json"))
    assert (link["node_id"], link["state"]) == ("hub", "connected")
    assert {agent["agent_id"] for agent in loads(ask(hub, "fleet", "--json"))} == {"hub", "edge"}
    refused = ask(edge, "publish", str(source), "--name", "app", "--version", "2.0")
    assert refused.returncode == 5
    assert "publisher" in refused.stderr
    assert published["publisher"] == "hub"


def test_nothing_running_is_said_with_the_way_out(tmp_path: Path) -> None:
    for command in (["packages"], ["fleet"], ["peers"], ["pull", "app"], ["commands", "list"]):
        result = CliRunner().invoke(peat, [*command, "--data-dir", str(tmp_path)])
        assert isinstance(result.exception, NotFoundError)
        assert "peat up --dev" in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ["commands", "send", "reboot", "--target", "n1", "--package", "a:1"],
        ["commands", "send", "pull", "--package", "a:1"],
        ["commands", "send", "pull", "--target", "n1", "--package", "a:1", "--expires", "soon"],
        ["commands", "send", "pull", "--target", "n1", "--package", "a:1", "--path", "/x"],
        ["publish", "/nowhere", "--name", "a", "--version", "1"],
        ["pull", ":1"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(peat, arguments).exit_code == 2


def test_figures_for_people() -> None:
    assert [size(n) for n in (0, 1023, 1024, 5 << 20, 3 << 40, 5000 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 MiB",
        "3.0 TiB",
        "5000.0 TiB",
    ]
    assert rate(2048) == "2.0 KiB/s"
    assert [duration(s) for s in (0.2, 59.6, 61, 3600, 3661, 90_000)] == ["0s", "1m", "1m 1s", "1h", "1h 1m", "1d 1h"]
    assert ago(0) == "never"
    assert ago(90, now=100) == "10s ago"
    assert plain("a\x1b[31mb\n") == "a\ufffd[31mb\ufffd"
