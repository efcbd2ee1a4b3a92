"""Packages between whole nodes: waiting, dying, full disks and switching versions."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from peat_p2p.cli.demo.compare import differences
from peat_p2p.trust.identity import Role

MEBI = 1 << 20
ALL = (Role.HUB, Role.PUBLISHER, Role.AGENT)


def package(folder: Path, version: str, size: int = 6 * MEBI) -> Path:
    """A folder with everything a package may hold."""
    (folder / "empty").mkdir(parents=True)
    (folder / "deep/er").mkdir(parents=True)
    (folder / "version").write_text(version)
    (folder / "data.bin").write_bytes(random.Random(version).randbytes(size))
    (folder / "deep/er/run.sh").write_text("#!/bin/sh\n")
    (folder / "deep/er/run.sh").chmod(0o755)
    (folder / "deep/zero").touch()
    (folder / "link").symlink_to("deep/er/run.sh")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "unicode-\N{SNOWMAN} and space").write_text("x")
    return folder


def test_no_holder_waits_says_so_and_goes_on(fleet: Any, tmp_path: Path) -> None:
    source = package(tmp_path / "source", "1")
    hub = fleet.start("hub", "hub", roles=ALL)
    depot = fleet.start("up", "depot", "--peer", hub.peer, roles=ALL)
    edge = fleet.start("up", "edge", "--peer", hub.peer)
    depot.json("publish", str(source), "--name", "app", "--version", "1")
    fleet.until(lambda: edge.json("packages"))
    depot.kill()
    command_id = hub.send("pull", "--target", "edge", "--package", "app:1")
    fleet.until(lambda: "waiting" in hub.said(command_id, "edge")[1], what="it says that it waits")
    words = ["pull", "app:1", "--to", str(tmp_path / "out"), "--data-dir", str(edge.data_dir)]
    told: list[str] = []
    pull = threading.Thread(target=lambda: told.append(fleet.peat(*words).stderr), daemon=True)
    pull.start()
    time.sleep(2)
    assert pull.is_alive()
    depot = fleet.start("up", "depot", "--peer", hub.peer, roles=ALL)
    pull.join(40)
    assert not pull.is_alive()
    assert "waiting" in told[0]
    assert differences(source, tmp_path / "out") == []
    fleet.until(lambda: hub.said(command_id, "edge")[0] == "completed")


def test_stopped_and_killed_half_way_nothing_is_lost(fleet: Any, tmp_path: Path) -> None:
    source = package(tmp_path / "source", "1", 24 * MEBI)
    depot = fleet.start("up", "depot", roles=ALL)
    sidecar = fleet.start("sidecar", "edge", "--peer", depot.peer)
    words = ("--sidecar", f"unix://{sidecar.data_dir}/api.sock", "--download-limit", str(6 * MEBI))
    folder = tmp_path / "agent"
    agent = fleet.start("agent", "edge", *words, data_dir=folder)
    depot.json("publish", str(source), "--name", "app", "--version", "1")
    command_id = depot.send("deploy", "--target", "edge", "--package", "app:1")
    dice = random.Random(2)
    kept = 0

    def verified(agent: Any) -> int:
        return int(agent.transfer("app").get("verifiedBytes", 0))

    for life in range(4):
        fleet.until(partial(lambda agent, kept: verified(agent) > kept, agent, kept), what="bytes flow")
        time.sleep(dice.random() / 2)
        kept = verified(agent)
        if life == 1:
            assert agent.stop() < 5
        else:
            agent.kill()
        if life == 2:  # and its sidecar at the same moment
            sidecar.kill()
        agent = fleet.start("agent", "edge", *words, data_dir=folder)
        if life == 2:
            sidecar = fleet.start("sidecar", "edge", "--peer", depot.peer)
        fleet.until(partial(lambda agent, kept: verified(agent) >= kept, agent, kept), what="what it had was kept")
    fleet.until(lambda: depot.said(command_id, "edge")[0] == "completed", 60)
    assert differences(source, folder / "deployments/app/current") == []
    done = agent.transfer("app")
    # Four lives; each may lose what was under way (several chunks asked for at once) and nothing more.
    assert int(done["receivedBytes"]) < 24 * MEBI * 1.35, done
    assert agent.stop() < 5


def test_a_deployment_switches_at_once_and_keeps_the_old_version(fleet: Any, tmp_path: Path) -> None:
    node = fleet.start("up", "one", roles=ALL)
    current = node.data_dir / "deployments/app/current"
    for version in ("1", "2", "3"):
        package(tmp_path / version, version, MEBI)
        node.json("publish", str(tmp_path / version), "--name", "app", "--version", version)
    first = node.send("deploy", "--target", "one", "--package", "app:1")
    fleet.until(lambda: node.said(first, "one")[0] == "completed")
    seen: set[str] = set()
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            folder = Path(os.path.realpath(current))  # what a program does that starts from it
            seen.add((folder / "version").read_text() + str((folder / "data.bin").stat().st_size))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        order = node.send("deploy", "--target", "one", "--package", "app:2", "--path", str(tmp_path / "app"))
        fleet.until(lambda: node.said(order, "one")[0] == "completed")
    finally:
        over.set()
        reader.join()
    assert seen == {f"1{MEBI}", f"2{MEBI}"}
    assert differences(tmp_path / "2", current) == []
    assert (tmp_path / "app/version").read_text() == "2"
    kept = {(one / "version").read_text() for one in current.parent.iterdir() if one.is_dir() and not one.is_symlink()}
    assert kept == {"1", "2"}
    [me] = node.json("fleet")
    assert [(one["package"], one["version"]) for one in me["deployments"]] == [("app", "2")]


def test_a_single_file_and_an_empty_folder_are_packages(fleet: Any, tmp_path: Path) -> None:
    depot = fleet.start("up", "depot", roles=ALL)
    edge = fleet.start("up", "edge", "--peer", depot.peer)
    single, nothing = tmp_path / "tool", tmp_path / "nothing"
    single.write_bytes(os.urandom(100_000))
    single.chmod(0o755)
    nothing.mkdir()
    for name, path in (("single", single), ("nothing", nothing)):
        depot.json("publish", str(path), "--name", name, "--version", "1")
        done = edge.json("pull", name, "--wait", "--to", str(tmp_path / f"out-{name}"))
        assert done["state"] == "complete"
    assert (tmp_path / "out-single/tool").read_bytes() == single.read_bytes()
    assert os.access(tmp_path / "out-single/tool", os.X_OK)
    assert list((tmp_path / "out-nothing").iterdir()) == []


def test_a_sidecar_that_is_away_for_a_while(fleet: Any, tmp_path: Path) -> None:
    """The agent goes on with what it knows, queues nothing, and says how things stand once the sidecar is back."""
    source = package(tmp_path / "source", "1", MEBI)
    depot = fleet.start("up", "depot", "--heartbeat-interval", "1", roles=ALL)
    sidecar = fleet.start("sidecar", "edge", "--peer", depot.peer)
    words = ("--sidecar", f"unix://{sidecar.data_dir}/api.sock", "--heartbeat-interval", "1")
    agent = fleet.start("agent", "edge", *words, data_dir=tmp_path / "agent")
    fleet.until(lambda: len(depot.json("fleet")) == 2)
    depot.json("publish", str(source), "--name", "known", "--version", "1")
    fleet.until(lambda: sidecar.json("fleet")[0]["holdings"] or sidecar.json("fleet")[1]["holdings"])
    time.sleep(1)
    sidecar.kill()
    done = agent.peat("pull", "known:1")
    assert done.returncode == 0, done.stderr  # holders known before are enough
    order = depot.send("pull", "--target", "edge", "--package", "later:1")
    depot.json("publish", str(source), "--name", "later", "--version", "1")
    fleet.until(lambda: next(a for a in depot.json("fleet") if a["agent_id"] == "edge")["state"] != "alive", 30)
    log = agent.log.read_text().splitlines()
    assert len(log) < 60, "it does not fill the log while it waits"
    sidecar = fleet.start("sidecar", "edge", "--peer", depot.peer)
    fleet.until(lambda: next(a for a in depot.json("fleet") if a["agent_id"] == "edge")["state"] == "alive", 30)
    fleet.until(lambda: depot.said(order, "edge")[0] == "completed", 30)
    held = next(a for a in depot.json("fleet") if a["agent_id"] == "edge")["holdings"]
    assert sorted(one["package"] for one in held) == ["known", "later"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_tag_that_moves_during_a_pull_never_mixes_two_contents(fleet: Any, tmp_path: Path) -> None:
    first, second = package(tmp_path / "first", "1"), package(tmp_path / "second", "2")
    depot = fleet.start("up", "depot", roles=ALL)
    edge = fleet.start("up", "edge", "--peer", depot.peer, "--download-limit", str(MEBI))
    depot.json("publish", str(first), "--name", "app", "--version", "1")
    fleet.until(lambda: edge.json("packages"))
    words = ["pull", "app:1", "--to", str(tmp_path / "out"), "--data-dir", str(edge.data_dir)]
    pull = threading.Thread(target=partial(fleet.peat, *words), daemon=True)
    pull.start()
    fleet.until(lambda: int(edge.transfer("app").get("verifiedBytes", 0)) > 0)
    depot.json("publish", str(second), "--name", "app", "--version", "1")  # the same name and version once more
    pull.join(60)
    assert not pull.is_alive()
    assert differences(first, tmp_path / "out") == []
    fleet.until(lambda: len({one["manifest"] for one in edge.json("packages")}) == 2, what="it hears of the second")
    assert edge.json("pull", "app:1", "--to", str(tmp_path / "again"), timeout=60)["state"] == "complete"
    assert differences(second, tmp_path / "again") == []


@pytest.mark.timeout(300)
@pytest.mark.network  # mounting needs root
def test_a_disk_too_small_is_told_before_the_transfer_and_a_full_one_during_it(
    fleet: Any, tmp_path: Path, small_disk: Path
) -> None:
    big, fits = package(tmp_path / "big", "1", 60 * MEBI), package(tmp_path / "fits", "2", 20 * MEBI)
    depot = fleet.start("up", "depot", roles=ALL)
    edge = fleet.start(
        "up", "edge", "--peer", depot.peer, "--download-limit", str(4 * MEBI), data_dir=small_disk / "node"
    )
    for name, path in (("big", big), ("fits", fits)):
        depot.json("publish", str(path), "--name", name, "--version", "1")
    done = edge.peat("pull", "big:1", "--wait")
    assert done.returncode == 6, done.stderr
    assert str(small_disk) in done.stderr
    assert "Traceback" not in done.stderr
    order = depot.send("pull", "--target", "edge", "--package", "big:1")
    fleet.until(lambda: depot.said(order, "edge")[0] == "failed", what="the order fails")
    assert str(small_disk) in depot.said(order, "edge")[1]

    order = depot.send("pull", "--target", "edge", "--package", "fits:1")
    fleet.until(lambda: int(edge.transfer("fits").get("verifiedBytes", 0)) > 0)
    filler = small_disk / "filler"
    with filler.open("wb") as out:  # somebody else fills it meanwhile
        try:
            while True:
                out.write(b"\0" * MEBI)
                out.flush()
        except OSError:
            pass

    time.sleep(12)  # long enough for all that is done in the background to meet it
    assert edge.process.poll() is None, edge.log.read_text()
    filler.unlink()
    assert edge.json("pull", "fits:1", timeout=90)["state"] == "complete"
    assert edge.stop() < 5
