"""`python -m bench mesh [SCENARIO]`: what the mesh costs and how fast it is, beside a naive flood in the same run."""

from __future__ import annotations

from bench.mesh_load import scale
from bench.mesh_month import month
from bench.mesh_net import partition, radio
from bench.mesh_sim import fleet
from bench.mesh_wire import chain, idle
from bench.result import Bench, Scenario

BENCH = Bench(
    "mesh",
    "replication of documents between sidecars",
    (
        Scenario("idle", "bytes of a heartbeat and of a reconnect on an inter-site link at 5,000 agents", idle),
        Scenario("scale", "memory, restart, load and filling of a sidecar with 5,000 agents of 11 documents", scale),
        Scenario("month", "30 days of heartbeats of 1,000 agents replayed: store and memory do not grow", month),
        Scenario("chain", "bytes on each link of a chain of four", chain),
        Scenario("radio", "12 sidecars, 4 sites on 56 kbit/s, 5,000 agents: commands and freshness", radio),
        Scenario("partition", "12 sidecars on 1 Mbit/s, 300 ms, cut in two while both sides write", partition),
        Scenario("fleet", "up to 5,000 sidecars simulated: one command, a restart, a split; links per sidecar", fleet),
    ),
)
