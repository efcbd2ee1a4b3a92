"""How one transfer comes by its package's index: the info dictionary whose hash the manifest names.

Owns whom it asks for it, in which order and for how long, and the check that it is the index of the manifest. Must
not know chunks or the torrent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Protocol

from peat_p2p.content.manifest import Manifest
from peat_p2p.core.errors import PeatError, UnavailableError, UntrustedError
from peat_p2p.swarm.asks import NotHeldError
from peat_p2p.swarm.metadata import NoIndexError, Partial
from peat_p2p.swarm.opening import Opening
from peat_p2p.swarm.peers import PeerCandidate, PeerSource
from peat_p2p.swarm.plan import whom_to_ask
from peat_p2p.swarm.revival import Revival
from peat_p2p.swarm.session import peer_fingerprint
from peat_p2p.swarm.status import TransferState
from peat_p2p.swarm.surroundings import Surroundings
from peat_p2p.swarm.torrent import ParsedInfo, parse_info

log = logging.getLogger(__name__)
_LOOK_S, _LATELY_S = 0.5, 5.0


class Asker(Protocol):
    """The transfer that needs the index."""

    manifest: Manifest
    manifest_digest: str

    def candidates(self) -> list[PeerCandidate]:
        """Who may hold it, best first."""
        ...

    def held(self) -> str:
        """Why it must wait; "" when it need not."""
        ...

    def report(self, state: TransferState, reason: str) -> None:
        """Take note of what goes on."""
        ...

    def blame(self, peer: str) -> None:
        """The peer of this fingerprint sent what is not the index."""
        ...


class Inquiry:
    """The search of one transfer for its index."""

    def __init__(self, asker: Asker, source: PeerSource, around: Surroundings, revival: Revival) -> None:
        self._asker = asker
        self._source = source
        self._around = around
        self._revival = revival
        self._opening: Opening | None = None
        self._taken = False
        self._answered: dict[str, float] = {}  # by endpoint id: when it said last that it has no index

    def take_opening(self) -> Opening | None:
        """The stream of chunks that the index came by, if it did and nobody has taken it yet."""
        taken, self._taken = self._taken, True
        return None if taken else self._opening

    async def close(self) -> None:
        """End what was begun."""
        if self._opening is not None:
            await self._opening.close()

    async def parse(self, info: bytes) -> ParsedInfo:
        """Check that this is the index of the manifest. Raises UntrustedError and what `parse_info` raises."""
        infohash = self._asker.manifest.infohash
        return self._checked(await asyncio.to_thread(parse_info, info, infohash, self._around.ca_pem))

    def _checked(self, parsed: ParsedInfo) -> ParsedInfo:
        manifest = self._asker.manifest
        if parsed.index.digest != manifest.digest:
            raise UntrustedError(f"the torrent of {manifest.reference} carries another index than its manifest")
        return parsed

    async def saved(self, path: Path) -> ParsedInfo | None:
        """What an earlier run wrote to `path`; None when there is none, or not this package's."""
        try:
            return await self.parse(await asyncio.to_thread(path.read_bytes))
        except (OSError, PeatError):
            return None

    async def ask_all(self) -> ParsedInfo:
        """Ask one candidate after the other, for as long as it takes."""
        around, asker = self._around, self._asker
        partial = Partial()
        begun = around.clock.monotonic()
        while True:
            if held := asker.held():
                asker.report(TransferState.WAITING, held)
                await asyncio.sleep(_LOOK_S)
                continue
            candidates = asker.candidates()
            now = around.clock.monotonic()
            silent = self._revival.look(candidates, now)
            asked = whom_to_ask(
                candidates, around.endpoint_id, around.site, asker.manifest_digest, now - begun, self._answering(now)
            )
            for peer in around.book.due(asked, now):
                parsed = await self._ask(peer, partial)
                if parsed is not None:
                    return parsed
            if any(_could_give(peer) for peer in candidates if peer not in asked):
                # Said once for all of that time, though neighbours are asked again and again: it crosses the mesh.
                asker.report(TransferState.WAITING, "a neighbour is getting the package's index")
            else:
                asker.report(TransferState.WAITING, around.book.why_nobody(candidates, around.clock.monotonic()))
            wait = around.book.next_due(asked, around.clock.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S if silent or len(asked) < len(candidates) else wait):
                    await self._source.wait_change()

    def _answering(self, now: float) -> set[str]:
        return {name for name, when in self._answered.items() if now - when < _LATELY_S}

    async def _ask(self, peer: PeerCandidate, partial: Partial) -> ParsedInfo | None:
        around, manifest = self._around, self._asker.manifest
        if peer.complete:
            self._asker.report(TransferState.METADATA, f"asking {peer.agent_id} for the package's index")
        opening = None
        try:
            parsed = None
            if self._may_open(peer, partial):
                opening = Opening(around.client, peer, manifest.infohash)
                with contextlib.suppress(NoIndexError):
                    parsed = await opening.begin(partial)
                    await around.routes.settle(peer)
            if parsed is None:
                opening, parsed = None, await around.client.info(peer, manifest.infohash, partial)
            self._checked(parsed)
        except NotHeldError as error:
            # One that fetches, too, may have it in a moment.
            patience = _LOOK_S if not peer.complete else None
            now = self._answered[peer.endpoint_id] = around.clock.monotonic()
            around.book.failed(peer.endpoint_id, now, str(error), patience)
        except UnavailableError as error:
            around.book.failed(peer.endpoint_id, around.clock.monotonic(), str(error))
        except PeatError as error:
            log.warning("%s sent bad metadata of %s: %s", peer.agent_id, manifest.reference, error)
            self._asker.blame(peer_fingerprint(peer.endpoint_id))
        else:
            around.book.succeeded(peer.endpoint_id)
            self._opening = opening
            return parsed
        if opening is not None:
            await opening.close()
        return None

    def _may_open(self, peer: PeerCandidate, partial: Partial) -> bool:
        """Whether to have the first chunks sent with the index: where it pays, and nobody else may be to fetch them.

        Nor may they be here: of another version of the same name the first chunks often are.
        """
        around = self._around
        return (
            not partial.body
            and all(one.complete and not one.kin for one in self._asker.candidates())
            and around.routes.perhaps_far(peer)
            and not (around.site and self._source.shared(around.site, around.endpoint_id))
            and not around.store.find(self._asker.manifest.name)
        )


def _could_give(peer: PeerCandidate) -> bool:
    return peer.complete and not peer.kin and peer.metadata is not None
