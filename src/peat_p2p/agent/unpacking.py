"""Unpacking a package while it is still being fetched.

Owns when files are written that the chunks here already allow, so that little is left to do when the last chunk comes.
It is help only: whatever stands in its way, the package is unpacked when it is whole, and the error is told then. Must
not know how chunks are fetched.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from peat_p2p.agent.threads import Stopper, in_thread
from peat_p2p.content.index import ChunkRef, Index
from peat_p2p.content.materialize import Placement, materialize
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.core.errors import ConflictError, PeatError
from peat_p2p.swarm.transfer import Transfer

log = logging.getLogger(__name__)
_SLICE_S = 0.3  # written at one go
_SHARE = 4.0  # looking for what can be written takes a quarter of the time at most, writing that lags behind a half
_BEHIND_SHARE = 2.0


class Unpacking:
    """One package on its way to `destination`. To be entered; what is not finished when it is left is removed."""

    def __init__(self, store: ChunkStore, destination: Path) -> None:
        self._store = store
        self._destination = destination
        self._placement: Placement | None = None
        self._stopper = Stopper()
        self._hindered = False
        self._rest_until = 0.0

    async def __aenter__(self) -> Unpacking:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def advance(self, transfer: Transfer) -> None:
        """Write what the chunks allow that `transfer` has verified, for an instant at most."""
        found = transfer.lacks()
        begun = time.monotonic()
        if found is None or self._hindered or begun < self._rest_until:
            return
        index, missing = found
        behind = False
        try:
            behind = await in_thread(lambda stopper: self._advance(index, missing, stopper))
        except (PeatError, OSError) as error:
            log.info("%s is unpacked when it is here whole: %s", transfer.manifest.reference, error)
            self._hindered = True
            await self._close()
        now = time.monotonic()
        self._rest_until = now + ((_BEHIND_SHARE if behind else _SHARE) - 1) * (now - begun)

    def _advance(self, index: Index, missing: Mapping[str, ChunkRef], stopper: Stopper) -> bool:
        """Write for a while; whether there was more to write than that."""
        self._stopper = stopper
        if self._placement is None:
            if os.path.lexists(self._destination):
                raise ConflictError(f"{self._destination} exists already")
            coming = sum(chunk.size for chunk in list(missing.values()))
            self._placement = Placement(self._store, index, self._destination, self._report, coming)
        until = time.monotonic() + _SLICE_S
        self._placement.advance(lambda chunk: chunk.hex not in missing, lambda: time.monotonic() > until)
        return time.monotonic() > until

    async def finish(self, package: StoredPackage) -> None:
        """Write the rest of a package that is here, and put it in place. Raises what `materialize` raises."""
        await in_thread(lambda stopper: self.put(package, stopper))

    def put(self, package: StoredPackage, stopper: Stopper) -> None:
        """As `finish`, for a caller that is in a thread already."""
        self._stopper = stopper
        if self._placement is None:
            materialize(self._store, package.index, self._destination, self._report)
        else:
            self._placement.finish()

    def _report(self, *_: object) -> None:
        self._stopper.check()

    async def _close(self) -> None:
        placement, self._placement = self._placement, None
        if placement is not None:
            await asyncio.to_thread(placement.close)
