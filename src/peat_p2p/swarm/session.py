"""The libtorrent session: its settings, its limits, its alerts.

Owns every setting that differs from libtorrent's default, each with its reason, and the wake-up of asyncio by a file
descriptor. Rule: nothing is discovered, announced or mapped; only connections under the formation's TLS exist; alerts
are hints and may be lost. Must not know about packages.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import libtorrent as lt

from peat_p2p.core.address import HostPort
from peat_p2p.core.errors import UnavailableError

PEER_ID_BYTES = 20
_PORTS_TRIED = 16
_QUEUE_S, _QUEUE_ROUND_TRIPS, _QUEUE_MOST_S = 2, 30, 20
_ALERTS = (
    lt.alert.category_t.error_notification
    | lt.alert.category_t.storage_notification
    | lt.alert.category_t.status_notification
    | lt.alert.category_t.connect_notification
    | lt.alert.category_t.piece_progress_notification
    | lt.alert.category_t.ip_block_notification
    | lt.alert.category_t.peer_notification
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps on payload and protocol, in bytes per second over all torrents; 0 is no cap."""

    download: int = 0
    upload: int = 0


def peer_fingerprint(endpoint_id: str) -> str:
    """The 20 characters a node shows as its BitTorrent peer id.

    It names the sender of bytes also on connections that came in. It is a claim inside the formation, not a proof: TLS
    proves the formation, libtorrent does not tell whose certificate it was.
    """
    return endpoint_id[:PEER_ID_BYTES]


def queue_seconds(round_trip: float) -> int:
    """How many seconds of a link's rate to ask for ahead, when peers are so far away.

    Measured by a bearer on a satellite link (0.6 s): 2 s of queue carry 0.3 of 2 Mbit/s, 20 s carry 1.9.
    """
    return min(_QUEUE_MOST_S, round(_QUEUE_S + _QUEUE_ROUND_TRIPS * round_trip))


def session_settings(endpoint_id: str, listen: HostPort, limits: Limits) -> dict[str, Any]:
    """All settings that are not libtorrent's defaults."""
    return {
        "listen_interfaces": _listening(listen),
        # From the address it listens on: others know this node by that one.
        "outgoing_interfaces": "" if listen.host in ("0.0.0.0", "::") else listen.host,  # noqa: S104
        "listen_system_port_fallback": False,
        "max_retry_port_bind": 0,
        "user_agent": "peat",
        "peer_fingerprint": peer_fingerprint(endpoint_id),
        # Peers come from documents alone; a fleet's packages are nobody else's business.
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_ip_notifier": False,
        # Measured: uTP carries 9-15 MB/s on loopback where TCP carries 250, and starves on lossy links.
        "enable_outgoing_utp": False,
        "enable_incoming_utp": False,
        # Agents behind one address (a NAT, one machine) are different peers.
        "allow_multiple_connections_per_ip": True,
        # An agent that has all it wants still serves, and one that waits still hears what others get.
        "close_redundant_connections": False,
        "seeding_outgoing_connections": False,
        # A complete holder is not told of every chunk we get: across a thin link that costs as much as a few percent.
        "send_redundant_have": False,
        # Who is dialled, and when again, is decided by `peers.PeerBook`: libtorrent tries once when told to.
        "max_failcount": 1,
        "min_reconnect_time": 1,
        # No more than what `peers` hands over; the default of 3,000 waits for crowds that never come.
        "max_peerlist_size": 500,
        # Half a second of delay and lost SYNs are normal here: the defaults (15 s, 10 s) give up too early.
        "peer_connect_timeout": 30,
        "handshake_timeout": 40,
        # The default of 20 s takes a slow link for a dead one and asks a second peer for the same block.
        "piece_timeout": 60,
        "request_timeout": 90,
        "peer_timeout": 120,
        "inactivity_timeout": 300,
        # Requests in flight: what was asked for still comes after a neighbour gave it, so no more than a link needs
        # (3 s of it, the default, cost 3 % in a small swarm, 1 s 0.7 %); but 500 blocks are just 8 MB, half a second of
        # a fast link with a long round trip.
        "request_queue_time": queue_seconds(0.0),
        "max_out_request_queue": 2000,
        "max_allowed_in_request_queue": 4000,
        # The queueing of torrents is for home users; all of ours may run.
        "active_downloads": -1,
        "active_seeds": -1,
        "active_limit": -1,
        "connections_limit": 1000,
        # With the default of 5 many small torrents from one peer stall: their connections come all at once.
        "listen_queue_size": 1000,
        "connection_speed": 200,
        "torrent_connect_boost": 200,
        # Whom to serve is no question of reciprocity in a fleet: everybody, and who gets it fastest first.
        "choking_algorithm": 0,
        "unchoke_slots_limit": -1,
        "seed_choking_algorithm": 1,
        # Chunks are pieces: rarest first from the first one, and a started one is finished first.
        "initial_picker_threshold": 0,
        "prioritize_partial_pieces": False,
        # A block asked for twice at the end is a block paid for twice on a thin link.
        "strict_end_game_mode": True,
        "alert_queue_size": 20_000,
        # By default up to 100 MB of finished pieces wait in memory for seconds, and a killed agent fetches them again:
        # 320 kB a kill at 2 MB/s, with this 25 kB, at the same speed on a fast link.
        "max_queued_disk_bytes": 256 << 10,
        "alert_mask": int(_ALERTS),
        # A chunk's digest is read back from its file: plain writes are there at once, mapped ones move its time later.
        "disk_write_mode": int(lt.mmap_write_mode_t.always_pwrite),
        # What lies in the send buffer can no longer be cancelled: half a second of the rate (the default) is too much.
        "send_buffer_watermark_factor": 10,
        "send_buffer_low_watermark": 32 << 10,
        "download_rate_limit": limits.download,
        "upload_rate_limit": limits.upload,
        "rate_limit_ip_overhead": True,
    }


