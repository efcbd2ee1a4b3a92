"""When to call which peer.

Owns the retry of each peer: exponential backoff with jitter, capped at a minute, for ever. Keeps the rules that one
unreachable peer costs one attempt per backoff interval, that the pause before a peer that was linked is a small share
of the time since (a partition that heals shall not last much longer for our waiting), and that a change of network or
a wish of the user is tried at once. Time and randomness are arguments. Must not open sockets.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum

from peat_p2p.core.address import HostPort

FIRST_RETRY = 0.5
LONGEST_RETRY = 60.0
LEAST_CEILING, LEAST_CEILING_MUTE = 1.0, 0.2
# By how much an outage may last longer for a pause that began before its end.
PROLONGED, PROLONGED_MUTE = 0.01, 0.002
RECENT = 3600.0
SHORT_CONNECT = 1.9
SECOND_PACKET = 0.5  # seconds after the first: the kernel repeats each a second after it was sent
STABLE_AFTER = 10.0


def longest_pause(now: float, lost_at: float | None, *, mute: bool = False) -> float:
    """The most seconds to wait before the next call to a peer, whose link was lost at `lost_at` if there was one.

    `mute`: nobody answers there, so that the way may be what is gone. A call costs little then, and haste is worth it.
    """
    if lost_at is None:
        return LONGEST_RETRY
    least, share = (LEAST_CEILING_MUTE, PROLONGED_MUTE) if mute else (LEAST_CEILING, PROLONGED)
    return min(LONGEST_RETRY, max(least, share * (now - lost_at)))


class Source(StrEnum):
    """How a peer became known. A peer may be known in several ways."""

    CONFIGURED = "configured"
    API = "api"
    MDNS = "mdns"
    RECENT = "recent"
    TOPOLOGY = "topology"


@dataclass(slots=True)
class Target:
    """A peer to be called and how the last attempts went."""

    endpoint_id: str
    addresses: dict[HostPort, set[Source]] = field(default_factory=dict)
    sources: set[Source] = field(default_factory=set)
    failures: int = 0
    next_attempt: float = 0.0
    busy: bool = False
    turn: int = 0
    reason: str = ""
    lost_at: float | None = None
    mute: bool = False

    def lost_lately(self, now: float) -> bool:
        """Whether a link to the peer was lost within the last hour."""
        return self.lost_at is not None and now - self.lost_at < RECENT

    def patience(self, round_trip: float | None, now: float) -> float | None:
        """How long to wait for TCP to a peer that was there lately; None: as long as to any.

        The kernel repeats its first packet ever more slowly, so beginning anew finds out sooner that the way is open.
        And when it had to repeat it twice (after two seconds), it begins as slowly as one can: with one packet.
        """
        if round_trip is None or not self.lost_lately(now):
            return None
        return max(SHORT_CONNECT, 1.5 * round_trip)

    def second_packet(self, round_trip: float | None) -> float | None:
        """After how many seconds to call a second time beside the first, if nobody answers; None: not at all."""
        if round_trip is None or not self.mute:
            return None
        return max(SECOND_PACKET, 1.2 * round_trip)

    def address(self) -> HostPort:
        """The address whose turn it is."""
        return list(self.addresses)[self.turn % len(self.addresses)]


class Dialer:
    """Chooses whom to call next. A target that is busy (being called, or linked) is left alone."""

    def __init__(self, randomness: random.Random) -> None:
        self._random = randomness
        self._targets: dict[str, Target] = {}

    def wish(self, endpoint_id: str, addresses: list[HostPort], source: Source, now: float) -> Target:
        """Want a link to `endpoint_id`; new addresses are tried at once. Addresses of the same source are replaced."""
        target = self._targets.setdefault(endpoint_id, Target(endpoint_id, next_attempt=now))
        fresh = [a for a in addresses if a not in target.addresses]
        for address, sources in list(target.addresses.items()):
            sources.discard(source)
            if not sources and address not in addresses:
                del target.addresses[address]
        for address in addresses:
            target.addresses.setdefault(address, set()).add(source)
        target.sources.add(source)
        if fresh or source is Source.API:
            self._at_once(target, now)
        return target

    def unwish(self, endpoint_id: str, source: Source | None = None) -> None:
        """No longer want the peer for reason `source`, or (None) for any reason."""
        target = self._targets.get(endpoint_id)
        if target is None:
            return
        target.sources = set() if source is None else target.sources - {source}
        for address, sources in list(target.addresses.items()):
            if source is not None:
                sources.discard(source)
            if source is None or not sources:
                del target.addresses[address]
        if not target.sources:
            del self._targets[endpoint_id]

    def get(self, endpoint_id: str) -> Target | None:
        """The target, if the peer is wanted."""
        return self._targets.get(endpoint_id)

    def targets(self) -> list[Target]:
        """Every wanted peer."""
        return list(self._targets.values())

    def due(self, now: float) -> list[Target]:
        """The peers to be called now; each is marked busy until `failed`, `ended` or `idle`."""
        due = [t for t in self._targets.values() if not t.busy and t.addresses and t.next_attempt <= now]
        for target in due:
            target.busy = True
        return due

    def next_deadline(self) -> float | None:
        """When `due` will next have something, if nothing changes."""
        waiting = [t.next_attempt for t in self._targets.values() if not t.busy and t.addresses]
        return min(waiting, default=None)

    def linked(self, endpoint_id: str) -> None:
        """A link to the peer is up, whoever called."""
        if (target := self._targets.get(endpoint_id)) is not None:
            target.busy = True
            target.reason = ""

    def failed(self, endpoint_id: str, reason: str, now: float, *, mute: bool = False) -> None:
        """A call came to nothing; `mute`: nobody answered at all."""
        if (target := self._targets.get(endpoint_id)) is not None:
            target.mute = mute
            target.turn += 1
            target.reason = reason
            self._back_off(target, now)

    def ended(self, endpoint_id: str, reason: str, lasted: float, now: float) -> None:
        """A link to the peer ended after `lasted` seconds; one that held is called again soon."""
        if (target := self._targets.get(endpoint_id)) is not None:
            if lasted >= STABLE_AFTER:
                target.failures = 0
                target.lost_at = now
            target.reason = reason
            target.mute = False
            self._back_off(target, now)

    def network_changed(self, now: float) -> None:
        """Addresses of this machine changed: every wait is over."""
        for target in self._targets.values():
            self._at_once(target, now)

    def _at_once(self, target: Target, now: float) -> None:
        target.failures = 0
        target.next_attempt = now

    def _back_off(self, target: Target, now: float) -> None:
        target.busy = False
        ceiling = min(
            longest_pause(now, target.lost_at, mute=target.mute), FIRST_RETRY * 2.0 ** min(target.failures, 16)
        )
        target.failures += 1
        target.next_attempt = now + ceiling * self._random.uniform(0.5, 1.0)
