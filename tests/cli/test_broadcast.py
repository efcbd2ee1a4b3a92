"""`peat broadcast` between real nodes that have no link to each other."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role


def test_a_node_that_only_hears_gets_the_package(start: Callable[..., Any], tmp_path: Path) -> None:
    formation = Formation.init(tmp_path / "ca", "air")
    formation.issue("base", [Role.AGENT, Role.PUBLISHER], tmp_path / "base-cert")
    formation.issue("ship", [Role.AGENT], tmp_path / "ship-cert")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        group = f"239.77.2.1:{probe.getsockname()[1]}"
    hears = ("--broadcast-listen", group, "--broadcast-interface", "127.0.0.1")
    base = start("up", "--formation", str(tmp_path / "base-cert"), name="base")
    ship = start("up", "--formation", str(tmp_path / "ship-cert"), *hears, name="ship")
    source = tmp_path / "app"
    source.mkdir()
    (source / "tool").write_bytes(bytes(range(256)) * 4000)
    assert base.peat("publish", str(source), "--name", "app", "--version", "1.0").returncode == 0

    missing = base.peat("broadcast", "nope", "--group", group, "--rate", "1M")
    assert (missing.returncode, missing.stderr.count("nope is not known here")) == (3, 1)
    wrong = base.peat("broadcast", "app", "--group", "127.0.0.1:9", "--rate", "1M")
    assert (wrong.returncode, "no multicast group" in wrong.stderr) == (2, True)

    sent = base.peat("broadcast", "app:1.0", "--group", group, "--rate", "2M", "--interface", "127.0.0.1", "--json")
    assert sent.returncode == 0, sent.stderr
    assert json.loads(sent.stdout)["sent_bytes"] > 0
    deadline = time.monotonic() + 60
    while not (found := json.loads(ship.peat("packages", "--json").stdout)):
        assert time.monotonic() < deadline, ship.log.read_text()
        time.sleep(0.2)
    assert (found[0]["name"], found[0]["held_bytes"], found[0]["publisher"]) == ("app", 1_024_000, "base")
    assert ship.peat("pull", "app:1.0", "--to", str(tmp_path / "out")).returncode == 0
    assert (tmp_path / "out/tool").read_bytes() == (source / "tool").read_bytes()


def test_a_group_that_is_none_is_refused_at_the_start(start: Callable[..., Any], tmp_path: Path) -> None:
    try:
        start("up", "--dev", "--broadcast-listen", "10.0.0.1:7000")
    except AssertionError as error:
        assert "no multicast group; give one such as 239.7.7.7:7407" in str(error)
        assert "Traceback" not in str(error)
    else:
        raise AssertionError("it started")
