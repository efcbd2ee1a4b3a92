"""Real namespaces: packets go where they should, as they should, and nothing stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.net import Network, NetworkError, netem, pair, parse, state
from bench.net.selftest import measure_delay, measure_edges, measure_loss, measure_rate

pytestmark = pytest.mark.network
ROOT = Path(__file__).resolve().parent.parent.parent


def ping(net: Network, source: str, target: str, count: int = 3) -> list[float]:
    """Round trips in ms of the pings that were answered."""
    done = net.run(source, ["ping", "-n", "-c", str(count), "-i", "0.1", "-W", "1", net.address(target)], check=False)
    return [float(one) for one in re.findall(r"time=([0-9.]+) ms", done.stdout)]


def gone(pid: int, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if state.start_time(pid) is None:
            return True
        time.sleep(0.05)
    return False


def test_hosts_reach_each_other_over_lans_and_links() -> None:
    topology = parse(
        {
            "sites": {"base": ["holder"], "boat": ["one", "two"], "far": ["last"]},
            "links": [
                {"between": ["base", "boat"], "delay": 0.05},
                {"between": ["boat", "far"], "delay": 0.02, "rate": "1M"},
            ],
        }
    )
    with Network(topology) as net:
        assert 100 <= min(ping(net, "one", "holder")) < 110
        assert min(ping(net, "one", "two")) < 5
        assert 140 <= min(ping(net, "last", "holder")) < 160
        assert ping(net, "holder", "holder")
        stats = net.stats()["links"]
        assert stats["base-boat"]["boat>base"]["delivered_packets"] == 6
        assert stats["boat-far"]["far>boat"]["delivered_bytes"] == 3 * 84


def test_the_ports_of_a_lan_carry_no_more_than_its_rate() -> None:
    with Network(parse({"lan": "10M", "sites": {"rack": ["a", "b"]}})) as net:
        for host in ("a", "b"):
            assert "qdisc tbf" in net.run(host, ["tc", "qdisc", "show", "dev", "eth0"]).stdout


def test_a_network_does_not_reach_the_machine_or_another_network() -> None:
    with Network(pair()) as one, Network(pair()) as two, two.inside("a"):
        listener = socket.create_server((two.address("a"), 7000))
        with listener, one.inside("b"):
            probe = socket.socket()
            probe.settimeout(1.0)
            with probe, pytest.raises(OSError):
                probe.connect((one.address("a"), 7000))
        with pytest.raises(NetworkError, match="ended with"):
            one.run("b", ["ping", "-c", "1", "-W", "1", "192.0.2.1"])


def test_a_link_can_be_cut_mended_and_changed_while_it_runs() -> None:
    with Network(pair(delay=0.01)) as net:
        assert len(ping(net, "a", "b")) == 3
        net.cut("link")
        assert ping(net, "a", "b", 1) == []
        net.mend("link")
        net.change("link", "down", delay=0.1)
        assert 110 <= min(ping(net, "a", "b")) < 120
        with pytest.raises(NetworkError, match="no property"):
            net.change("link", speed=3)
        with pytest.raises(NetworkError):
            net.change("nothing", loss=0.1)


def test_the_congestion_control_is_the_one_asked_for() -> None:
    for wanted in ("cubic", "reno"):
        with Network(pair(congestion=wanted)) as net:
            with net.inside("b"):
                listener = socket.create_server((net.address("b"), 7000))
            with net.inside("a"):
                sender = socket.socket()
            sender.connect((net.address("b"), 7000))
            accepted, _ = listener.accept()
            for end in (sender, accepted):
                assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == wanted.encode()
                end.close()
            listener.close()


def test_a_multicast_on_a_shared_channel_is_sent_once_and_reaches_all() -> None:
    topology = parse(
        {
            "sites": {"s": ["s0"], "x": ["x0"], "y": ["y0"], "z": ["z0"]},
            "links": [{"name": "air", "between": ["s", "x", "y", "z"], "rate": "1M"}],
        }
    )
    group = "239.1.2.3"
    with Network(topology) as net:
        receivers = []
        for host in ("x0", "y0", "z0"):
            with net.inside(host):
                receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                receiver.bind((group, 7000))
                membership = socket.inet_aton(group) + socket.inet_aton(net.address(host))
                receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            receiver.settimeout(2.0)
            receivers.append(receiver)
        net.restart()
        with net.inside("s0"):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.sendto(b"to all", (group, 7000))
        for receiver in receivers:
            assert receiver.recv(100) == b"to all"
            receiver.close()
        sender.close()
        sent = net.stats()["links"]["air"]
        assert sum(one["sent_packets"] for name, one in sent.items() if name.startswith("s>")) == 1
        assert min(ping(net, "x0", "z0", 1)) < 50


def test_nothing_is_left_after_the_context() -> None:
    with Network(pair()) as net:
        process = net.start("a", ["sleep", "100"])
        directory = net.directory
        relay = state.read(directory)
        assert relay is not None
    assert process.poll() is not None
    assert not directory.exists()
    assert gone(relay.pid)


OWNER = """
import sys, time
from bench.net import Network, pair
net = Network(pair())
net.up()
process = net.start("a", ["sleep", "1000"])
print(net.directory, process.pid, flush=True)
time.sleep(1000)
"""


def killed_owner() -> tuple[Path, int, subprocess.Popen[str]]:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    directory, pid = owner.stdout.readline().split()
    owner.stdout.close()
    while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
        time.sleep(0.01)
    return Path(directory), int(pid), owner


def test_a_network_ends_with_its_owner_even_when_that_is_killed() -> None:
    directory, pid, owner = killed_owner()
    relay = state.read(directory)
    assert relay is not None
    owner.kill()
    owner.wait()
    assert gone(pid)
    assert gone(relay.pid)
    assert not directory.exists()


def test_what_a_killed_relay_leaves_is_ended_by_the_next_start() -> None:
    directory, pid, owner = killed_owner()
    relay = state.read(directory)
    assert relay is not None
    os.kill(relay.pid, signal.SIGKILL)
    assert gone(relay.pid)
    owner.kill()
    owner.wait()
    assert gone(relay.pid)
    with Network(pair()):
        assert gone(pid)
        assert not directory.exists()


def test_a_killed_bench_leaves_no_network_and_no_tool(tmp_path: Path) -> None:
    words = ["links", "one-agent", "--quick", "--profile", "radio", "--tool", "rsync", "--no-calibration"]
    with (tmp_path / "log").open("wb") as log:
        killed = subprocess.Popen(
            [sys.executable, "-m", "bench", *words],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
    until = time.monotonic() + 120
    inside: list[int] = []
    mine: dict[Path, state.State] = {}
    while len(inside) < 3:  # the server, the fetching tool and the ping
        assert killed.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < until, (tmp_path / "log").read_text()
        time.sleep(0.05)
        mine = {path: one for path, one in state.running().items() if f".{killed.pid}." in path.name}
        inside = [
            pid for one in mine.values() for pid in state.processes_in({inode for _, inode in one.namespaces.values()})
        ]
    killed.kill()
    killed.wait()
    assert all(gone(pid) for pid in inside)
    assert all(gone(one.pid) for one in mine.values())
    assert not any(path.exists() for path in mine)


def test_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "byhand.toml"
    file.write_text((ROOT / "bench" / "net" / "geo2.toml").read_text().replace('"geo2"', '"byhand"'))

    def bench(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bench", "net", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
        )

    up = bench("up", str(file))
    try:
        assert up.returncode == 0, up.stderr
        assert "holder" in up.stdout
        assert bench("exec", "--name", "byhand", "one", "ping", "-c", "1", "10.1.0.2").returncode == 0
        assert bench("exec", "--name", "byhand", "nobody", "true").returncode == 1
        stats = json.loads(bench("stats", "--name", "byhand").stdout)
        assert stats["links"]["base-boat"]["boat>base"]["sent_packets"] == 1
        assert "byhand" in bench("list").stdout
    finally:
        down = bench("down", "--name", "byhand")
    assert down.returncode == 0, down.stderr


# Ours is what defines a link; the kernel's own is held to the same where there is one.
BACKENDS = ["tun"] if netem.why_not(pair()) else ["tun", "netem"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def test_netem_is_what_makes_the_links_where_the_kernel_has_it() -> None:
    expected = os.environ.get("PEAT_TEST_BACKEND", BACKENDS[-1])
    with Network(pair()) as net:
        assert net.stats()["backend"] == expected
    with Network(pair("manet")) as net:
        assert net.stats()["backend"] == "tun"


def test_a_network_that_cannot_be_built_says_why() -> None:
    with pytest.raises(NetworkError, match=r"cannot set up a: .*nonsense"), Network(pair(congestion="nonsense")):
        pass
    with pytest.raises(NetworkError, match="netem cannot do it: link is a shared channel"):
        Network(pair("manet", backend="netem")).up()


@each_backend
def test_rate(backend: str) -> None:
    assert measure_rate(2e6, 2.0, backend) == pytest.approx(2e6, rel=0.03)


@each_backend
def test_delay_and_jitter(backend: str) -> None:
    delays = measure_delay(0.05, 0.0, 100, backend)
    assert delays["median"] == pytest.approx(0.05, abs=0.002)
    wandering = measure_delay(0.03, 0.01, 150, backend)
    assert wandering["lowest"] >= 0.02
    assert wandering["highest"] - wandering["lowest"] > 0.005
    assert wandering["overtaken"] == 0


@each_backend
def test_loss_is_what_the_receiver_misses(backend: str) -> None:
    found = measure_loss(5_000, loss=0.1, backend=backend)
    assert found["loss"] == pytest.approx(0.1, rel=0.15)
    assert found["loss"] == pytest.approx(found["counted"], rel=0.02)


@each_backend
def test_burst_loss(backend: str) -> None:
    found = measure_loss(8_000, burst={"enter": 0.05, "leave": 0.25, "loss": 1.0}, backend=backend)
    assert found["loss"] == pytest.approx(0.05 / 0.30, rel=0.25)
    assert found["row"] == pytest.approx(4.0, rel=0.25)


@each_backend
def test_outage_edges(backend: str) -> None:
    assert measure_edges(0.4, 0.3, 3, backend) <= 0.05


@each_backend
def test_what_an_outage_and_a_full_queue_drop_is_counted_as_theirs(backend: str) -> None:
    shape = {"rate": "1M", "delay": 0.05, "queue": 0.1, "outage": {"up": 1.0, "down": 60.0}}
    with Network(pair(backend=backend, **shape)) as net:
        with net.inside("a"):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        there = (net.address("b"), 9)
        net.restart()
        for _ in range(40):  # 56 kB at once: the queue has room for 12.5
            sender.sendto(bytes(1372), there)
        time.sleep(1.2)
        for _ in range(10):
            sender.sendto(bytes(1372), there)
        time.sleep(0.3)
        found = net.stats()["links"]["link"]["near>far"]
        sender.close()
    assert found["down"]
    assert found["offered_packets"] == 50
    assert found["offered_bytes"] == 50 * 1400
    assert found["dropped_outage"] == 10
    assert found["dropped_queue"] == pytest.approx(31, abs=2)
    assert found["dropped_loss"] == 0
    assert found["sent_packets"] == found["delivered_packets"] == 40 - found["dropped_queue"]
    assert found["delivered_bytes"] == 1400 * found["delivered_packets"]
