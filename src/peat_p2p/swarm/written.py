"""Entering finished pieces into the store once they are in their files.

libtorrent reports a piece when its hash is right, which is before its blocks are written: it keeps them in memory for
seconds. Owns the wait, what a failing disk means, the clean start that makes it sound, and that all this goes on beside
the transfer; what is done about chunks that do not come to match in time is left to the caller. Must not know the
store's journal.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from peat_p2p.content.index import ChunkRef
from peat_p2p.content.store import ChunkStore
from peat_p2p.core.errors import ExhaustedError, PeatError, UnavailableError
from peat_p2p.swarm.torrents import Reading, Torrent

_QUIET_S, _QUIET_PER_PIECE_S, _MOST_QUIET_S = 0.05, 1e-4, 0.5
_QUIET_TIMES_SPENT = 19
_LAST_PIECES = 64
_PAUSES_S = (0.01, 0.05, 0.2, 0.5, 1.0, 2.0, 4.0)


class Checks:
    """Checks finished chunks in batches, one after the other, while their transfer goes on steering.

    A slow disk takes seconds to have chunks for certain: what comes in meanwhile is the next batch. `check` says
    whether all of a batch were good; `tasks` runs it; `wake` is called after each batch.
    """

    def __init__(
        self, check: Callable[[list[ChunkRef]], Awaitable[bool]], tasks: asyncio.TaskGroup, wake: Callable[[], None]
    ) -> None:
        self._check = check
        self._tasks = tasks
        self._wake = wake
        self._waiting: list[ChunkRef] = []
        self._running: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._good = True

    def add(self, chunks: Iterable[ChunkRef]) -> None:
        """Have these checked."""
        self._waiting += chunks
        if self._waiting and self._running is None and self._good:
            self._running = self._tasks.create_task(self._run(), name="check chunks")

    @property
    def idle(self) -> bool:
        """Whether nothing is being checked."""
        return self._running is None

    @property
    def good(self) -> bool:
        """Whether all were good so far. Raises what a check raised."""
        if self._error is not None:
            raise self._error
        return self._good

    async def _run(self) -> None:
        try:
            while self._waiting and self._good:
                batch, self._waiting = self._waiting, []
                self._good = await self._check(batch)
                self._wake()
        except Exception as error:  # raised by `good`: the group would end everything and wrap it
            self._error = error
        finally:
            self._running = None
            self._wake()


async def enter(torrent: Torrent, store: ChunkStore, chunks: Iterable[ChunkRef]) -> set[str]:
    """Enter every chunk as soon as its file has its content. Returns the digests of those that have not after seconds.

    Their files are removed.
    """
    waiting = list(chunks)
    for pause in _PAUSES_S:
        torrent.flush()
        await asyncio.sleep(pause)
        unlike = await asyncio.to_thread(store.enter, waiting)
        waiting = [chunk for chunk in waiting if chunk.hex in unlike]
        if not waiting:
            return set()
    return await asyncio.to_thread(store.verify_many, waiting)


def quiet(left: int, pieces: int, spent: float) -> float:
    """Seconds between two readings of a torrent of so many pieces, `left` of them still to come.

    However many alerts come: a reading costs some microseconds a piece, a peer and a block under way, and a machine
    that a fast link keeps busy has little to spare. Steering took `spent` seconds the last time. At the end nothing
    else is to be done.
    """
    if left <= _LAST_PIECES:
        return _QUIET_S
    return min(_MOST_QUIET_S, max(_QUIET_S + _QUIET_PER_PIECE_S * pieces, _QUIET_TIMES_SPENT * spent))


def disk_error(reading: Reading, reference: str, root: Path) -> PeatError:
    """What to raise when libtorrent cannot write on."""
    text = f"fetch of {reference} stopped: {reading.error}"
    if reading.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExhaustedError(f"{text}; free space under {root} and fetch again")
    return UnavailableError(text)


def remove_files(paths: Iterable[Path]) -> None:
    """Remove what an earlier run left half written."""
    for path in paths:
        path.unlink(missing_ok=True)
