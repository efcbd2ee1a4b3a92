"""The emulator measured with its own words: does a link do what its shape says?

Sockets of the test are made in the namespaces and used from threads of this process, so one-way delay is the
difference of two readings of one clock. Result files carry what this returns as their calibration.
"""

from __future__ import annotations

import itertools
import os
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from bench.net.network import Network
from bench.net.topology import pair

RATE_LIMIT = 0.03
DELAY_LIMIT = 0.002
LOSS_LIMIT = 0.05
EDGE_LIMIT = 0.05
CARRY_LIMIT = 500e6
_STAMP = struct.Struct("!Id")
_HEADERS = 28
_PORT = 9000
_SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>; Python has no name for it

Arrival = tuple[int, float, float, int]  # number, sent at, arrived at, bytes


class _Probe:
    """A UDP sender in one host and a receiver in the other."""

    def __init__(self, net: Network) -> None:
        self.arrivals: list[Arrival] = []
        with net.inside("b"):
            self._receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # As root, beyond the kernel's most: a receiver that gets the processor late must not miss what a link carried.
        self._receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self._receiver.bind((net.address("b"), _PORT))
        self._receiver.settimeout(0.1)
        with net.inside("a"):
            self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sender.connect((net.address("b"), _PORT))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="selftest-receiver")
        self._thread.start()

    def _receive(self) -> None:
        while True:
            try:
                data = self._receiver.recv(2048)
            except TimeoutError:
                if self._done.is_set():
                    return
                continue
            number, sent = _STAMP.unpack_from(data)
            self.arrivals.append((number, sent, time.monotonic(), len(data) + _HEADERS))

    def send(self, count: int, interval: float, size: int) -> list[float]:
        """Send `count` packets of `size` bytes (IP header included), one per `interval`, never in a late burst.

        Returns when each was sent.
        """
        filler = bytes(size - _HEADERS - _STAMP.size)
        sent = []
        due = time.monotonic()
        for number in range(count):
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            sent.append(time.monotonic())
            self._sender.send(_STAMP.pack(number, sent[-1]) + filler)
            due = max(due + interval, time.monotonic() - 20 * interval)
        return sent

    def finish(self, patience: float) -> list[Arrival]:
        time.sleep(patience)
        self._done.set()
        self._thread.join()
        self._receiver.close()
        self._sender.close()
        return self.arrivals


