"""`python -m bench mesh [SCENARIO]`: what the mesh costs and how fast it is, beside a naive flood in the same run."""

from __future__ import annotations

from bench.mesh_sim import fleet
from bench.mesh_wire import chain, idle
from bench.result import Bench, Scenario

BENCH = Bench(
    "mesh",
    "replication of documents between sidecars",
    (
        Scenario("idle", "bytes of a heartbeat and of a reconnect on an inter-site link at 5,000 agents", idle),
        Scenario("chain", "bytes on each link of a chain of four", chain),
        Scenario("fleet", "up to 5,000 sidecars simulated: one command, a restart, a split; links per sidecar", fleet),
    ),
)