def choose_port(listen: HostPort) -> HostPort:
    """The address with a port that is free now for TCP and UDP, when it names none. Raises UnavailableError.

    libtorrent listens at each of the machine's addresses by a socket of its own: were the choice left to it, each would
    get another port, and others are told of one.
    """
    if listen.port:
        return listen
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    for _ in range(_PORTS_TRIED):
        with (
            socket.socket(family, socket.SOCK_STREAM) as stream,
            socket.socket(family, socket.SOCK_DGRAM) as datagrams,
            contextlib.suppress(OSError),
        ):
            stream.bind((listen.host, 0))
            port = int(stream.getsockname()[1])
            datagrams.bind((listen.host, port))
            return HostPort(listen.host, port)
    raise UnavailableError(f"swarm finds no free port at {listen.host}")


def _listening(listen: HostPort) -> str:
    """libtorrent's words for the address. The `s` makes it an SSL port; there is no plain one."""
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    return f"{host}:{listen.port}s"


def listen_anew(session: lt.session, listen: HostPort) -> None:
    """Listen at addresses of this machine that are new, and no more at those that are gone."""
    # libtorrent 2.1.1 forgets the text it was opened with, and would close everything.
    session.apply_settings({"listen_interfaces": _listening(listen)})
    session.reopen_network_sockets(0)


def open_session(endpoint_id: str, listen: HostPort, limits: Limits) -> lt.session:
    """A session that listens. Raises UnavailableError when the address cannot be had."""
    settings: Any = session_settings(endpoint_id, listen, limits)
    session: lt.session = lt.session(settings)
    classify(session, (), None)
    return session


def classify(session: lt.session, near: Iterable[str], outside: int | None) -> None:
    """Count every peer in the session's limits, and those that are not `near` (IP addresses) in a class of their own.

    By default loopback and private networks are outside all limits, and those are all a fleet has.
    """
    everyone = 1 << session.global_peer_class_id
    others = everyone if outside is None else everyone | 1 << outside
    classes = lt.ip_filter()
    classes.add_rule("0.0.0.0", "255.255.255.255", others)  # noqa: S104 - a range, no listener
    classes.add_rule("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", others)
    for host in near:
        classes.add_rule(host, host, everyone)
    session.set_peer_class_filter(classes)


def set_class_limits(session: lt.session, number: int, limits: Limits) -> None:
    """Set the caps that the peers of a class share."""
    info = session.get_peer_class(number)
    info["download_limit"], info["upload_limit"] = limits.download, limits.upload
    session.set_peer_class(number, info)


async def wait_listening(session: lt.session, listen: HostPort, timeout: float = 10.0) -> HostPort:
    """The address the session got. Raises UnavailableError."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            while True:
                for alert in session.pop_alerts():
                    if isinstance(alert, lt.listen_failed_alert):
                        raise UnavailableError(f"swarm cannot listen on {listen}: {alert.error.message()}")
                port = session.ssl_listen_port()
                if port:
                    return HostPort(listen.host, port)
                await asyncio.sleep(0.005)
    raise UnavailableError(f"swarm cannot listen on {listen}: no answer within {timeout:g} s")


@contextlib.contextmanager
def alerts(session: lt.session, handle: Callable[[Sequence[Any]], None]) -> Iterator[None]:
    """Call `handle` with libtorrent's alerts as they come, in the running loop. Needs no thread and no polling."""
    loop = asyncio.get_running_loop()
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)

    def drain() -> None:
        with contextlib.suppress(BlockingIOError):
            while len(reader.recv(4096)) == 4096:
                pass
        handle(session.pop_alerts())

    loop.add_reader(reader.fileno(), drain)
    session.set_alert_fd(writer.fileno())
    try:
        yield
    finally:
        session.set_alert_fd(-1)
        loop.remove_reader(reader.fileno())
        reader.close()
        writer.close()
