"""Torrents of packages inside one libtorrent session.

Owns the session's life, adding and removing torrents, handing over certificates, and turning libtorrent's objects into
plain readings. Rule: what a torrent has is told by the store when it is added, never by resume data; its state is read
from its status, alerts only say when to look. Must not know manifests, transfers or candidates.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libtorrent as lt

from peat_p2p.core.address import HostPort
from peat_p2p.core.waiting import within
from peat_p2p.swarm.ledger import Connection
from peat_p2p.swarm.session import (
    Limits,
    alerts,
    choose_port,
    classify,
    listen_anew,
    open_session,
    queue_seconds,
    set_class_limits,
    wait_listening,
)
from peat_p2p.swarm.torrent import ParsedInfo
from peat_p2p.trust.credentials import NodeCredentials

log = logging.getLogger(__name__)
_FROM_DOCUMENTS = 1  # libtorrent clears a peer's failure only for this source ("tracker")
_BLOCKED = 1
_REQUESTED = 1  # the state of a block
_NOT_CONNECTED = lt.peer_info.handshake | lt.peer_info.connecting


@dataclass(frozen=True, slots=True)
class PeerReading:
    """One connection of a torrent. `peer` is what the other side calls itself (20 digits of its endpoint id)."""

    peer: str
    address: HostPort
    received: int
    sent: int
    rate: int
    outgoing: bool
    pieces: Sequence[bool]
    choked: bool = False  # or so silent that libtorrent no longer counts on it

    @property
    def connection(self) -> Connection:
        """The reading as the ledger wants it."""
        return Connection(self.peer, f"{self.address}", self.received)


@dataclass(frozen=True, slots=True)
class Reading:
    """The state of a torrent: pieces it has, payload bytes since it was added, what keeps it from going on."""

    have: Sequence[bool]
    received: int
    rate: int
    peers: tuple[PeerReading, ...]
    errno: int
    error: str


@dataclass(frozen=True, slots=True)
class PeerEvent:
    """Something about a peer of a torrent: `what` is failed, closed, banned or bad-piece."""

    what: str
    address: HostPort | None
    peer: str
    text: str
    piece: int | None = None


Debts = tuple[dict[HostPort, set[int]], dict[HostPort, set[int]]]


class Torrent:
    """One torrent in the session. `wake` is set whenever there may be something new to read."""

    def __init__(self, handle: lt.torrent_handle, parsed: ParsedInfo) -> None:
        self.parsed = parsed
        self.wake = asyncio.Event()
        self.flushed = asyncio.Event()
        self.events: list[PeerEvent] = []
        self.failure = (0, "")
        self.unwanted: set[int] = set()
        self._handle = handle
        self._debts: Debts | None = None

    async def woken(self, timeout: float) -> None:
        """Return when there may be something new to read, or after `timeout` seconds."""
        await within(timeout, self.wake)
        self.wake.clear()

    def read(self) -> Reading:
        """The present state."""
        self._debts = None
        status = self._handle.status(lt.torrent_handle.query_pieces)
        peers = tuple(_peer_reading(peer) for peer in self._handle.get_peer_info() if not peer.flags & _NOT_CONNECTED)
        code = status.errc
        errno_, error = (code.value(), code.message()) if code.value() else self.failure
        if not errno_ and status.flags & lt.torrent_flags.upload_mode:
            # libtorrent stops fetching so when it cannot write; the alert that says why was lost.
            errno_, error = errno.EIO, "the disk does not take it"
        return Reading(
            have=list(status.pieces) or [False] * len(self.parsed.chunks),
            received=status.total_payload_download,
            rate=status.download_payload_rate,
            peers=peers,
            errno=errno_,
            error=error,
        )

    def count(self) -> int:
        """How many pieces it has."""
        return self._handle.status(0).num_pieces

    def connected(self) -> bool:
        """Whether any peer is connected."""
        return self._handle.status(0).num_peers > 0

    def dial(self, address: HostPort) -> None:
        """Connect to a peer. `address.host` must be an IP address."""
        self._handle.connect_peer((address.host, address.port), _FROM_DOCUMENTS)

    def debts(self) -> Debts:
        """Of the pieces that are begun: who was asked for blocks of which, and who gave blocks of which.

        It costs 10 us a block, and a fast link has thousands under way: once found, it is the same until the next
        `read`.
        """
        if self._debts is None:
            owes: dict[tuple[str, int], set[int]] = {}
            gave: dict[tuple[str, int], set[int]] = {}
            for piece in self._handle.get_download_queue():
                for block in piece["blocks"]:
                    if block["state"]:
                        side = owes if block["state"] == _REQUESTED else gave
                        side.setdefault(block["peer"], set()).add(piece["piece_index"])
            self._debts = _by_address(owes), _by_address(gave)
        return self._debts

    def keep_inside(self, inside: bool) -> None:
        """Connect to the addresses of `TorrentSession.allow_inside` alone, or to anybody again."""
        if inside:
            self._handle.set_flags(lt.torrent_flags.apply_ip_filter)
        else:
            self._handle.unset_flags(lt.torrent_flags.apply_ip_filter)

    def want(self, pieces: Collection[int], priority: int) -> None:
        """Set the priority of some pieces: 0 is not wanted, 4 ordinary, 7 first."""
        if pieces:
            self._handle.prioritize_pieces([(piece, priority) for piece in pieces])
            if priority:
                self.unwanted.difference_update(pieces)
            else:
                self.unwanted.update(pieces)

    def give(self, piece: int, data: bytes) -> None:
        """Hand over a whole piece that came another way; it is checked, written and had like any other.

        May be called from any thread.
        """
        self._handle.add_piece(piece, data, 0)

    def flush(self) -> None:
        """Write what libtorrent holds back. It keeps finished pieces in memory for seconds otherwise."""
        self._handle.flush_cache()

    async def settle(self, timeout: float = 5.0) -> None:
        """Stop receiving and write out everything, so that the files change no more."""
        self._handle.pause()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                # The first answer may belong to a flush asked for earlier.
                for _ in range(2):
                    self.flushed.clear()
                    self._handle.flush_cache()
                    await self.flushed.wait()

    def take_events(self) -> list[PeerEvent]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    @property
    def handle(self) -> lt.torrent_handle:
        """libtorrent's handle, for the session that made it."""
        return self._handle


