"""Waiting until finished pieces are in their files.

libtorrent reports a piece when its hash is right, which is before its blocks are written: it keeps them in memory for
seconds. Owns the wait, what a failing disk means, and the clean start that makes it sound; what does not come to match
in time is left to the caller. Must not know the store's journal.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

from peat_p2p.content.index import ChunkRef
from peat_p2p.content.store import ChunkStore
from peat_p2p.core.errors import ExhaustedError, PeatError, UnavailableError
from peat_p2p.swarm.torrents import Reading, Torrent

_PAUSES_S = (0.01, 0.05, 0.2, 0.5, 1.0, 2.0, 4.0)


async def written(torrent: Torrent, store: ChunkStore, chunks: Iterable[ChunkRef]) -> None:
    """Return when every chunk's file has its content, or after some seconds."""
    waiting = list(chunks)
    for pause in _PAUSES_S:
        torrent.flush()
        await asyncio.sleep(pause)
        waiting = await asyncio.to_thread(_unlike, store, waiting)
        if not waiting:
            return


def _unlike(store: ChunkStore, chunks: Iterable[ChunkRef]) -> list[ChunkRef]:
    bad = []
    for chunk in chunks:
        try:
            data = store.chunk_path(chunk.hex).read_bytes()
        except OSError:
            data = b""
        if blake3(data).digest() != chunk.digest:
            bad.append(chunk)
    return bad


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
