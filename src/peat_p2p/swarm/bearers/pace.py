"""How fast to send: finds a link's rate in the presence of loss, and keeps its queue short. Pure.

After BBR: the rate at which bytes arrive, as the receiver counts it, is the link's; the shortest round trip is its
delay. What is in flight stays near rate x delay. Loss by itself says nothing here: a radio loses a tenth of everything
at any rate. It is even made up for, as what is lost has used its time on the link, unless round trips show a queue.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

START_PACKETS = 32
_BURST_S = 0.02  # in which the first packets leave
_BURST_GAIN = 1.6
_GROWING_GAIN = 1.5
_LEAST_SPREAD_S, _MOST_SPREAD_S = 0.06, 0.5
_LEAST_TRAIN = 4  # packets
_FLOODED = 2  # packets lost for each that came: what comes, comes as fast as the link lets it
MIN_WINDOW_PACKETS = 4
_FLOOR_PACKETS = 4  # per round trip, whatever was measured
_STEP_UP = 2.0  # what is sent of a part of a shared link, to what came of late
# Who cannot grow into its part for so many round trips has another link than the others, and is left out for a while.
_SHORT, _GROWN, _SHORT_ROUNDS, _APART_S = 1.5, 1.1, 8, 60.0
_CATCH_UP_S = 0.005
_LATENESS_S = 0.02  # of timers and acknowledgements: on a short path more than the path itself
_START_GAIN = 2.77
_PROBE_GAIN = 1.12
_DRAIN_GAIN = 0.75  # a full queue is gone when we hear of it
_BOLD_GAIN = 1.3  # after a probe that found more
_CYCLE = (_PROBE_GAIN, 0.92, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
_AFTER_PROBE = 2
_QUIET_STEP = 4  # losses seen from here on are not of the probe's making
_WINDOW_GAIN = 2.0
_YIELD, _YIELD_MORE, _LONG_QUEUES = 0.95, 0.85, 1.3
_MAX_COMPENSATED_LOSS = 0.25
_MIN_SAMPLE_S = 0.1
_RTT_MEMORY_S = 30.0
_RATE_MEMORY = 10
_START_QUEUE_S = 0.06  # a start that fills more than this has found the link's rate
_SHORT_QUEUE_S = 0.02  # as much as keeps a link busy while a processor is not, and as nobody minds who waits behind it
_GROWTH = 1.25
_ROUNDS_WITHOUT_GROWTH = 3
_CROWDED_LOSS = 0.15
_DOUBT = 1.5  # so many times the usual deviation of round trips is put down to jitter
_ENOUGH_RTTS = 12  # the least of fewer is not yet the way without its jitter


def next_send(free_at: float, now: float, size: int, rate: float) -> float:
    """When the next packet may leave after one of `size` bytes that leaves now, at `rate` bytes per second.

    `free_at` is when this one might have left; what a timer is late is made up for, if it is not much.
    """
    return max(free_at, now - _CATCH_UP_S) + size / rate


class Phase(Enum):
    """What the pacer is doing."""

    START = "start"
    DRAIN = "drain"
    CRUISE = "cruise"


@dataclass(frozen=True, slots=True)
class _Point:
    clock: float
    received: int
    limited: bool
    sent_at: float | None


class Pacer:
    """Says the rate (bytes per second) and the most that may be in flight. Fed with what acknowledgements tell."""

    def __init__(self, packet_bytes: int, rtt: float = 0.5) -> None:
        self.packet_bytes = packet_bytes
        self.ceiling = 0.0  # bytes per second that `rate` never exceeds; 0 is none
        self.hungry = False  # of late there was always more to send
        self.latest = 0.0  # bytes per second that arrived of late
        self._part, self._among = 0.0, 1
        self._short_of, self._short_since = 0.0, 0.0
        self._apart_until, self._apart_s = float("-inf"), _APART_S
        self.phase = Phase.START
        self.min_rtt = rtt  # the shortest round trip of late: the link without its queue
        self.bandwidth = 0.0  # bytes per second that arrive when the link is full; 0 while nothing is known
        self.rate = 0.0  # bytes per second to send at now
        self.window = 0.0  # bytes that may be in flight
        self.loss = 0.0
        self.smooth_rtt = rtt
        self.rtt_spread = rtt / 2
        self._measured = False
        self._rtts: deque[tuple[float, float]] = deque()
        self._points: deque[_Point] = deque(maxlen=4096)
        self._rates: deque[tuple[int, float]] = deque()
        self._round = 0
        self._round_ends = 0.0
        self._best = 0.0
        self._grown = 0  # bytes by which the first window has grown, as long as nothing shows the link's rate
        self._burst = 0.0  # the fastest that packets arrived after each other, for however short a time
        self._stale_rounds = 0
        self._step = 0
        self._step_ends = 0.0
        self._shortest = float("inf")
        self._queue = 0.0
        self._looked = 0
        self._bold = False
        self._before_probe = 0.0
        self._acked_in_step = 0
        self._lost_in_step = 0
        self._clock_high = 0.0
        self._clock_seen = -1.0
        self._refresh()

    def _refresh(self) -> None:
        """Work out what is asked for with every packet."""
        self.min_rtt = min((rtt for _, rtt in self._rtts), default=self.smooth_rtt)
        self.bandwidth = self._own
        if self._part:
            # Step by step: the link may after all not be one for all of them.
            self.bandwidth = min(self._part, self.bandwidth * _STEP_UP or self._part)
        self.rate = max(self._rate(), _FLOOR_PACKETS * self.packet_bytes / max(self.min_rtt, 0.01) / self._among)
        if self.ceiling:
            # A cap is a promise to whoever pays for the link: also the start and the floor keep it.
            self.rate = min(self.rate, self.ceiling)
        self.window = self._window()

    @property
    def _own(self) -> float:
        """Bytes per second that arrived at best of late."""
        return max((rate for _, rate in self._rates), default=0.0)

    def cap(self, ceiling: float) -> None:
        """Never send faster than `ceiling` bytes per second from now on; 0 is no cap."""
        self.ceiling = ceiling
        self._refresh()

    def share(self, now: float, part: float, among: int) -> None:
        """Others use the same link, which is divided among so many: `part` bytes per second are for this one.

        (0, 1) if it has the link alone.
        """
        if (part, among) != (self._part, self._among):
            self._part, self._among = part, among
            self._refresh()
        own = self._own
        if not self.hungry or part <= own * _SHORT or own > self._short_of * _GROWN:
            self._short_of, self._short_since = own, now
        elif now - self._short_since > _SHORT_ROUNDS * max(self.min_rtt, _MIN_SAMPLE_S):
            self._apart_until, self._apart_s = now + self._apart_s, 2 * self._apart_s
        if part and self.phase is not Phase.CRUISE:
            self._learn(self.bandwidth, False)
            self._cruise(now, _AFTER_PROBE)
            self._refresh()

    def _rate(self) -> float:
        if self.phase is Phase.START:
            if not self.bandwidth:
                # A train shows the link's rate by how far it is drawn out; what trickled before it says nothing.
                first = START_PACKETS * self.packet_bytes / _BURST_S
                return self._window() / max(self.min_rtt, 0.01) * _GROWING_GAIN if self._grown else first
            grown = max(self._burst, self.bandwidth * (_BURST_GAIN if self._burst > self.bandwidth else _START_GAIN))
            first = START_PACKETS * self.packet_bytes / max(self.min_rtt, 0.01)
            return grown if self._round >= 2 else max(first, grown)
        if self.phase is Phase.DRAIN:
            return self.bandwidth * _DRAIN_GAIN
        gain = _BOLD_GAIN if self._step == 0 and self._bold else _CYCLE[self._step]
        usual = max(_SHORT_QUEUE_S, self.min_rtt * 0.08, self.rtt_spread * _DOUBT)
        if self._queue > usual:
            # Longer than what jitter and our own probing explain. Jitter also makes arrivals look faster than the link
            # is, so that yielding a little may not be enough to be rid of it.
            return self.bandwidth * min(gain, 1.0) * (_YIELD if self._queue < _LONG_QUEUES * usual else _YIELD_MORE)
        if gain >= 1.0:
            gain /= 1.0 - min(self.loss, _MAX_COMPENSATED_LOSS)
        return self.bandwidth * gain

    def _window(self) -> float:
        if not self.bandwidth:
            return max(START_PACKETS * self.packet_bytes + self._grown, self._burst * self.min_rtt)
        if self.phase is Phase.START:
            known = max(self._burst, self.bandwidth)
            return max(START_PACKETS * self.packet_bytes, known * self.min_rtt * 2 * _START_GAIN)
        seconds = self.min_rtt + self.rtt_spread + _LATENESS_S
        bytes_in_pipe = self.bandwidth * seconds / (1.0 - min(self.loss, _MAX_COMPENSATED_LOSS))
        return max(MIN_WINDOW_PACKETS * self.packet_bytes, bytes_in_pipe * _WINDOW_GAIN)

    def is_apart(self, now: float) -> bool:
        """Whether its link has turned out to be another than that of those that it was taken to share it with."""
        return now < self._apart_until

    @property
    def patience(self) -> float:
        """Seconds after which silence means that something is lost."""
        return self.smooth_rtt + max(4 * self.rtt_spread, 0.02)

    def on_rtt(self, now: float, rtt: float) -> None:
        """A round trip was measured."""
        if not self._measured:
            self._measured = True
            self.smooth_rtt, self.rtt_spread = rtt, rtt / 4
        else:
            self.rtt_spread += (abs(rtt - self.smooth_rtt) - self.rtt_spread) / 8
            self.smooth_rtt += (rtt - self.smooth_rtt) / 8
        while self._rtts and (self._rtts[-1][1] >= rtt):
            self._rtts.pop()
        self._rtts.append((now, rtt))
        while self._rtts[0][0] < now - _RTT_MEMORY_S and len(self._rtts) > 1:
            self._rtts.popleft()
        self._shortest = min(self._shortest, rtt)
        self._looked += 1

    def on_ack(
        self,
        now: float,
        clock: float,
        received: int,
        acked: int,
        lost: int,
        in_flight: int,
        limited: bool,
        sent_at: float | None = None,
    ) -> None:
        """An acknowledgement came: the receiver's clock and count, packets acked and lost by it, bytes still in flight.

        `sent_at` is when the newest packet that it is about left here. `limited` says that we did not always have
        something to send: a rate below the link's then means nothing.
        """
        self._refresh()
        self._acked_in_step += acked
        self._lost_in_step += lost
        clock = self._unwrap(clock)
        if self.phase is Phase.START:
            self._spread(now, clock, received, acked, lost, sent_at)
            if not limited and not self.bandwidth and lost <= acked:
                self._grown += acked * self.packet_bytes
        sample = self._sample(clock, received, limited, sent_at)
        if sample is not None:
            self.hungry = not sample[1]
            self._learn(*sample)
            self._refresh()
        if now >= self._round_ends:
            # A pipe that full has shown its width even if we ran out of things to send for a moment.
            full = in_flight > max(2 * self.bandwidth * self.min_rtt, START_PACKETS * self.packet_bytes)
            self._next_round(now, limited and not (full and self.phase is Phase.START))
        if self.phase is Phase.DRAIN and in_flight <= self.bandwidth * self.min_rtt:
            self._cruise(now, _AFTER_PROBE)
        if self.phase is Phase.CRUISE and now >= self._step_ends:
            self._next_step(now, in_flight)
        self._refresh()

    @property
    def _step_seconds(self) -> float:
        return max(self.min_rtt, 0.05)

    def _unwrap(self, clock: float) -> float:
        """The receiver's clock is sent modulo 2**32 ticks."""
        whole = 2**32 * 1e-4
        while clock + self._clock_high < self._clock_seen - whole / 2:
            self._clock_high += whole
        self._clock_seen = max(self._clock_seen, clock + self._clock_high)
        return clock + self._clock_high

    def _spread(self, now: float, clock: float, received: int, acked: int, lost: int, sent_at: float | None) -> None:
        """Look at how far apart the packets of a burst arrive.

        However short the time, the link is at least that fast: no need to grow up to there. And where they arrive much
        farther apart than they left, that is its rate: no need to overshoot to find out.
        """
        last = self._points[-1] if self._points else None
        if last is None or sent_at is None or last.sent_at is None:
            return
        span, count = clock - last.clock, received - last.received
        longest = max(_MOST_SPREAD_S, 1.5 * self.min_rtt)  # in a longer span there is a pause
        if not _LEAST_SPREAD_S <= span <= longest or acked < 2 or acked + lost < _LEAST_TRAIN:
            return
        self._burst = max(self._burst, count / span)
        drawn_out = span >= 2 * (sent_at - last.sent_at)
        if (drawn_out or lost > _FLOODED * acked) and self._burst > self.bandwidth:
            self._rates.clear()
            self._rates.append((self._round, self._burst))
            self._cruise(now, 0)
        self._refresh()

    def _sample(self, clock: float, received: int, limited: bool, sent_at: float | None) -> tuple[float, bool] | None:
        """The arrival rate over at least one round trip of the receiver's clock, and whether we were the limit."""
        points = self._points
        if points and (clock <= points[-1].clock or received <= points[-1].received):
            return None
        points.append(_Point(clock, received, limited, sent_at))
        span = max(self.min_rtt, _MIN_SAMPLE_S)
        while len(points) > 2 and points[1].clock <= clock - span:
            points.popleft()
        first = points[0]
        if clock - first.clock < span * 0.9:
            return None
        if clock - first.clock > 4 * span:
            # A pause (an outage) lies within: the count says nothing about the link's rate.
            points.clear()
            points.append(_Point(clock, received, limited, sent_at))
            return None
        limited = any(point.limited for point in points)
        self.latest = (received - first.received) / (clock - first.clock)
        return self.latest, limited

    def _learn(self, sample: float, limited: bool) -> None:
        # What arrives while we have little to say is our rate, not the link's: a slow trickle must not become a limit.
        if limited and (sample < self.bandwidth or not self.bandwidth):
            return
        rates = self._rates
        while rates and rates[-1][1] <= sample:
            rates.pop()
        rates.append((self._round, sample))

    def _next_round(self, now: float, limited: bool) -> None:
        self._round_ends = now + max(self.min_rtt, _MIN_SAMPLE_S)
        if self.phase is Phase.START:
            self._grow(limited)
        if limited:
            return  # a round in which we had little to say ages nothing
        self._round += 1
        while len(self._rates) > 1 and self._rates[0][0] < self._round - _RATE_MEMORY:
            self._rates.popleft()

    def _grow(self, limited: bool) -> None:
        """A round of the start is over: was it still worth it?"""
        shortest = self._shortest
        self._look_anew()
        lost, total = self._lost_in_step, self._acked_in_step + self._lost_in_step
        self._acked_in_step = self._lost_in_step = 0
        crowded = total >= 40 and lost > total * _CROWDED_LOSS
        if self.bandwidth > self._best * _GROWTH:
            self._best, self._stale_rounds = self.bandwidth, 0
        elif not limited:
            self._stale_rounds += 1
            crowded = crowded or (shortest != float("inf") and shortest > self.min_rtt * 1.25 + _START_QUEUE_S)
        if crowded and not self.bandwidth:
            self._learn(self.latest, False)
            self._refresh()
        if self.bandwidth and (self._stale_rounds >= _ROUNDS_WITHOUT_GROWTH or crowded):
            self.phase = Phase.DRAIN

    def _cruise(self, now: float, step: int) -> None:
        """The link's rate is known: begin to cruise at this step of the cycle."""
        self.phase, self._step, self._step_ends = Phase.CRUISE, step, now + self._step_seconds
        self._acked_in_step = self._lost_in_step = 0
        self._look_anew()

    def _look_anew(self) -> None:
        self._shortest, self._looked = float("inf"), 0

    def _next_step(self, now: float, in_flight: int) -> None:
        gain = _CYCLE[self._step]
        if (
            gain < 1.0
            and in_flight > self.bandwidth * self.min_rtt * 1.1
            and now < self._step_ends + self._step_seconds
        ):
            return  # the queue that probing made is not yet gone
        total = self._acked_in_step + self._lost_in_step
        if self._step < _QUIET_STEP:
            self._acked_in_step = self._lost_in_step = 0
        elif total >= 30 or (total and self._step == len(_CYCLE) - 1):
            weight = min(0.3, total / 200) if self.loss else min(0.8, total / 40)
            self.loss += (self._lost_in_step / total - self.loss) * weight
            self._acked_in_step = self._lost_in_step = 0
        if self._looked >= _ENOUGH_RTTS:
            self._queue = max(0.0, self._shortest - self.min_rtt)
            self._look_anew()
        if self._step == _AFTER_PROBE:
            self._bold = self.bandwidth > self._before_probe * 1.05
        self._step = 0 if self._step == _AFTER_PROBE and self._bold else (self._step + 1) % len(_CYCLE)
        if self._step == 0:
            self._before_probe = self.bandwidth
        self._step_ends = now + self._step_seconds
