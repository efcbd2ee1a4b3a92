"""Getting connected: for one transfer, whom to tell and whom to dial.

Owns the steps from a candidate to a connection: tell it (`join`), ask a holder of another version to give shared chunks
(`assist`), find the way to it, dial. Rule: each candidate on its own, so that a dead one delays nobody; what fails is
reported to the PeerBook and tried again when that says so. Must not know pieces.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from typing import Any

from peat_p2p.core.address import HostPort
from peat_p2p.core.errors import PeatError, UnavailableError
from peat_p2p.swarm.peers import PeerCandidate
from peat_p2p.swarm.session import peer_fingerprint
from peat_p2p.swarm.surroundings import Surroundings
from peat_p2p.swarm.torrents import Torrent

log = logging.getLogger(__name__)
PATIENCE_S = 15.0
_ASSIST_WORTH = 20  # the metadata of a package is offered to a holder of another version if this much smaller


class Dialer:
    """Connects one torrent to candidates. `tasks` runs the attempts; `stop` ends them."""

    def __init__(
        self, torrent: Torrent, envelope: dict[str, Any], around: Surroundings, tasks: asyncio.TaskGroup
    ) -> None:
        self._torrent = torrent
        self._envelope = envelope
        self._client = around.client
        self._book = around.book
        self._clock = around.clock
        self._routes = around.routes
        self._tasks = tasks
        self._attempts: dict[str, asyncio.Task[None]] = {}
        self._dialled: dict[HostPort, str] = {}

    def dial(self, candidates: Iterable[PeerCandidate], connected: Collection[str], missing_bytes: int) -> None:
        """Begin to connect to those candidates that are due and not connected (by their peer ids)."""
        now = self._clock.monotonic()
        for peer in self._book.due(candidates, now):
            if peer.endpoint_id in self._attempts or peer_fingerprint(peer.endpoint_id) in connected:
                continue
            self._book.tried(peer.endpoint_id, now, PATIENCE_S)
            task = self._tasks.create_task(self._attempt(peer, missing_bytes), name=f"dial {peer.agent_id}")
            self._attempts[peer.endpoint_id] = task

    def lost(self, address: HostPort, text: str) -> None:
        """A connection to this address failed or ended."""
        endpoint = self._dialled.pop(address, None)
        if endpoint is not None:
            self._book.failed(endpoint, self._clock.monotonic(), text)

    def report(self, peer: PeerCandidate, digests: Collection[str]) -> None:
        """Tell a peer that it sent these chunks damaged. If it mends itself it may be tried again soon."""
        if peer.metadata is not None:
            name = f"report {peer.endpoint_id}"
            self._attempts[name] = self._tasks.create_task(self._report(name, peer, digests), name=name)

    async def _report(self, name: str, peer: PeerCandidate, digests: Collection[str]) -> None:
        try:
            answers = [await self._client.suspect(peer, digest) for digest in digests]
            if not all(answers):
                log.info("%s found its chunk rotten and dropped it", peer.agent_id)
                self._book.mended(peer.endpoint_id, self._clock.monotonic())
        except PeatError as error:
            log.debug("cannot report to %s: %s", peer.agent_id, error)
        finally:
            self._attempts.pop(name, None)

    def stop(self) -> None:
        """End all attempts."""
        for task in list(self._attempts.values()):
            task.cancel()

    async def _attempt(self, peer: PeerCandidate, missing_bytes: int) -> None:
        try:
            if peer.metadata is not None:
                await self._announce(peer, missing_bytes)
            address = await self._routes.swarm(peer)
            self._dialled[address] = peer.endpoint_id
            self._torrent.dial(address)
        except PeatError as error:
            log.debug("cannot connect to %s: %s", peer.agent_id, error)
            self._book.failed(peer.endpoint_id, self._clock.monotonic(), str(error))
        finally:
            self._attempts.pop(peer.endpoint_id, None)

    async def _announce(self, peer: PeerCandidate, missing_bytes: int) -> None:
        meta = self._torrent.parsed.meta
        if await self._client.join(peer, meta.infohash) is not None:
            return
        near = bool(self._book.own_site) and peer.site == self._book.own_site
        if peer.kin and (near or len(meta.info) * _ASSIST_WORTH < missing_bytes):
            if await self._client.assist(peer, meta.infohash, self._envelope, meta.info):
                return
            raise UnavailableError(f"{peer.agent_id} has no chunk of it")
        raise UnavailableError(f"{peer.agent_id} does not hold it")
