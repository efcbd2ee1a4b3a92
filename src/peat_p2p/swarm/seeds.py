"""What this node gives: packages of its store, and what it can give of packages it does not have.

Owns the offers and their activation. A torrent exists only while somebody wants it: a fetching agent says so first
(`join`), and after minutes without connections it is taken out again, so ten thousand offers cost a dictionary. A
holder of version N seeds the chunks it shares with N+1 when asked to (`assist`). Rule: only what the store has
verified is given; an assisted package's manifest is verified like any other. Must not know transfers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import ssl
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peat_p2p.content.index import ChunkRef
from peat_p2p.content.manifest import open_manifest
from peat_p2p.content.store import ChunkStore
from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import InvalidInputError, NotFoundError, PeatError
from peat_p2p.swarm.session import peer_fingerprint
from peat_p2p.swarm.torrent import ParsedInfo, parse_info
from peat_p2p.swarm.torrents import Torrent, TorrentSession
from peat_p2p.trust.anchor import TrustAnchor
from peat_p2p.trust.credentials import peer_identity

log = logging.getLogger(__name__)
IDLE_S = 600.0
_LOOK_S = 15.0
_MAX_ASSISTS = 64
_MAX_CHECKS = 2


@dataclass(slots=True)
class _Assist:
    """A package of which only shared chunks are here."""

    manifest_digest: str
    envelope: dict[str, Any]
    parsed: ParsedInfo


class Seeds:
    """The offers of one node."""

    def __init__(
        self, store: ChunkStore, torrents: TorrentSession, anchor: TrustAnchor, ca_pem: bytes, clock: Clock
    ) -> None:
        self._store = store
        self._torrents = torrents
        self._anchor = anchor
        self._ca_pem = ca_pem
        self._clock = clock
        self._offers: dict[str, str] = {}  # infohash -> manifest digest
        self._assists: OrderedDict[str, _Assist] = OrderedDict()
        self._used: dict[str, float] = {}
        self._activating = asyncio.Lock()
        self._checks = asyncio.Semaphore(_MAX_CHECKS)

    def offer(self, manifest_digest: str, infohash: str) -> None:
        """Give a package that the store has, to whoever joins."""
        self._offers[infohash] = manifest_digest
        self._assists.pop(infohash, None)

    def withdraw(self, manifest_digest: str) -> None:
        """Give a package no longer, neither as an offer nor as an assist."""
        for infohash in self._infohashes(manifest_digest):
            self._offers.pop(infohash, None)
            self._assists.pop(infohash, None)
            torrent = self._torrents.get(infohash)
            if torrent is not None:
                self._torrents.remove(torrent)

    def offers(self, manifest_digest: str) -> bool:
        """Whether a package is on offer."""
        return manifest_digest in self._offers.values()

    async def info(self, infohash: str) -> bytes | None:
        """The info dictionary of an offer or of a torrent that is active."""
        torrent = self._torrents.get(infohash)
        if torrent is not None:
            return torrent.parsed.meta.info
        digest = self._offers.get(infohash)
        package = await asyncio.to_thread(self._store.package, digest) if digest else None
        return package.info if package else None

    async def chunks(self, infohash: str) -> Sequence[ChunkRef] | None:
        """The chunks of an offer or of a torrent that is active."""
        torrent = self._torrents.get(infohash)
        parsed = torrent.parsed if torrent is not None else await self._parsed(infohash)
        return parsed.chunks if parsed is not None else None

    def read(self, chunk: ChunkRef) -> bytes | None:
        """One chunk as it lies on disk, None when it is not verified or not here. Blocks."""
        if not self._store.has(chunk.hex):
            return None
        try:
            data = self._store.chunk_path(chunk.hex).read_bytes()
        except OSError:
            return None
        return data if len(data) == chunk.size else None

    async def envelope(self, manifest_digest: str) -> dict[str, Any] | None:
        """The signed manifest of an offer or assist."""
        for assist in self._assists.values():
            if assist.manifest_digest == manifest_digest:
                return assist.envelope
        package = await asyncio.to_thread(self._store.package, manifest_digest)
        return package.envelope if package else None

    async def join(self, infohash: str) -> int | None:
        """Somebody is about to connect: how many chunks there are here, None when the package is not known."""
        async with self._activating:
            torrent = self._torrents.get(infohash) or await self._activate(infohash)
        if torrent is None:
            return None
        self._used[infohash] = self._clock.monotonic()
        return torrent.count()

    def came(self, infohash: str, caller: ssl.SSLObject, host: str) -> None:
        """Who is at the other end of `caller` is about to connect from the IP address `host`, whatever it had before.

        A connection from another address of its, which it may have lost, would have libtorrent refuse the new one.
        """
        torrent = self._torrents.get(infohash)
        if torrent is None or ipaddress.ip_address(host).is_loopback:
            return
        with contextlib.suppress(PeatError):
            identity = peer_identity(caller, self._anchor, self._clock.wall())
            self._torrents.drop_elsewhere(torrent, peer_fingerprint(identity.endpoint_id), host)

    async def assist(self, infohash: str, envelope: dict[str, Any], info: bytes) -> int:
        """Somebody fetches a package unknown here: give the chunks of it that the store has. Returns their number.

        Raises UntrustedError or InvalidInputError when the package is not properly published.
        """
        known = await self.join(infohash)
        if known is not None:
            return known
        manifest, digest, _ = open_manifest(envelope, self._anchor, self._clock.wall())
        if manifest.infohash != infohash:
            raise InvalidInputError(f"the manifest of {manifest.reference} names another infohash than {infohash[:12]}")
        parsed = await asyncio.to_thread(parse_info, info, infohash, self._ca_pem)
        missing = await asyncio.to_thread(self._store.missing, parsed.index)
        if len(missing) == len(parsed.chunks):
            return 0
        self._assists[infohash] = _Assist(digest, envelope, parsed)
        while len(self._assists) > _MAX_ASSISTS:
            oldest, _assist = self._assists.popitem(last=False)
            self._deactivate(oldest)
        log.info("giving %d of %d chunks of %s", len(parsed.chunks) - len(missing), len(parsed.chunks), manifest.name)
        return await self.join(infohash) or 0

    async def suspect(self, digest: str) -> bool:
        """Somebody got bad data of a chunk from here: check it, drop it if it is bad. Whether it is good."""
        async with self._checks:
            for infohash in [*self._offers, *self._assists]:
                torrent = self._torrents.get(infohash)
                parsed = torrent.parsed if torrent is not None else await self._parsed(infohash)
                chunk = parsed.chunk(digest) if parsed is not None else None
                if chunk is not None:
                    return await self._check(chunk)
        raise NotFoundError(f"no chunk {digest[:12]} is given here")

    async def _check(self, chunk: ChunkRef) -> bool:
        good = await asyncio.to_thread(self._store.verify, chunk.hex, chunk.size)
        if not good:
            log.error("chunk %s of this store was rotten and is dropped; pull its packages again", chunk.hex[:12])
            await self.chunk_gone(chunk.hex)
        return good

    async def chunk_gone(self, digest: str) -> None:
        """A chunk is no longer in the store: torrents that promise it are made anew."""
        for infohash in [*self._offers, *self._assists]:
            torrent = self._torrents.get(infohash)
            if torrent is not None and torrent.parsed.chunk(digest) is not None:
                async with self._activating:
                    self._torrents.remove(torrent)
                    await self._activate(infohash)

    async def tend(self) -> None:
        """Take out torrents nobody is connected to any more, for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            now = self._clock.monotonic()
            for infohash in list(self._used):
                torrent = self._torrents.get(infohash)
                if torrent is None:
                    del self._used[infohash]
                elif torrent.connected():
                    self._used[infohash] = now
                elif now - self._used[infohash] > IDLE_S:
                    self._deactivate(infohash)

    def touch(self, infohash: str) -> None:
        """A torrent was left to the seeds by a transfer that is complete."""
        self._used[infohash] = self._clock.monotonic()

    def _deactivate(self, infohash: str) -> None:
        self._used.pop(infohash, None)
        torrent = self._torrents.get(infohash)
        if torrent is not None:
            self._torrents.remove(torrent)

    async def _activate(self, infohash: str) -> Torrent | None:
        parsed = await self._parsed(infohash)
        if parsed is None or not parsed.chunks:
            return None
        missing = await asyncio.to_thread(self._store.missing, parsed.index)
        have = [chunk.hex not in missing for chunk in parsed.chunks]
        if not any(have):
            return None
        present = self._torrents.get(infohash)  # a transfer may have come in between
        if present is not None:
            return present
        torrent = self._torrents.add(parsed, have)
        torrent.want([n for n, held in enumerate(have) if not held], 0)
        self.touch(infohash)
        return torrent

    async def _parsed(self, infohash: str) -> ParsedInfo | None:
        digest = self._offers.get(infohash)
        if digest is None:
            assist = self._assists.get(infohash)
            if assist is not None:
                self._assists.move_to_end(infohash)
            return assist.parsed if assist else None
        package = await asyncio.to_thread(self._store.package, digest)
        if package is None:
            return None
        try:
            return await asyncio.to_thread(parse_info, package.info, infohash, self._ca_pem)
        except PeatError as error:
            log.error("%s cannot be given: %s", package.manifest.reference, error)
            return None

    def _infohashes(self, manifest_digest: str) -> list[str]:
        own = [infohash for infohash, digest in self._offers.items() if digest == manifest_digest]
        return own + [h for h, assist in self._assists.items() if assist.manifest_digest == manifest_digest]