class TorrentSession:
    """A libtorrent session that holds torrents of one formation. Use `open` and `close`."""

    def __init__(self, session: lt.session, credentials: NodeCredentials, save_path: Path, address: HostPort) -> None:
        self.address = address
        self.received = self.sent = 0  # bytes since the start, protocol included
        self._session: lt.session | None = session
        self._credentials = credentials
        self._save_path = save_path
        self._torrents: dict[str, Torrent] = {}
        self._inside: set[str] = set()
        self._outside: int | None = None  # a class of peers
        self._round_trips: dict[str, float] = {}
        self._queue = queue_seconds(0.0)
        self._stack = contextlib.ExitStack()

    @classmethod
    async def open(
        cls, credentials: NodeCredentials, save_path: Path, listen: HostPort, limits: Limits
    ) -> TorrentSession:
        """Start a session that listens at `listen`. Raises UnavailableError."""
        chosen = choose_port(listen)
        session = open_session(credentials.identity.endpoint_id, chosen, limits)
        try:
            address = await wait_listening(session, chosen)
        except BaseException:
            await asyncio.to_thread(_Closer(session))
            raise
        self = cls(session, credentials, save_path, address)
        self._stack.enter_context(alerts(session, self._on_alerts))
        return self

    async def close(self) -> None:
        """Stop everything. What is in flight is lost; chunks that the store knows are not touched."""
        self._stack.close()
        session, self._session = self._session, None
        self._torrents.clear()
        if session is not None:
            # The destructor waits for libtorrent's threads, and runs where the last reference goes.
            closer = _Closer(session)
            del session
            await asyncio.to_thread(closer)

    def add(self, parsed: ParsedInfo, have: Sequence[bool]) -> Torrent:
        """Add a torrent of which the pieces marked in `have` are on disk and verified. Seeds and fetches at once.

        A torrent of the same infohash that is there already is taken out first.
        """
        assert self._session is not None, "the session is closed"
        present = self.get(parsed.meta.infohash)
        if present is not None:
            self.remove(present)
        params = lt.add_torrent_params()
        params.ti = lt.torrent_info(b"d4:info" + parsed.meta.info + b"e")
        params.save_path = str(self._save_path)
        params.storage_mode = lt.storage_mode_t.storage_mode_sparse
        params.have_pieces = list(have)
        flags = lt.torrent_flags
        params.flags = (
            flags.paused
            | flags.update_subscribe
            | flags.no_verify_files
            | flags.duplicate_is_error
            | flags.disable_dht
            | flags.disable_lsd
            | flags.disable_pex
        )
        handle = self._session.add_torrent(params)
        handle.set_ssl_certificate_buffer(
            self._credentials.cert_pem.decode("ascii"), self._credentials.key_pem.decode("ascii"), ""
        )
        handle.resume()
        torrent = Torrent(handle, parsed)
        self._torrents[parsed.meta.infohash] = torrent
        return torrent

    def get(self, infohash: str) -> Torrent | None:
        """The torrent of an infohash, if it is in the session."""
        return self._torrents.get(infohash)

    def remove(self, torrent: Torrent) -> None:
        """Take a torrent out; its files stay."""
        if self._torrents.get(torrent.parsed.meta.infohash) is torrent:
            del self._torrents[torrent.parsed.meta.infohash]
            self.round_trip(torrent, 0.0)
        if self._session is not None and torrent.handle.is_valid():
            self._session.remove_torrent(torrent.handle)

    def drop(self, torrent: Torrent, host: str) -> None:
        """End a torrent's connections with an IP address. They may be made anew: who is dialled is decided elsewhere.

        There is no call for that; an address that becomes forbidden for a moment does it.
        """
        if self._session is None or not torrent.handle.is_valid():
            return
        inside = bool(torrent.handle.flags() & lt.torrent_flags.apply_ip_filter)
        forbidden = lt.ip_filter()
        forbidden.add_rule(host, host, _BLOCKED)
        self._session.set_ip_filter(forbidden)
        torrent.keep_inside(True)
        torrent.keep_inside(inside)
        self._session.set_ip_filter(self._only_inside())

    def leave(self, torrent: Torrent, reading: Reading, names: Collection[str]) -> None:
        """End the connections with these peers (by the names they show), where that hits no others."""
        others = {peer.address.host for peer in reading.peers if peer.peer not in names}
        for host in {peer.address.host for peer in reading.peers if peer.peer in names} - others:
            self.drop(torrent, host)

    def drop_elsewhere(self, torrent: Torrent, name: str, host: str) -> None:
        """End connections that a peer (by the name it shows) made from other IP addresses than `host`."""
        peers = [peer for peer in torrent.handle.get_peer_info() if not peer.flags & _NOT_CONNECTED]
        for peer in peers:
            theirs = peer.ip[0]
            if _peer_name(peer.pid) != name or theirs == host or peer.flags & lt.peer_info.outgoing_connection:
                continue
            if sum(other.ip[0] == theirs for other in peers) == 1:  # or it would hit others, too
                self.drop(torrent, theirs)

    def allow_inside(self, hosts: Collection[str]) -> None:
        """Add IP addresses that torrents kept inside may connect to."""
        new = set(hosts) - self._inside
        if not new or self._session is None:
            return
        self._inside |= new
        if self._outside is not None:
            classify(self._session, self._inside, self._outside)
        # Only torrents with the flag of `keep_inside` look at it.
        self._session.set_ip_filter(self._only_inside())

    def _only_inside(self) -> lt.ip_filter:
        rules = lt.ip_filter()
        if self._inside:
            rules.add_rule("0.0.0.0", "255.255.255.255", _BLOCKED)  # noqa: S104 - a range, no listener
            rules.add_rule("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", _BLOCKED)
        for host in self._inside:
            rules.add_rule(host, host, 0)
        return rules

    def round_trip(self, torrent: Torrent, seconds: float) -> None:
        """How far the farthest peer is that a torrent fetches from by a bearer: the farther, the more is asked for."""
        if seconds:
            self._round_trips[torrent.parsed.meta.infohash] = seconds
        else:
            self._round_trips.pop(torrent.parsed.meta.infohash, None)
        queue = queue_seconds(max(self._round_trips.values(), default=0.0))
        if self._session is not None and queue != self._queue:
            self._queue = queue
            self._session.apply_settings({"request_queue_time": queue})

    def pause(self, paused: bool) -> None:
        """Stop or resume all traffic."""
        if self._session is not None:
            if paused:
                self._session.pause()
            else:
                self._session.resume()

    def moved(self, lost: Collection[str]) -> None:
        """Listen at the addresses that this machine has now, and end connections from the IP addresses it `lost`.

        Those would take minutes to fail, and nobody is dialled who is thought to be connected.
        """
        if self._session is None:
            return
        listen_anew(self._session, self.address)
        for torrent in self._torrents.values():
            for peer in torrent.handle.get_peer_info():
                if not peer.flags & _NOT_CONNECTED and peer.local_endpoint()[0] in lost:
                    self.drop(torrent, peer.ip[0])

    def connections(self) -> list[tuple[str, str, int]]:
        """Every connection of every torrent: a key, the peer's fingerprint, payload bytes both ways."""
        return [
            (f"{infohash} {peer.ip}", _peer_name(peer.pid), peer.total_download + peer.total_upload)
            for infohash, torrent in self._torrents.items()
            for peer in torrent.handle.get_peer_info()
            if not peer.flags & _NOT_CONNECTED
        ]

    @property
    def traffic(self) -> int:
        """Bytes both ways since the start, protocol included."""
        return self.received + self.sent

    def ask_traffic(self) -> None:
        """Bring `received` and `sent` up to date soon."""
        if self._session is not None:
            self._session.post_session_stats()

    def set_outside_limits(self, limits: Limits) -> None:
        """Change the caps on what crosses to peers at addresses that were not given to `allow_inside`."""
        if self._session is not None:
            if self._outside is None and (limits.download or limits.upload):
                self._outside = self._session.create_peer_class("outside")
                classify(self._session, self._inside, self._outside)
            if self._outside is not None:
                set_class_limits(self._session, self._outside, limits)

    def set_limits(self, limits: Limits) -> None:
        """Change the caps of the session."""
        if self._session is not None:
            self._session.apply_settings({"download_rate_limit": limits.download, "upload_rate_limit": limits.upload})

    def _on_alerts(self, batch: Sequence[Any]) -> None:
        for alert in batch:
            if isinstance(alert, lt.alerts_dropped_alert):
                log.debug("libtorrent dropped alerts: %s", alert.message())
                for torrent in self._torrents.values():
                    torrent.wake.set()
                continue
            if isinstance(alert, lt.session_stats_alert):
                self.received, self.sent = alert.values["net.recv_bytes"], alert.values["net.sent_bytes"]
                continue
            if not isinstance(alert, lt.torrent_alert):
                continue
            found = self._torrents.get(_infohash(alert.handle))
            if found is None:
                continue
            if isinstance(alert, lt.cache_flushed_alert):
                found.flushed.set()
                continue
            if isinstance(alert, lt.file_error_alert):
                found.failure = (alert.error.value(), f"{alert.error.message()} ({alert.filename()})")
            event = _peer_event(alert)
            if event is not None:
                found.events.append(event)
            found.wake.set()


