"""The demo's fleet: who its nodes are, where they stand, and how each process is started.

Owns the cast and the command lines; the story (`story.py`) tells when. Sites are joined by configured peers alone, so
that the picture is the same wherever the demo runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peat_p2p.cli.demo.processes import Processes, Running
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role

HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Member:
    """A node of the demo. `peers` are the nodes its sidecar is told to keep a link with."""

    name: str
    site: str
    roles: tuple[Role, ...]
    peers: tuple[str, ...] = ()


HUB = Member("hub", "hq", (Role.HUB,))
DEPOT = Member("depot", "hq", (Role.AGENT, Role.PUBLISHER), ("hub",))
ALPHA = (
    Member("alpha-1", "alpha", (Role.AGENT,), ("hub",)),
    Member("alpha-2", "alpha", (Role.AGENT,), ("alpha-1", "hub")),
)
BRAVO = (
    Member("bravo-1", "bravo", (Role.AGENT,), ("alpha-1", "alpha-2")),
    Member("bravo-2", "bravo", (Role.AGENT,), ("bravo-1", "alpha-2")),
)
LATE = Member("bravo-3", "bravo", (Role.AGENT,), ("bravo-1", "bravo-2"))
EDGE = (*ALPHA, *BRAVO)
EVERYONE = (HUB, DEPOT, *EDGE, LATE)
# Each site has a loopback address of its own, so that an agent can tell a neighbour from a stranger.
_HOSTS = {"hq": "127.0.1.1", "alpha": "127.0.2.1", "bravo": "127.0.3.1"}


@dataclass(slots=True)
class Fleet:
    """The fleet's processes and what is known of them. `limit` is in bytes per second, what an edge agent may fetch."""

    root: Path
    processes: Processes
    limit: int = 0
    sidecars: dict[str, Running] = field(default_factory=dict)
    agents: dict[str, Running] = field(default_factory=dict)
    endpoint_ids: dict[str, str] = field(default_factory=dict)

    def form(self, name: str) -> None:
        """Make the formation and a certificate for every member."""
        formation = Formation.init(self.root / "ca", name)
        for member in EVERYONE:
            identity = formation.issue(member.name, member.roles, self.root / "nodes" / member.name)
            self.endpoint_ids[member.name] = identity.endpoint_id

    async def start_sidecar(self, member: Member) -> None:
        """Start a member's sidecar (for the hub: the hub with its sidecar)."""
        command = "hub" if member is HUB else "sidecar"
        peers: list[str] = []
        for peer in member.peers:
            running = self.sidecars.get(peer)
            if running is not None:
                peers += ["--peer", f"{self.endpoint_ids[peer]}@{running.endpoints.mesh}"]
        self.sidecars[member.name] = await self.processes.start(
            f"{member.name}-{command}", [command, *self._common(member), *peers]
        )

    async def start_agent(self, member: Member) -> None:
        """Start a member's agent beside its sidecar."""
        extra: Sequence[str] = ["--sidecar", self.sidecars[member.name].endpoints.api]
        host = f"{_HOSTS[member.site]}:0"
        extra = [*extra, "--heartbeat-interval", str(HEARTBEAT_SECONDS)]
        extra = [*extra, "--swarm-listen", host, "--metadata-listen", host]
        if member is not DEPOT and self.limit:
            extra = [*extra, "--download-limit", str(self.limit)]
        self.agents[member.name] = await self.processes.start(
            f"{member.name}-agent", ["agent", *self._common(member), *extra]
        )

    async def kill_agent(self, member: Member) -> None:
        """SIGKILL a member's agent."""
        await self.processes.kill(self.agents[member.name].name)

    async def kill_sidecar(self, member: Member) -> None:
        """SIGKILL a member's sidecar (for the hub: the hub with its sidecar)."""
        await self.processes.kill(self.sidecars.pop(member.name).name)

    def data_dir(self, member: Member) -> Path:
        """The folder a member keeps its data in."""
        return self.root / "data" / member.name

    def _common(self, member: Member) -> list[str]:
        return [
            "--data-dir",
            str(self.data_dir(member)),
            "--formation",
            str(self.root / "nodes" / member.name),
            "--site",
            member.site,
            "--no-mdns",
            "--log-level",
            "INFO",
        ]
