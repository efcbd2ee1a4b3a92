"""Looking after a store.

Owns what is done to a store over time: a full verification, the background scrub that finds rot before it is needed,
and making room. Each is a plain function that blocks; whoever calls it chooses thread and pace.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from peat_p2p.content.eviction import Candidate, Eviction, Watermarks, decide_eviction
from peat_p2p.content.store import ChunkStore
from peat_p2p.content.stored import Checked, Rotten

_STEP_BYTES = 64 << 20


def verify_store(store: ChunkStore, started: float, progress: Callable[[int, int], None] | None = None) -> Checked:
    """Hash every chunk that was last looked at before `started` (Unix time: now). Rotten ones are removed.

    `progress` gets bytes done and bytes in all. Interrupted and called again with the same `started`, it goes on.
    """
    total = store.stat().chunk_bytes
    chunks = size = 0
    rotten: list[Rotten] = []
    while (step := store.recheck(_STEP_BYTES, before=started)).chunks:
        chunks += step.chunks
        size += step.bytes
        rotten += step.rotten
        if progress:
            progress(size, total)
    return Checked(chunks, size, tuple(rotten))


@dataclass(frozen=True, slots=True)
class ScrubPace:
    """How fast the store is gone round: every chunk once in `period` seconds, a step each `every` seconds."""

    period: float = 14 * 86400.0
    every: float = 60.0
    least: int = 4 << 20

    def budget(self, stored: int) -> int:
        """Bytes to look at in one step of a store of `stored` bytes."""
        return max(self.least, int(stored * self.every / self.period))


def scrub_step(store: ChunkStore, pace: ScrubPace) -> Checked:
    """One step of the background scrub."""
    return store.recheck(pace.budget(store.stat().chunk_bytes))


def plan_eviction(
    store: ChunkStore,
    need: int,
    own_id: str,
    holders: Mapping[str, Collection[str]],
    *,
    in_use: Collection[str] = (),
    priorities: Mapping[str, int] | None = None,
    watermarks: Watermarks | None = None,
    copies_wanted: int = 2,
) -> Eviction:
    """What to remove so that `need` more bytes fit and the disk stays below its watermarks; removes nothing."""
    marks = watermarks or Watermarks()
    usage = shutil.disk_usage(store.root)
    excess = marks.excess(usage.total, max(0, usage.free - need))
    candidates = [
        Candidate(
            summary.manifest_digest,
            store.chunk_sizes(summary.manifest_digest),
            summary.used,
            pinned=summary.pinned,
            in_use=summary.manifest_digest in in_use,
            priority=(priorities or {}).get(summary.manifest_digest, 0),
        )
        for summary in store.packages()
    ]
    return decide_eviction(candidates, excess, own_id, holders, copies_wanted=copies_wanted)


def carry_out(store: ChunkStore, eviction: Eviction) -> int:
    """Remove what was decided and collect garbage; the bytes that became free."""
    for digest in eviction.remove:
        store.remove_package(digest)
    return store.gc().bytes
