"""Backoff: capped, jittered, for ever; quick for what was linked lately; at once when asked."""

from __future__ import annotations

import itertools
import random

from peat_p2p.core.address import HostPort
from peat_p2p.mesh.dial import (
    LEAST_CEILING,
    LEAST_CEILING_MUTE,
    LONGEST_RETRY,
    PROLONGED,
    PROLONGED_MUTE,
    Dialer,
    Source,
)

PEER = "a" * 64
ADDRESS = HostPort("192.0.2.1", 7000)


def attempts(dialer: Dialer, begin: float, end: float) -> list[float]:
    """Let every attempt fail at once; the times of the attempts."""
    times = []
    now = begin
    while (deadline := dialer.next_deadline()) is not None and deadline <= end:
        now = max(now, deadline)
        for target in dialer.due(now):
            times.append(now)
            dialer.failed(target.endpoint_id, "refused", now)
    return times


def unanswered(dialer: Dialer, now: float, count: int, *, mute: bool) -> tuple[list[float], float]:
    """Let `count` attempts fail after 1.9 s each; the pauses before them, and when the last one failed."""
    pauses = []
    for _ in range(count):
        at = dialer.next_deadline()
        assert at is not None
        pauses.append(at - now)
        dialer.due(at)
        now = at + 1.9
        dialer.failed(PEER, "no answer", now, mute=mute)
    return pauses, now


def test_pauses_grow_to_the_cap_and_never_end() -> None:
    dialer = Dialer(random.Random(1))
    dialer.wish(PEER, [ADDRESS], Source.CONFIGURED, 0.0)
    times = attempts(dialer, 0.0, 7200.0)
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert pauses[0] <= 0.5
    assert max(pauses) <= LONGEST_RETRY
    assert min(pauses[10:]) >= LONGEST_RETRY / 2
    assert len(set(pauses[10:])) > 20, "jitter"
    assert times[-1] > 7100.0


def test_the_pauses_before_a_lost_peer_are_a_small_share_of_the_time_since() -> None:
    dialer = Dialer(random.Random(2))
    dialer.wish(PEER, [ADDRESS], Source.CONFIGURED, 0.0)
    dialer.due(0.0)
    dialer.ended(PEER, "silent", 100.0, 100.0)
    times = attempts(dialer, 100.0, 9000.0)
    pauses = [(a - 100.0, b - a) for a, b in itertools.pairwise(times)]
    assert all(pause <= max(LEAST_CEILING, PROLONGED * since) + 0.1 for since, pause in pauses)
    late = [pause for since, pause in pauses if since > LONGEST_RETRY / PROLONGED]
    assert all(LONGEST_RETRY / 2 <= pause <= LONGEST_RETRY for pause in late)
    assert len(times) < 1000


def test_a_new_address_or_a_changed_network_is_tried_at_once() -> None:
    dialer = Dialer(random.Random(3))
    dialer.wish(PEER, [ADDRESS], Source.MDNS, 0.0)
    attempts(dialer, 0.0, 500.0)
    assert not dialer.due(500.0)
    dialer.wish(PEER, [ADDRESS], Source.MDNS, 500.0)
    assert not dialer.due(500.0), "the same address again changes nothing"
    dialer.network_changed(500.0)
    assert dialer.due(500.0)
    dialer.failed(PEER, "refused", 500.0)
    moved = HostPort("192.0.2.2", 7000)
    dialer.wish(PEER, [moved], Source.MDNS, 500.0)
    [target] = dialer.due(500.0)
    assert target.address() == moved


def test_a_peer_is_wanted_until_its_last_reason_is_gone() -> None:
    dialer = Dialer(random.Random(4))
    dialer.wish(PEER, [ADDRESS], Source.MDNS, 0.0)
    dialer.wish(PEER, [HostPort("192.0.2.9", 1)], Source.CONFIGURED, 0.0)
    dialer.unwish(PEER, Source.MDNS)
    target = dialer.get(PEER)
    assert target is not None
    assert list(target.addresses) == [HostPort("192.0.2.9", 1)]
    dialer.unwish(PEER, Source.CONFIGURED)
    assert dialer.get(PEER) is None
    assert dialer.next_deadline() is None


def test_addresses_take_turns() -> None:
    dialer = Dialer(random.Random(5))
    dialer.wish(PEER, [ADDRESS, HostPort("192.0.2.2", 1)], Source.API, 0.0)
    seen = set()
    for now in range(0, 600, 60):
        for target in dialer.due(float(now)):
            seen.add(target.address())
            dialer.failed(PEER, "refused", float(now))
    assert len(seen) == 2


def test_a_peer_lost_a_while_ago_is_tried_within_seconds_and_later_ever_less() -> None:
    dialer = Dialer(random.Random(6))
    dialer.wish(PEER, [ADDRESS], Source.CONFIGURED, 0.0)
    dialer.due(0.0)
    dialer.linked(PEER)
    dialer.ended(PEER, "silent", 500.0, 500.0)
    target = dialer.get(PEER)
    assert target is not None
    gaps, now = unanswered(dialer, 500.0, 60, mute=False)
    assert max(gaps) <= 1.9 + 1.0
    assert target.patience(0.6, now) == 1.9
    assert target.patience(None, now) is None
    later = 500.0 + 7000.0
    assert target.patience(0.6, later) is None
    dialer.failed(PEER, "no answer", later)
    longest = dialer.next_deadline()
    assert longest is not None
    assert 30.0 <= longest - later <= 60.0


def test_where_nobody_answers_haste_costs_little_and_a_refusal_is_taken_for_an_answer() -> None:
    dialer = Dialer(random.Random(7))
    dialer.wish(PEER, [ADDRESS], Source.CONFIGURED, 0.0)
    dialer.due(0.0)
    dialer.linked(PEER)
    dialer.ended(PEER, "silent", 500.0, 500.0)
    target = dialer.get(PEER)
    assert target is not None and target.second_packet(0.6) is None, "not known yet"
    pauses, _ = unanswered(dialer, 500.0, 30, mute=True)
    assert max(pauses[1:]) <= LEAST_CEILING_MUTE
    assert target.second_packet(0.1) == 0.5 and target.second_packet(1.0) == 1.2 and target.second_packet(None) is None
    later = 500.0 + 45 * 60
    dialer.failed(PEER, "no answer in time", later, mute=True)
    deadline = dialer.next_deadline()
    assert deadline is not None and deadline - later <= PROLONGED_MUTE * 45 * 60
    dialer.failed(PEER, "refused", later, mute=False)
    deadline = dialer.next_deadline()
    assert deadline is not None and deadline - later >= PROLONGED * 45 * 60 / 2
    assert target.second_packet(0.6) is None
