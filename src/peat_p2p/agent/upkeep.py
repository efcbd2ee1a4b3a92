"""Upkeep of the store: checking it, making room, collecting garbage, removing packages.

Owns the rules of removal (never the last known copy unprompted), what follows from rot (what is lost is fetched again)
and the loop that does both in the background. What to evict is decided in `content/`; this file gathers the facts. Must
not know how chunks are stored or fetched.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from peat_p2p.agent.service import Agent
from peat_p2p.agent.steady import Steady
from peat_p2p.agent.threads import Stopper, in_thread
from peat_p2p.agent.transfers import priority_of
from peat_p2p.content.store import PackageSummary
from peat_p2p.content.stored import Checked, GcResult, StoreStat
from peat_p2p.content.upkeep import ScrubPace, plan_eviction, scrub_step, verify_store
from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import ConflictError, NotFoundError

log = logging.getLogger(__name__)

_ROOM_SECONDS = 30.0
_MEND_ROUNDS = 60  # of the scrub: about once an hour


@dataclass(frozen=True, slots=True)
class VerifyState:
    """How far a verification is. `repairing` names packages that lost chunks; it is filled at the end."""

    bytes_done: int = 0
    bytes_total: int = 0
    chunks: int = 0
    bad: int = 0
    repairing: tuple[str, ...] = ()


class Upkeep:
    """What can be done to the store of an agent."""

    def __init__(self, agent: Agent, clock: Clock) -> None:
        self._agent = agent
        self._clock = clock
        self._steady = Steady(log)

    def find(self, name: str, version: str, arch: str) -> PackageSummary:
        """The held package that is meant; the latest to come, when several are. Raises NotFoundError."""
        for summary in self._agent.facts.held():
            manifest = summary.manifest
            if manifest.name == name and version in ("", manifest.version) and arch in ("", manifest.arch):
                return summary
        raise NotFoundError(f"{name}:{version} is not held here" if version else f"no version of {name} is held here")

    async def remove(self, summary: PackageSummary, *, force: bool) -> int:
        """Drop a package and free its chunks. Returns the bytes freed.

        Raises ConflictError if it is pinned or no other agent in reach holds it, unless forced.
        """
        what = summary.manifest.reference
        if not force and summary.pinned:
            raise ConflictError(f"{what} is pinned; unpin it (`peat packages unpin {what}`) or use --force")
        if not force and not self._agent.view.copies(summary.manifest_digest):
            raise ConflictError(
                f"no other agent in reach holds {what}: this would remove the last known copy; use --force to do it"
            )
        await self._agent.drop(summary.manifest_digest)
        collected = await self.collect()
        return collected.bytes

    async def pin(self, summary: PackageSummary, pinned: bool) -> None:
        """Keep a package from removal and eviction, or no longer."""
        await asyncio.to_thread(self._agent.store.pin, summary.manifest_digest, pinned)
        for fresh in await asyncio.to_thread(self._agent.store.packages):
            if fresh.manifest_digest == summary.manifest_digest:
                self._agent.facts.hold(fresh)

    async def collect(self) -> GcResult:
        """Remove chunks that belong to no package."""
        return await asyncio.to_thread(self._agent.store.gc)

    async def stat(self) -> StoreStat:
        """Count what is in the store."""
        return await asyncio.to_thread(self._agent.store.stat)

    async def verify(self, progress: Callable[[VerifyState], None]) -> VerifyState:
        """Read and check every chunk. What is rotten is removed, and the packages it was in are fetched again.

        `progress` is called from a thread.
        """
        store, started = self._agent.store, self._clock.wall()

        def work(stopper: Stopper) -> Checked:
            def report(done: int, total: int) -> None:
                stopper.check()
                progress(VerifyState(bytes_done=done, bytes_total=total))

            return verify_store(store, started, report)

        checked = await in_thread(work)
        repairing = await self._repair(digest for rotten in checked.rotten for digest in rotten.packages)
        return VerifyState(checked.bytes, checked.bytes, checked.chunks, len(checked.rotten), repairing)

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Look after the store in the background: go round its chunks, fetch again what was lost, make room."""
        async with asyncio.TaskGroup() as group:
            loops = [group.create_task(self._scrub_on(), name="scrub"), group.create_task(self._room_on(), name="room")]
            try:
                yield
            finally:
                for task in loops:
                    task.cancel()

    async def mend(self) -> tuple[str, ...]:
        """Fetch again what packages have lost, however that came about. Returns their names."""
        return await self._repair(await asyncio.to_thread(self._agent.store.damaged))

    async def make_room(self, need: int) -> int:
        """Remove packages that others in reach hold, so that `need` more bytes fit below the watermarks.

        Returns the bytes freed; 0 when eviction is off, not needed, or nothing may go.
        """
        agent, marks = self._agent, self._agent.config.watermarks
        if marks is None:
            return 0
        usage = await asyncio.to_thread(shutil.disk_usage, agent.store.root)
        if not marks.excess(usage.total, max(0, usage.free - need)):
            return 0
        holders = {s.manifest_digest: agent.view.copies(s.manifest_digest) for s in agent.facts.held()}
        in_use = {deployment.manifest for deployment in agent.facts.in_force()}
        in_use |= {ticket.digest for ticket in agent.transfers.active()}
        priorities = {s.manifest_digest: int(priority_of(s.manifest)) for s in agent.facts.held()}
        eviction = await asyncio.to_thread(
            plan_eviction,
            agent.store,
            need,
            agent.agent_id,
            holders,
            in_use=in_use,
            priorities=priorities,
            watermarks=marks,
            copies_wanted=agent.config.copies,
        )
        for digest in eviction.remove:
            summary = agent.facts.summary(digest)
            if summary is not None:
                log.warning("%s is evicted: the disk is full and others hold it", summary.manifest.reference)
                await agent.drop(digest)
        if not eviction.remove:
            log.warning("the disk is over its high watermark, and nothing here may be removed")
            return 0
        return (await self.collect()).bytes

    async def _scrub_on(self) -> None:
        pace = ScrubPace()
        rounds = 0
        while True:
            if rounds % _MEND_ROUNDS == 0:
                with self._steady("looking for lost chunks"):
                    # Also what was lost with nobody looking: to a hand, or to a peer's complaint about a chunk.
                    await self.mend()
            rounds += 1
            await asyncio.sleep(pace.every)
            with self._steady("scrubbing the store"):
                checked = await asyncio.to_thread(scrub_step, self._agent.store, pace)
                await self._repair(digest for rotten in checked.rotten for digest in rotten.packages)

    async def _room_on(self) -> None:
        while self._agent.config.watermarks is not None:
            await asyncio.sleep(_ROOM_SECONDS)
            with self._steady("making room on the disk"):
                await self.make_room(0)

    async def _repair(self, digests: Iterable[str]) -> tuple[str, ...]:
        names: list[str] = []
        for digest in sorted(set(digests)):
            package = await asyncio.to_thread(self._agent.store.package, digest)
            if package is None:
                continue
            log.warning("%s lost chunks; they are fetched again", package.manifest.reference)
            await self._agent.engine.unseed(digest)
            self._agent.repair(digest, package.envelope)
            names.append(package.manifest.reference)
        return tuple(names)
