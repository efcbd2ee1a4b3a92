"""What the demo found: per agent and as a whole, as a table and as JSON.

Owns the conditions of success; the story only gathers facts.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from rich.table import Table

from peat_p2p import __version__

CENTRE = ("hub", "depot")
_LIBRARIES = ("aiohttp", "pycrdt", "libtorrent", "blake3", "connectrpc", "cryptography", "zeroconf", "zstandard")


@dataclass(slots=True)
class AgentResult:
    """One agent at the end. Bytes are payload; `differences` compare its deployed tree with what was published."""

    agent: str
    phase: str
    site: str = ""
    digest: str = ""
    verified: bool = False
    seconds: float = 0.0
    received_bytes: int = 0
    wasted_bytes: int = 0
    reused_bytes: int = 0
    bytes_by_source: dict[str, int] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    @property
    def from_centre(self) -> int:
        """Bytes that came from the hub or the publisher."""
        return sum(count for source, count in self.bytes_by_source.items() if source in CENTRE)


@dataclass(slots=True)
class KillResult:
    """What the kill half way cost, in bytes of payload.

    `received_*` are the agent's own counters: at the last look before the kill, at the first look after the restart.
    `in_flight_bytes` bounds what was on its way at the kill and not yet part of a verified chunk.
    """

    agent: str
    verified_at_kill: int
    received_at_kill: int
    verified_after_restart: int
    received_at_restart: int
    to_receive: int
    in_flight_bytes: int
    received_after_restart: int = 0

    @property
    def fetched_twice(self) -> int:
        """What both lives of the agent received, less what there was to receive."""
        return max(0, self.received_at_kill + self.received_after_restart - self.to_receive)


@dataclass(slots=True)
class Report:
    """The whole run. `holds` says whether everything the demo promises was true."""

    package: str
    files: int
    total_bytes: int
    digest: str
    agents: list[AgentResult]
    kill: KillResult | None
    seconds: float
    problems: list[str]

    def entered(self) -> dict[str, int]:
        """Return how many bytes came into each site from outside it, all its agents together."""
        site_of = {a.agent: a.site for a in self.agents}
        sites = dict.fromkeys(site_of.values(), 0)
        for a in self.agents:
            for source, count in a.bytes_by_source.items():
                # What a killed agent could not put a name to any more counts as from outside.
                if site_of.get(source) != a.site:
                    sites[a.site] += count
        return sites

    def checks(self) -> list[tuple[str, bool]]:
        """Return every promise with whether it was kept."""
        late = [a for a in self.agents if a.phase == "hub dead"]
        kill = self.kill
        return [
            (
                "every agent holds the published digest, verified",
                bool(self.agents) and all(a.verified and a.digest == self.digest for a in self.agents),
            ),
            (
                "every agent's content equals what was published, byte for byte",
                all(not a.differences for a in self.agents),
            ),
            ("three agents fetched after hub and publisher were dead", len(late) == 3),
            (
                "none of their bytes came from the hub or the publisher",
                all(a.from_centre == 0 and sum(a.bytes_by_source.values()) > 0 for a in late),
            ),
            (
                "the killed agent kept every verified byte",
                kill is not None and 0 < kill.verified_at_kill <= kill.verified_after_restart,
            ),
            (
                "nothing was fetched twice beyond the blocks in flight",
                kill is not None and kill.fetched_twice <= kill.in_flight_bytes,
            ),
            ("every process that was not killed stopped cleanly", not self.problems),
        ]

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return all(kept for _, kept in self.checks())

    def to_json(self) -> dict[str, Any]:
        """Return the report with the facts of the machine it ran on."""
        return {
            "name": "demo",
            "version": __version__,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": {
                "system": platform.platform(),
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
                "python": platform.python_version(),
            },
            "versions": {name: metadata.version(name) for name in _LIBRARIES},
            "result": {
                **asdict(self),
                "agents": [{**asdict(a), "from_hub_or_publisher": a.from_centre} for a in self.agents],
                "entered_by_site": self.entered(),
                "fetched_twice_bytes": self.kill.fetched_twice if self.kill else None,
            },
            "bars": [{"name": name, "value": kept, "limit": True, "holds": kept} for name, kept in self.checks()],
            "holds": self.holds,
        }

    def table(self) -> Table:
        """Return the table of agents."""
        table = Table(title=f"{self.package}, {_mb(self.total_bytes)} in {self.files} files", title_justify="left")
        for heading in ("AGENT", "FETCHED WHILE", "DIGEST", "VERIFIED", "SECONDS", "FROM PEERS", "FROM HUB/PUBLISHER"):
            table.add_column(heading, justify="right" if heading in ("SECONDS", "FROM HUB/PUBLISHER") else "left")
        for a in self.agents:
            sources = sorted(a.bytes_by_source.items(), key=lambda item: -item[1])
            table.add_row(
                a.agent,
                a.phase,
                a.digest.removeprefix("blake3:")[:16],
                "yes" if a.verified and not a.differences else "[red]NO[/]",
                f"{a.seconds:.1f}",
                "  ".join(f"{source or 'unknown'} {_mb(count)}" for source, count in sources if source not in CENTRE),
                _mb(a.from_centre) if a.from_centre else "0",
            )
        return table


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