class _Closer:
    """Drops a session when called, so that its destructor runs in the calling thread."""

    def __init__(self, session: lt.session) -> None:
        self._session: lt.session | None = session

    def __call__(self) -> None:
        if self._session is not None:
            self._session.pause()
        self._session = None


def _by_address(pieces: dict[tuple[str, int], set[int]]) -> dict[HostPort, set[int]]:
    return {HostPort(*address): numbers for address, numbers in pieces.items()}


def _infohash(handle: lt.torrent_handle) -> str:
    return str(handle.info_hashes().v2) if handle.is_valid() else ""


def _peer_name(pid: lt.sha1_hash) -> str:
    return pid.to_bytes().decode("ascii", errors="replace")


def _peer_reading(peer: lt.peer_info) -> PeerReading:
    return PeerReading(
        peer=_peer_name(peer.pid),
        address=HostPort(*peer.ip),
        received=peer.total_download,
        sent=peer.total_upload,
        rate=peer.payload_down_speed,
        outgoing=bool(peer.flags & lt.peer_info.outgoing_connection),
        pieces=peer.pieces,
        choked=bool(peer.flags & (lt.peer_info.remote_choked | lt.peer_info.snubbed)),
    )


def _why(message: str) -> str:
    """What a person shall read of libtorrent's words: `drop` bans for a moment."""
    return "the connection was ended here" if message == "banned by IP filter" else message


def _peer_event(alert: Any) -> PeerEvent | None:
    if isinstance(alert, lt.hash_failed_alert):
        return PeerEvent("bad-piece", None, "", "", alert.piece_index)
    if isinstance(alert, lt.peer_ban_alert):
        return PeerEvent("banned", HostPort(*alert.endpoint), _peer_name(alert.pid), "sent data that does not match")
    if isinstance(alert, lt.peer_error_alert):
        return PeerEvent("failed", HostPort(*alert.endpoint), _peer_name(alert.pid), _why(alert.error.message()))
    if isinstance(alert, lt.peer_disconnected_alert):
        return PeerEvent("closed", HostPort(*alert.endpoint), _peer_name(alert.pid), _why(alert.error.message()))
    return None
