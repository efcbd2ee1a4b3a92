"""How much may be on its way over one link, and how much a peer may ask for.

Owns the window (bytes sent and not yet acknowledged as durable), the byte budget and the bound on a peer's questions.
Keeps the rule that data queues at the sender, where it can still be overtaken or replaced, and neither in the network
nor at a slow receiver: the window follows the rate and the delays of both, which acknowledgements tell apart. Time is
an argument. Must not know what is sent.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

SMALLEST_WINDOW = 4 * 1024
FIRST_WINDOW = 16 * 1024
URGENT_WINDOW = 128 * 1024
LARGEST_WINDOW = 2 * 1024 * 1024
SMALLEST_BATCH = 512
URGENT_BATCH = 16 * 1024
LARGEST_BATCH = 256 * 1024
RECORD_OVERHEAD = 22 + 52
"""What a record costs beyond its content: TLS, TCP and IP headers."""
_QUEUE_DELAY = 0.4
_HELD = 1.0
_BASE_MEMORY = 60.0
_BURST = 1.0
_FORGETTING = 0.1
_INSTANT = 1e-4  # seconds: what clocks tell apart


@dataclass(slots=True)
class _Flight:
    """A batch on its way: when it was handed to the socket and since when the socket cannot hold it back any more."""

    number: int
    size: int
    handed: float
    taken: float
    delivered: int
    delivered_at: float
    held_up: bool = True


class Pacer:
    """Window and budget of one link. `budget` is bytes per second, everything counted; None: as the link allows."""

    def __init__(self, budget: float | None, now: float, window: float = FIRST_WINDOW) -> None:
        self.budget = budget
        self.window = float(window)
        self.rtt: float | None = None
        self.rate = 0.0
        self._in_flight: deque[_Flight] = deque()
        self._in_flight_bytes = 0
        self._delivered = 0
        self._delivered_at = now
        self._slow_start = True
        self._acked_at: float | None = None
        self._busy_rate: float | None = None
        self._base: float | None = None
        self._base_at = now
        self._probe_at: float | None = None
        self._backed_off_at = now
        self._tokens = self._allowance()
        self._tokens_at = now
        self._full = False

    @property
    def in_flight(self) -> int:
        """Bytes of batches sent and not acknowledged."""
        return self._in_flight_bytes

    @property
    def round_trip(self) -> float:
        """Seconds there and back as far as is known, queues included; a way may have become longer lately."""
        return max(self._base or 0.0, self.rtt or 0.0)

    def batch_limit(self, *, urgent: bool = False) -> int:
        """How large the next batch may be: large enough to share the cost of a commit, two on their way at a time.

        An urgent one holds up nothing that is more urgent.
        """
        limit = max(URGENT_BATCH if urgent else SMALLEST_BATCH, min(LARGEST_BATCH, int(self.window) // 2))
        if self.budget is not None:
            # On a thin lossy link every packet may hold up all behind it: so few, full ones.
            limit = max(SMALLEST_BATCH, min(limit, int(self.budget * 0.75)))
        return limit

    def may_send(self, now: float, *, urgent: bool) -> bool:
        """Whether a batch may go now. An urgent one may run the budget into debt and go beyond the window.

        Nothing more urgent waits behind it, and on a link that comes back it shall not wait for the window to grow.
        """
        self._refill(now)
        window = self.window if self._probe_at is None else SMALLEST_WINDOW
        room = max(self.window * 1.5, URGENT_WINDOW) if urgent else window
        if self._in_flight_bytes > 0 and self._in_flight_bytes >= room:
            self._full = True
            return False
        return self.budget is None or self._tokens > (-self._allowance() if urgent else 0.0)

    def next_allowed(self, now: float) -> float | None:
        """When the budget will allow a batch again; None if the budget is not what holds it back."""
        self._refill(now)
        if self.budget is None or self._tokens > 0:
            return None
        return now + (1.0 - self._tokens) / self.budget

    def sent(self, size: int, now: float, number: int | None = None) -> None:
        """`size` bytes went out; with `number`, as a batch that will be acknowledged."""
        self._refill(now)
        if self.budget is not None:
            self._tokens -= size + RECORD_OVERHEAD
        if number is not None:
            if not self._in_flight:
                self._delivered_at = now
            self._in_flight.append(_Flight(number, size, now, now, self._delivered, self._delivered_at))
            self._in_flight_bytes += size

    def waiting(self, backlog: int, now: float) -> None:
        """Of all that was handed over the socket still has the last `backlog` bytes to take.

        The time that a batch waits there says nothing of the link.
        """
        later = 0
        for flight in reversed(self._in_flight):
            if later >= backlog:
                if not flight.held_up:
                    return
                flight.taken, flight.held_up = now, False
                flight.delivered, flight.delivered_at = self._delivered, self._delivered_at
            later += flight.size

    def charge(self, size: int) -> None:
        """`size` bytes that are no batch went out: they count, and wait for nothing."""
        if self.budget is not None:
            self._tokens -= size + RECORD_OVERHEAD

    def unloaded(self, rtt: float, now: float) -> None:
        """A round trip of a few bytes, with little else on its way."""
        if self._base is None or rtt <= self._base:
            self._base, self._base_at = rtt, now

    def acked(self, number: int, now: float, held: float = 0.0) -> None:
        """Batches up to `number` are durable at the peer, who had the last of them for `held` seconds."""
        size = 0
        last = None
        while self._in_flight and self._in_flight[0].number <= number:
            last = self._in_flight.popleft()
            size += last.size
        if last is None:
            return
        self._in_flight_bytes -= size
        self._delivered += size
        self._delivered_at = now
        self._learn_rate(last, now)
        if self._acked_at is not None and now > self._acked_at:
            # More was on its way all the time, so the link was busy between the two acknowledgements.
            sample = size / max(_INSTANT, now - self._acked_at)
            self._busy_rate = sample if self._busy_rate is None else 0.7 * self._busy_rate + 0.3 * sample
        self._acked_at = now if self._in_flight else None
        rtt = max(0.0, now - last.handed - held)
        if self._probe_at is not None and last.handed > self._probe_at:
            self._probe_at = None
            self._base, self._base_at = rtt, now
        self._observe(rtt, max(0.0, now - last.taken - held), held, size, now)

    def _learn_rate(self, last: _Flight, now: float) -> None:
        """What was delivered while the batch was on its way, by the time that took (the estimator of BBR: Cheng et al.,
        draft-cheng-iccrg-delivery-rate-estimation). Less, when little was sent, says little."""
        sample = (self._delivered - last.delivered) / max(_INSTANT, now - last.delivered_at)
        self.rate += (sample - self.rate) * (1.0 if sample > self.rate else _FORGETTING)

    def _observe(self, rtt: float, on_way: float, held: float, size: int, now: float) -> None:
        self.rtt = rtt if self.rtt is None else 0.8 * self.rtt + 0.2 * rtt
        if self._base is None or rtt <= self._base:
            self._base, self._base_at = rtt, now
        elif now - self._base_at > _BASE_MEMORY and self._probe_at is None:
            # The way may have become longer; a queue of our own must not be taken for it, so let it drain first.
            self._probe_at = now
        if on_way > self._base + max(_QUEUE_DELAY, 0.5 * self._base) or held > _HELD:
            self._slow_start = False
            if now - self._backed_off_at > on_way + held:
                fits = self.window if self._busy_rate is None else self._busy_rate * (self._base + _QUEUE_DELAY)
                self.window = max(SMALLEST_WINDOW, min(self.window * 0.7, fits))
                self._backed_off_at = now
        elif self._full:
            self.window += size if self._slow_start else max(256.0, SMALLEST_WINDOW * size / self.window)
            self.window = min(self.window, LARGEST_WINDOW)
            self._full = False

    def _allowance(self) -> float:
        return 0.0 if self.budget is None else max(self.budget * _BURST, 2.0 * SMALLEST_BATCH)

    def _refill(self, now: float) -> None:
        if self.budget is not None:
            self._tokens = min(self._allowance(), self._tokens + (now - self._tokens_at) * self.budget)
        self._tokens_at = now


class Patience:
    """How much a peer may ask for: `burst` at once, `rate` a second in the long run."""

    def __init__(self, burst: float, rate: float, now: float) -> None:
        self._burst = self._left = burst
        self._rate = rate
        self._at = now

    def take(self, now: float) -> bool:
        """One more; false if it is one too many."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
