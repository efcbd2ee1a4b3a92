"""What a link learns of its rate and delay from acknowledgements."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.mesh.pace import LARGEST_WINDOW, SMALLEST_WINDOW, Pacer
from peat_p2p.mesh.past import remember
from peat_p2p.mesh.pulse import DEAD_AFTER, HELLO_WITHIN, Pulse, Sign


def test_the_rate_is_what_was_delivered_while_a_batch_was_on_its_way() -> None:
    """Many small batches on a long way: each by its own round trip would be a hundredth of it."""
    pacer, delay, rate = Pacer(None, 0.0), 0.6, 100_000.0
    for number in range(200):
        pacer.sent(1000, number * 1000 / rate, number)
        if (acked := number - int(delay * rate / 1000)) >= 0:
            pacer.acked(acked, number * 1000 / rate + 1e-6)
    assert pacer.rate == pytest.approx(rate, rel=0.05)


@pytest.mark.parametrize("held_up", [False, True])
def test_time_in_the_socket_is_not_taken_for_a_queue_in_the_link(held_up: bool) -> None:
    pacer = Pacer(None, 0.0)
    pacer.sent(1000, 0.0, 1)
    pacer.acked(1, 0.6)
    pacer.window = 50_000.0
    now = 1.0
    for number in range(2, 6):
        pacer.sent(10_000, now, number)
        if held_up:
            pacer.waiting(10_000, now)
            pacer.waiting(0, now + 1.2)
        pacer.acked(number, now + 1.8)
        now += 2.0
    assert (pacer.window >= 50_000.0) == held_up
    assert pacer.round_trip >= 0.6


def test_a_queue_in_the_link_is_seen_also_when_the_socket_is_never_empty() -> None:
    pacer = Pacer(None, 0.0)
    pacer.sent(1000, 0.0, 1)
    pacer.acked(1, 0.6)
    pacer.window = 50_000.0
    for number in range(2, 40):
        now = float(number)
        pacer.sent(5000, now, number)
        pacer.waiting(5000, now)  # this one is still there, the one before is on its way
        if number >= 5:
            pacer.acked(number - 3, now)
    assert pacer.window < 25_000.0, "three seconds on a way of 0.6"


@given(
    st.lists(
        st.tuples(st.integers(1, 100_000), st.floats(0, 5), st.booleans(), st.booleans(), st.floats(0, 2)), max_size=60
    )
)
def test_whatever_comes_the_window_stays_in_its_bounds(steps: list[tuple[int, float, bool, bool, float]]) -> None:
    pacer, now, flying = Pacer(None, 0.0), 0.0, 0
    for number, (size, wait, held_up, drained, held) in enumerate(steps, 1):
        pacer.may_send(now, urgent=False)
        pacer.sent(size, now, number)
        flying += size
        assert pacer.in_flight == flying
        pacer.waiting(size if held_up else 0, now)
        now += wait
        if drained:
            pacer.waiting(0, now)
            pacer.acked(number, now, held)
            flying = 0
        assert SMALLEST_WINDOW <= pacer.window <= LARGEST_WINDOW and pacer.in_flight == flying
        assert pacer.rate >= 0 and pacer.round_trip >= 0
    past = remember(pacer, 7, None)
    assert (past is None) == (pacer.rtt is None) and (past is None or past.held == 7)
    assert past is None or remember(Pacer(None, 0.0), 9, past) == replace(past, held=9)


@given(st.lists(st.tuples(st.floats(0, 20), st.sampled_from(["heard", "answered", "wrong", "nothing"])), max_size=40))
def test_a_peer_is_asked_before_it_is_given_up(steps: list[tuple[float, str]]) -> None:
    pulse, now, heard, asked = Pulse(0.0, dialled=True), 0.0, 0.0, 0.0
    for wait, what in steps:
        now = min(now + wait, pulse.deadline(greeted=True))
        sign = pulse.check(now, greeted=True)
        if sign is Sign.SILENT:
            assert now - heard >= pulse.dead_after >= DEAD_AFTER and asked > heard
            return
        if sign is Sign.ASK:
            asked = now
            pulse.asked(now)
        if what == "heard":
            heard = now
            pulse.heard(now)
        elif what == "answered":
            trip = pulse.answered(pulse.nonce, now)
            assert trip is None or trip == now - asked
            assert pulse.answered(pulse.nonce, now) is None, "an answer counts once"
        elif what == "wrong":
            assert pulse.answered(pulse.nonce + 1, now) is None
    fresh = Pulse(0.0, dialled=False)
    assert fresh.check(HELLO_WITHIN - 0.1, greeted=False) is Sign.WELL
    assert fresh.check(HELLO_WITHIN, greeted=False) is Sign.NO_HELLO


@pytest.mark.parametrize(("hello", "dead_after"), [(0.01, 13.0), (1.2, 13.0), (2.0, 30.0)])
def test_on_a_thin_radio_a_peer_may_be_silent_for_longer(hello: float, dead_after: float) -> None:
    pulse = Pulse(0.0, dialled=True)
    pulse.heard(hello)
    pulse.answered(0, hello)
    assert pulse.dead_after == dead_after
    pulse.asked(hello + dead_after - 0.1)
    assert pulse.check(hello + dead_after - 0.05, greeted=True) is Sign.WELL
    assert pulse.deadline(greeted=True) == hello + dead_after
    assert pulse.check(hello + dead_after, greeted=True) is Sign.SILENT
    pulse.answered(pulse.asked(100.0), 140.0)  # behind a queue: that is not how long the way is
    assert pulse.dead_after == dead_after
