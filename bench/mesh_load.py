"""How much one sidecar can hold and take: the scenario scale, over loopback."""

from __future__ import annotations

import time
from typing import Any

from bench.mesh_fleet import NodeProcess, Processes, processes, wait_until
from bench.result import Run

AGENTS = 5000
INTERVAL = 30.0
DEPLOYMENTS = PACKAGES = 5


def scale(run: Run) -> None:
    count = 500 if run.quick else AGENTS
    agents = [f"agent-{number:04d}" for number in range(count)]
    seconds = 15.0 if run.quick else 30.0
    run.parameter(agents=count, documents=count * 11, heartbeats_per_second=AGENTS / INTERVAL, seconds=seconds)
    for engine in ("mesh", "naive"):
        with processes(None, engine) as fleet:
            figures = _scale(run, fleet, agents, seconds, engine)
        if engine == "naive":
            run.baseline("whole documents flooded over WebSocket, in memory, in clear", figures)
            continue
        for name, value in figures.items():
            run.record(name, value)
        run.at_most("memory with all documents", figures["rss"] / 1e6, 500.0, unit="MB")
        run.at_most("restart to ready", figures["restart_seconds"], 5.0, unit="s")
        run.at_most("heartbeats, of one core", 100 * figures["receiver_cpu_share"], 15.0, unit="%")
        run.at_most("filling an empty peer", figures["fill_seconds"], 15.0, unit="s")


def _scale(run: Run, fleet: Processes, agents: list[str], seconds: float, engine: str) -> dict[str, Any]:
    a = fleet.start("a", site="near", watch=False)
    run.say(f"{engine}: writing {len(agents) * 11} documents")
    wrote = a.ask("fill", agents=agents, site="near", deployments=DEPLOYMENTS, packages=PACKAGES, timeout=600)
    size = a.ask("size")
    figures: dict[str, Any] = {"written_per_second": len(agents) * 11 / wrote["seconds"]}
    run.say("filling an empty peer")
    began = time.monotonic()
    b = fleet.start("b", a, site="near", watch=False)
    started = time.monotonic() - began
    filled = wait_until(lambda: b.ask("size") >= size, 300, every=0.2)
    figures["fill_seconds"] = None if filled is None else filled
    figures["peer_start_seconds"] = started
    figures["rss"] = b.ask("stats")["rss"]
    figures["writer_rss"] = a.ask("stats")["rss"]
    if engine == "naive":
        figures["restart_seconds"] = None
    else:
        run.say("restarting it")
        fleet.stop(b)
        b = fleet.start("b", a, site="near", watch=False)
        figures["restart_seconds"] = b.ask("info")["ready_seconds"]
        figures["rss_after_restart"] = b.ask("stats")["rss"]
    time.sleep(3)
    run.say("heartbeats")
    before = _cpu(a), _cpu(b)
    a.ask("heartbeats", agents=agents, interval=INTERVAL * len(agents) / AGENTS, seconds=seconds)
    time.sleep(seconds + 1)
    after = _cpu(a), _cpu(b)
    figures["writer_cpu_share"] = (after[0] - before[0]) / (seconds + 1)
    figures["receiver_cpu_share"] = (after[1] - before[1]) / (seconds + 1)
    figures["freshness_worst"] = b.ask("freshness")[-1]
    return figures


def _cpu(node: NodeProcess) -> float:
    return float(node.ask("stats")["cpu"])
