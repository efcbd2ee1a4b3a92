"""What a bulk transfer does to those who share its link: how late a mesh command is meanwhile, and a foreground ping.

Commands are put into the holder's sidecar and seen in the agent's, through their Unix sockets, which need no network;
both ends have one clock. First on the idle link, then while the agent pulls a package from the holder by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.net import Network, pair
from bench.net.profiles import PROFILES
from bench.ping import Pinger
from bench.result import Run
from bench.rivals.base import Place
from bench.rivals.peat import Peat
from peat_p2p.client import SidecarClient
from peat_p2p.client.model import Upserted
from peat_p2p.core.errors import PeatError

LINKS = ("geo", "lte")
LATE_BAR, PING_BAR_MS = 2.0, 150.0
_PAUSE_S = 2.0
_SETTLE_S = 8.0
_MOST_S = 30.0


class _Commands:
    """Puts commands at one sidecar and times them until another has them."""

    def __init__(self, near: SidecarClient, far: SidecarClient) -> None:
        self._near = near
        self._far = far
        self._number = 0
        self._seen: dict[str, float] = {}
        self._came = asyncio.Event()

    async def follow(self) -> None:
        async for event in self._far.subscribe(["commands"]):
            if isinstance(event, Upserted):
                self._seen.setdefault(event.doc_id, time.monotonic())
                self._came.set()

    async def delays(self, count: int, more: Callable[[], bool] = lambda: True) -> list[float]:
        """Seconds that each of `count` commands took, fewer when `more` says no. Raises TimeoutError."""
        found = []
        for _ in range(count):
            if not more():
                break
            self._number += 1
            name = f"manners-{self._number}"
            order = {"target_id": "nobody", "command_type": "pull", "payload_json": '{"package": "p"}'}
            began = time.monotonic()
            await self._near.put_document("commands", name, order)
            async with asyncio.timeout(_MOST_S):
                while name not in self._seen:
                    self._came.clear()
                    await self._came.wait()
            found.append(self._seen[name] - began)
            await asyncio.sleep(_PAUSE_S)
        return found


def manners(run: Run) -> None:
    """See the module."""
    profiles = run.options.profile or LINKS
    seconds, count = (25.0, 6) if run.quick else (75.0, 20)
    run.parameter(profiles=list(profiles), commands=count, pause=_PAUSE_S, seconds=seconds)
    rows = []
    for profile in profiles:
        row = _on(profile, seconds, count, run)
        rows.append(row)
        late = row["command_busy_s"] / row["command_idle_s"] if row["command_busy_s"] else None
        run.at_most(f"command during a transfer / idle, median, {profile}", late, LATE_BAR, "x")
        run.at_most(f"ping rise, median, {profile}", row["ping_rise_ms"], PING_BAR_MS, "ms")
    run.record("by_link", rows)


def _on(profile: str, seconds: float, count: int, run: Run) -> dict[str, Any]:
    down = PROFILES[profile].down
    size = int(down.rate / 8 * (1 - down.mean_loss) * seconds)
    with tempfile.TemporaryDirectory(prefix=f"peat-bench-manners-{os.getpid()}-") as folder:
        package = Path(folder) / "package.bin"
        package.write_bytes(run.random.randbytes(size))
        with Network(pair(profile, near=("holder",), far=("agent1",), congestion="cubic", seed=run.seed)) as net:
            place = Place(net, "holder", ("agent1",), package, Path(folder))
            tool = Peat(place)
            tool.prepare()
            row = asyncio.run(_measure(tool, place, count, run.say))
    return {"profile": profile, "bytes": size, **row}


async def _measure(tool: Peat, place: Place, count: int, say: Callable[[str], None]) -> dict[str, Any]:
    sockets = [f"unix://{place.folder(host)}/data/api.sock" for host in (place.holder, *place.wanting)]
    async with SidecarClient(sockets[0]) as near, SidecarClient(sockets[1]) as far, asyncio.TaskGroup() as group:
        commands = _Commands(near, far)
        following = group.create_task(commands.follow())
        idle = await commands.delays(count)
        pinger = Pinger(place.net, place.wanting[0], place.holder, 0.2)
        await asyncio.sleep(3.0)
        began = time.time()
        fetch = tool.begin(place.wanting[0])
        await asyncio.sleep(_SETTLE_S)
        busy = await commands.delays(count, lambda: not fetch.is_done())
        _, rise, rise_p95 = pinger.finish(began)
        following.cancel()
        with contextlib.suppress(PeatError, asyncio.CancelledError):
            await following
    before, during = statistics.median(idle), statistics.median(busy) if busy else None
    say(f"commands idle {before:.3f} s, during a transfer {during or 0:.3f} s ({len(busy)}), ping +{rise or 0:.0f} ms")
    return {
        "command_idle_s": before,
        "command_idle_spread_s": [min(idle), max(idle)],
        "command_busy_s": during,
        "command_busy_spread_s": [min(busy), max(busy)] if busy else None,
        "commands_busy": len(busy),
        "ping_rise_ms": rise,
        "ping_rise_p95_ms": rise_p95,
    }
