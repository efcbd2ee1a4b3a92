"""Upkeep of the store: checking it, collecting garbage, removing packages.

Owns the rules of removal (never the last known copy unprompted) and of verification (what is rotten goes, and is
fetched again). Must not know how chunks are stored or fetched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from peat_p2p.agent.service import Agent
from peat_p2p.agent.threads import Stopper, in_thread
from peat_p2p.content.index import ChunkRef
from peat_p2p.content.store import PackageSummary
from peat_p2p.content.stored import GcResult, StoreStat
from peat_p2p.core.errors import ConflictError, NotFoundError

log = logging.getLogger(__name__)

_BATCH = 64


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

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

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
            raise ConflictError(f"{what} is pinned; unpin it (`peat store unpin {what}`) or use --force")
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
        store = self._agent.store

        def work(stopper: Stopper) -> tuple[VerifyState, list[tuple[str, str, dict[str, Any]]]]:
            chunks: dict[str, ChunkRef] = {}
            owners: dict[str, list[str]] = {}
            for summary in self._agent.facts.held():
                stopper.check()
                package = store.package(summary.manifest_digest)
                for chunk in package.index.unique_chunks if package is not None else ():
                    chunks[chunk.hex] = chunk
                    owners.setdefault(chunk.hex, []).append(summary.manifest_digest)
            total = sum(chunk.size for chunk in chunks.values())
            done = count = 0
            bad: set[str] = set()
            for batch in _batches(iter(chunks.values())):
                stopper.check()
                bad |= store.verify_many(batch)
                done += sum(chunk.size for chunk in batch)
                count += len(batch)
                progress(VerifyState(done, total, count, len(bad)))
            hurt: list[tuple[str, str, dict[str, Any]]] = []
            for digest in sorted({digest for chunk in bad for digest in owners[chunk]}):
                package = store.package(digest)
                if package is not None:
                    hurt.append((digest, package.manifest.reference, package.envelope))
            return VerifyState(done, total, count, len(bad)), hurt

        state, hurt = await in_thread(work)
        for digest, what, envelope in hurt:
            log.warning("%s lost chunks to a bad disk; they are fetched again", what)
            await self._agent.engine.unseed(digest)
            self._agent.repair(digest, envelope)
        names = tuple(what for _, what, _ in hurt)
        return VerifyState(state.bytes_done, state.bytes_total, state.chunks, state.bad, names)


def _batches(chunks: Iterator[ChunkRef]) -> Iterator[list[ChunkRef]]:
    while batch := list(islice(chunks, _BATCH)):
        yield batch