def measure_rate(rate: float, seconds: float, backend: str = "auto") -> float:
    """Bit/s that come through a link of `rate` which is offered half as much again."""
    with Network(pair(rate=rate, delay=0.01, queue=0.2, backend=backend)) as net:
        probe = _Probe(net)
        size = 1400
        probe.send(int(seconds * rate * 1.5 / size / 8), size * 8 / rate / 1.5, size)
        arrivals = probe.finish(0.4)
    middle = arrivals[len(arrivals) // 5 :]
    return sum(one[3] for one in middle[1:]) * 8 / (middle[-1][2] - middle[0][2])


def measure_delay(delay: float, jitter: float, count: int, backend: str = "auto") -> dict[str, float]:
    """One-way delays of sparse small packets, and how many overtook another."""
    with Network(pair(delay=delay, jitter=jitter, backend=backend)) as net:
        probe = _Probe(net)
        probe.send(count, 0.01, 100)
        arrivals = probe.finish(delay + jitter + 0.2)
    delays = sorted(arrived - sent for _, sent, arrived, _ in arrivals)
    numbers = [one[0] for one in arrivals]
    return {
        "median": statistics.median(delays),
        "mean": statistics.fmean(delays),
        "p95": delays[int(len(delays) * 0.95)],
        "lowest": delays[0],
        "highest": delays[-1],
        "overtaken": sum(a > b for a, b in itertools.pairwise(numbers)),
    }


def measure_loss(count: int, **shape: Any) -> dict[str, float]:
    """The share of `count` packets that is lost, and the mean length of a row of losses."""
    with Network(pair(delay=0.001, **shape)) as net:
        probe = _Probe(net)
        probe.send(count, 0.00005, 60)
        arrived = {one[0] for one in probe.finish(0.3)}
        counters = net.stats()["links"]["link"]["near>far"]
    rows = sum(number not in arrived and (number - 1 in arrived or number == 0) for number in range(count))
    lost = count - len(arrived)
    return {"loss": lost / count, "row": lost / max(rows, 1), "counted": counters["dropped_loss"] / count}


def measure_edges(up: float, down: float, periods: int, backend: str = "auto") -> float:
    """How far, in seconds, from an edge of the outage schedule a packet was still treated as before that edge.

    Judged by when each packet was really sent: a sender that gets the processor late says nothing of the link.
    """
    with Network(pair(delay=0.0, outage={"up": up, "down": down}, backend=backend)) as net:
        probe = _Probe(net)
        net.restart()
        started = time.monotonic()
        sent = probe.send(int(periods * (up + down) / 0.002), 0.002, 60)
        arrived = {one[0] for one in probe.finish(0.3)}
    if not 0 < len(arrived) < len(sent):
        return float("inf")
    worst = 0.0
    for number, at in enumerate(sent):
        phase = (at - started) % (up + down)
        if (phase < up) != (number in arrived):
            worst = max(worst, min(phase, abs(phase - up), up + down - phase))
    return worst


def measure_carry(seconds: float, backend: str = "auto") -> float:
    """Bit/s of one TCP connection over a link without a rate: what the emulator itself sustains."""
    with Network(pair(delay=0.0002, backend=backend)) as net:
        with net.inside("b"):
            listener = socket.create_server((net.address("b"), _PORT + 1))
        with net.inside("a"):
            sender = socket.socket()
        sender.connect((net.address("b"), _PORT + 1))
        receiver, _ = listener.accept()
        stop = threading.Event()

        def pump() -> None:
            block = bytes(1 << 20)
            try:
                while not stop.is_set():
                    sender.sendall(block)
            except OSError:
                pass

        thread = threading.Thread(target=pump, name="selftest-sender")
        thread.start()
        buffer = bytearray(1 << 20)
        total, started = 0, time.monotonic()
        while (now := time.monotonic()) < started + seconds:
            total += receiver.recv_into(buffer)
        stop.set()
        receiver.close()
        thread.join()
        sender.close()
        listener.close()
    return total * 8 / (now - started)


def selftest(
    seconds: float = 3.0,
    say: Callable[[str], None] = lambda text: None,
    backend: str = "auto",
    fastest: float = float("inf"),
) -> dict[str, Any]:
    """Measure everything; the dict says each figure, its target and whether all are within the emulator's promise.

    Rates beyond `fastest` bit/s are left out: what this machine cannot send itself says nothing of a link.
    """
    with Network(pair(backend=backend)) as net:
        backend = net.stats()["backend"]
    checks: list[dict[str, Any]] = []

    def check(name: str, value: float, target: float, error: float, limit: float) -> None:
        holds = error <= limit
        checks.append({"name": name, "value": value, "target": target, "error": error, "limit": limit, "holds": holds})
        say(f"{'ok    ' if holds else 'FAILED'} {name}: {value:.6g}, target {target:g}, error {error:.3g} of {limit:g}")

    for rate in [rate for rate in (56e3, 2e6, 20e6, 100e6) if rate <= fastest]:
        got = measure_rate(rate, seconds * (4 if rate < 1e6 else 1), backend)
        check(f"rate of {rate:g} bit/s", got, rate, abs(got / rate - 1), RATE_LIMIT)
    for delay in (0.0002, 0.025, 0.3):
        delays = measure_delay(delay, 0.0, int(seconds * 50), backend)
        check(f"delay of {delay:g} s, median", delays["median"], delay, abs(delays["median"] - delay), DELAY_LIMIT)
        check(f"delay of {delay:g} s, 95th percentile", delays["p95"], delay, abs(delays["p95"] - delay), DELAY_LIMIT)
    wandering = measure_delay(0.03, 0.01, int(seconds * 100), backend)
    bounds = max(0.02 - wandering["lowest"], wandering["highest"] - 0.04, 0.0)
    check("delay of 0.03 +- 0.01 s, outside its bounds", bounds, 0, bounds, DELAY_LIMIT)
    check("packets overtaken under jitter", wandering["overtaken"], 0, wandering["overtaken"], 0)
    # Over 20,000 packets a fair coin of 2 % is itself off by 5 % one time in three: enough packets for three of its
    # standard deviations to be within the limit.
    for loss, count in ((0.02, 180_000), (0.1, 40_000)):
        got = measure_loss(count, loss=loss, backend=backend)["loss"]
        check(f"loss of {loss:g} over {count:,} packets", got, loss, abs(got / loss - 1), LOSS_LIMIT)
    burst = measure_loss(80_000, burst={"enter": 0.02, "leave": 0.25, "loss": 1.0}, backend=backend)
    mean = 0.02 / 0.27
    check("burst loss, mean", burst["loss"], mean, abs(burst["loss"] / mean - 1), 2 * LOSS_LIMIT)
    check("burst loss, mean length of a row", burst["row"], 4.0, abs(burst["row"] / 4.0 - 1), 2 * LOSS_LIMIT)
    edges = measure_edges(0.6, 0.4, max(2, int(seconds)), backend)
    check("outage edges, worst", edges, 0, edges, EDGE_LIMIT)
    if fastest >= CARRY_LIMIT:
        carried = measure_carry(seconds, backend)
        check("carried by one TCP connection, bit/s", carried, CARRY_LIMIT, max(0.0, 1 - carried / CARRY_LIMIT), 0.0)
    return {
        "backend": backend,
        "kernel": os.uname().release,
        "holds": all(one["holds"] for one in checks),
        "checks": checks,
    }
