"""The ways to carry bytes between two agents, alone and beside each other, over every kind of link; hosts at cubic.

What is kept in src/ is what measures best here; what does not is kept in bench/ so that the figures can be repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.net import Network, pair
from bench.net.network import ROOT
from bench.net.profiles import PROFILES
from bench.result import Bench, Run, Scenario

BEARERS = {
    "tcp": "tcp:1:",
    "tcp-bbr": "tcp:1:bbr",
    "4 x tcp-bbr": "tcp:4:bbr",
    "udp": "udp",
    "udp-fec": "fec",
}
LINKS = ("lte", "leo", "geo", "lossy-geo", "manet", "radio")
MIB = 1 << 20
SIDE_BY_SIDE_RATE = 5e6


@dataclass(frozen=True, slots=True)
class Cell:
    profile: str
    bearer: str
    size: int
    seed: int  # of what the link loses: each run has its own, the same for every bearer


def _size(profile: str, seconds: float) -> int:
    down = PROFILES[profile].down
    return min(int(down.rate / 8 * (1 - down.mean_loss) * seconds), 128 * MIB)


def _carry(cell: Cell, package: Path, digest: str, root: Path) -> dict[str, Any]:
    """One transfer; `fill` as in bench/links.py. Cut off at five times what an ideal sender would take."""
    down = PROFILES[cell.profile].down
    ideal = cell.size * 8 / down.rate / (1 - down.mean_loss)
    kind = BEARERS[cell.bearer]
    target = root / f"{cell.profile}-{kind.replace(':', '-')}-{cell.seed}"
    with Network(pair(cell.profile, near=("a",), far=("b",), congestion="cubic", seed=cell.seed)) as net:
        words = [sys.executable, "-m", "bench.carry"]
        giver = net.start("a", [*words, "give", kind, net.address("a"), str(package)], cwd=ROOT)
        time.sleep(3.0)
        net.restart()
        began = time.monotonic()
        took = [*words, "take", kind, net.address("a"), net.address("b"), str(cell.size), str(target)]
        taker = net.start("b", took, cwd=ROOT)
        try:
            code: int | None = taker.wait(ideal * 5 + 10)
        except subprocess.TimeoutExpired:
            code = None
            taker.kill()
        seconds = time.monotonic() - began
        giver.kill()
        ways = net.stats()["links"]["link"]
    whole = code == 0 and hashlib.sha256(target.read_bytes()).hexdigest() == digest
    sent = ways["near>far"]["sent_bytes"]
    done = 1.0 if whole else min(0.999, ways["near>far"]["delivered_bytes"] * 0.95 / cell.size)
    return {"seconds": seconds if whole else None, "fill": ideal * done / seconds, "sent_ratio": sent / cell.size}


def by_link(run: Run) -> None:
    """Every bearer over every link."""
    seconds = 10.0 if run.quick else 30.0
    links = run.options.profile or [link for link in LINKS if not (run.quick and link == "radio")]
    runs = run.options.runs
    run.parameter(seconds=seconds, runs=runs, links=list(links), congestion="cubic", bearers=BEARERS)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-bearers-") as folder:
        root = Path(folder)
        packages = {}
        for link in links:
            path = root / f"{link}.bin"
            data = run.random.randbytes(_size(link, seconds))
            path.write_bytes(data)
            packages[link] = (path, hashlib.sha256(data).hexdigest())

        def one(cell: Cell) -> None:
            outcome = _carry(cell, *packages[cell.profile], root)
            found.setdefault((cell.profile, cell.bearer), []).append(outcome)
            run.say(
                f"{cell.profile:<10} {cell.bearer:<12} fill {outcome['fill']:.2f}  sent {outcome['sent_ratio']:.3f}"
            )

        cells = [
            Cell(link, bearer, _size(link, seconds), seed)
            for seed in run.seeds(runs)
            for link in links
            for bearer in BEARERS
        ]
        slow = [cell for cell in cells if PROFILES[cell.profile].down.rate <= SIDE_BY_SIDE_RATE]
        with ThreadPoolExecutor(2 * (os.cpu_count() or 1) + 2) as pool:
            list(pool.map(one, slow))
        for cell in cells:
            if cell not in slow:
                one(cell)
    rows = [
        {
            "profile": link,
            "bearer": bearer,
            "bytes": _size(link, seconds),
            "fill": statistics.median(outcome["fill"] for outcome in outcomes),
            "sent_ratio": statistics.median(outcome["sent_ratio"] for outcome in outcomes),
            "runs": outcomes,
        }
        for (link, bearer), outcomes in sorted(found.items(), key=lambda item: (links.index(item[0][0]), item[0][1]))
    ]
    run.record("rows", rows)
    for link in links:
        here = {row["bearer"]: row["fill"] for row in rows if row["profile"] == link}
        kept = max(here["udp"], here["4 x tcp-bbr"])
        run.at_least(f"kept / best, {link}", kept / max(here.values()), 0.97, "x")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", action="append", choices=LINKS, help="this link alone; repeatable")
    parser.add_argument("--runs", type=int, default=1, help="runs of each cell")


BENCH = Bench(
    "bearers",
    "the ways to carry bytes between two agents, beside each other",
    (Scenario("by-link", "every bearer alone over every link, hosts at cubic", by_link),),
    _arguments,
)
