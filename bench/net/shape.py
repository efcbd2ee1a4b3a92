"""What a link does to packets: rate, queue, delay, jitter, loss, outages. Pure: no clock, no sockets.

Owns the definition of every word a profile uses, so that the relay, the tests and any other backend mean the same:

rate     IP bytes leave one after the other at this rate; a lost packet has used its time on the link all the same.
queue    a packet that would wait longer than this before its turn is dropped (tail drop).
delay    added after a packet has left; `jitter` moves it by up to that much either way. Jitter is a slow wander
         (a new random target every `wander` seconds, straight lines between), so packets keep their order and the
         mean stays `delay`. With `reorder` each packet draws its own instead, and may overtake.
loss     each packet alone, at random; `burst` adds Gilbert-Elliott states: enter a bad state, leave it, loss inside.
episodes loss that comes and goes by the clock ("50 % for 0.5 s every 15 s").
outage   nothing enters and nothing leaves while the link is down; what is already under way arrives.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

INFINITY = float("inf")


class ShapeError(ValueError):
    """A link is described in a way that means nothing."""


@dataclass(frozen=True, slots=True)
class Burst:
    """Gilbert-Elliott: chances per packet to enter and to leave the bad state, and the loss inside it."""

    enter: float
    leave: float
    loss: float = 1.0

    @property
    def mean_loss(self) -> float:
        return self.loss * self.enter / (self.enter + self.leave)


@dataclass(frozen=True, slots=True)
class Episode:
    """Extra loss for `seconds` at the start of each period of `every` seconds (the first period is spared)."""

    loss: float
    seconds: float
    every: float


@dataclass(frozen=True, slots=True)
class Outage:
    """A schedule of `up` seconds up, then `down` seconds down, for ever; `offset` is where in it the clock starts."""

    up: float
    down: float
    offset: float = 0.0

    def is_down(self, at: float) -> bool:
        return (at + self.offset) % (self.up + self.down) >= self.up

    def scaled(self, scale: float) -> Outage:
        return Outage(self.up * scale, self.down * scale, self.offset * scale)

    @property
    def share_up(self) -> float:
        return self.up / (self.up + self.down)


@dataclass(frozen=True, slots=True)
class Shape:
    """One direction of a link."""

    rate: float = 0.0  # bit/s; 0 is as fast as the machine
    delay: float = 0.0
    jitter: float = 0.0
    wander: float = 0.1
    reorder: bool = False
    loss: float = 0.0
    burst: Burst | None = None
    queue: float = 0.2
    episodes: tuple[Episode, ...] = ()
    outage: Outage | None = None

    def __post_init__(self) -> None:
        for name, value in (("loss", self.loss), ("burst loss", self.burst.loss if self.burst else 0.0)):
            if not 0.0 <= value <= 1.0:
                raise ShapeError(f"{name} of {value} is not between 0 and 1")
        if min(self.rate, self.delay, self.jitter, self.queue) < 0 or self.jitter > self.delay:
            raise ShapeError("rate, delay, jitter and queue must not be negative, nor jitter above delay")
        if not self.reorder and self.jitter * 2 >= self.wander:
            # A slope of one would bring packets back to back; keep well clear of it.
            object.__setattr__(self, "wander", self.jitter * 4)

    @property
    def mean_loss(self) -> float:
        """The share of packets lost in the long run, outages aside."""
        kept = 1.0 - self.loss
        if self.burst:
            kept *= 1.0 - self.burst.mean_loss
        for episode in self.episodes:
            kept *= 1.0 - episode.loss * episode.seconds / episode.every
        return 1.0 - kept

    def as_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "rate": self.rate,
            "delay": self.delay,
            "jitter": self.jitter,
            "loss": self.loss,
            "queue": self.queue,
            "reorder": self.reorder,
        }
        if self.burst:
            out["burst"] = {"enter": self.burst.enter, "leave": self.burst.leave, "loss": self.burst.loss}
        if self.episodes:
            out["episodes"] = [{"loss": e.loss, "seconds": e.seconds, "every": e.every} for e in self.episodes]
        if self.outage:
            out["outage"] = {"up": self.outage.up, "down": self.outage.down, "offset": self.outage.offset}
        return out

    def changed(self, values: Mapping[str, Any]) -> Shape:
        """This shape with the values of a TOML table or JSON object put over it."""
        known: dict[str, Any] = {}
        for key, value in values.items():
            match key:
                case "rate":
                    known[key] = parse_rate(value)
                case "delay" | "jitter" | "wander" | "queue" | "loss":
                    known[key] = float(value)
                case "reorder":
                    known[key] = bool(value)
                case "burst":
                    known[key] = None if not value else Burst(**{k: float(v) for k, v in value.items()})
                case "episodes":
                    known[key] = tuple(Episode(**{k: float(v) for k, v in one.items()}) for one in value)
                case "outage":
                    known[key] = None if not value else Outage(**{k: float(v) for k, v in value.items()})
                case _:
                    raise ShapeError(f"a link has no property {key!r}")
        return replace(self, **known)


def parse_rate(value: Any) -> float:
    """Bit/s from a number or from text such as "512k", "20M", "1G"."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    text = str(value).strip()
    factor = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1:], 0.0)
    try:
        return float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        raise ShapeError(f"{text!r} is not a rate: write 512k, 20M or 1G (bit/s)") from None


@dataclass(slots=True)
class Wire:
    """When the sender is free again. Two directions that share one wire share its rate (a radio channel)."""

    free_at: float = 0.0


@dataclass(slots=True)
class Counters:
    """What one direction has done so far."""

    offered_packets: int = 0
    offered_bytes: int = 0
    sent_packets: int = 0
    sent_bytes: int = 0
    delivered_packets: int = 0
    delivered_bytes: int = 0
    dropped_queue: int = 0
    dropped_loss: int = 0
    dropped_outage: int = 0

    def as_json(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Pipe:
    """One direction at work. `accept` says when a packet arrives, or None when it never does; the caller moves it."""

    shape: Shape
    seed: str
    wire: Wire = field(default_factory=Wire)
    epoch: float = 0.0
    cut: bool = False
    cuts: tuple[tuple[float, float], ...] = ()
    counters: Counters = field(default_factory=Counters)
    _random: Callable[[], float] = field(init=False)
    _bad: bool = False
    _last: float = 0.0
    _from: float = 0.0
    _to: float = 0.0
    _segment: float = -1.0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed).random

    def is_down(self, at: float) -> bool:
        """Whether the link is cut, or down by its schedule, at this time."""
        if self.cut:
            return True
        since = at - self.epoch
        outage = self.shape.outage
        if outage is not None and outage.is_down(since):
            return True
        return any(start <= since < end for start, end in self.cuts)

    def accept(self, now: float, size: int) -> float | None:
        """A packet of `size` bytes comes in at `now`: the time it is delivered, or None when it is dropped."""
        leaves = self.transmit(now, size)
        return None if leaves is None else self.receive(leaves)

    def transmit(self, now: float, size: int) -> float | None:
        """The sender's half: when the packet has left, or None when it found the link down or the queue full."""
        shape = self.shape
        counters = self.counters
        counters.offered_packets += 1
        counters.offered_bytes += size
        scheduled = self.cut or shape.outage is not None or bool(self.cuts)
        if scheduled and self.is_down(now):
            counters.dropped_outage += 1
            return None
        leaves = now
        if shape.rate:
            wire = self.wire
            if wire.free_at > now:
                leaves = wire.free_at
                if leaves - now > shape.queue:
                    counters.dropped_queue += 1
                    return None
            leaves += size * 8 / shape.rate
            wire.free_at = leaves
            if scheduled and self.is_down(leaves):
                counters.dropped_outage += 1
                return None
        counters.sent_packets += 1
        counters.sent_bytes += size
        return leaves

    def receive(self, leaves: float) -> float | None:
        """The air's half: when a packet that has left arrives, or None when it is lost."""
        shape = self.shape
        if (shape.loss or shape.burst or shape.episodes) and self._lost(leaves):
            self.counters.dropped_loss += 1
            return None
        arrives = leaves + shape.delay
        if shape.jitter:
            arrives += (self._random() * 2.0 - 1.0) * shape.jitter if shape.reorder else self.wander(leaves)
        if not shape.reorder:
            arrives = self._last = max(arrives, self._last)
        return arrives

    def _lost(self, at: float) -> bool:
        shape = self.shape
        random_ = self._random
        lost = bool(shape.loss) and random_() < shape.loss
        burst = shape.burst
        if burst is not None:
            self._bad = random_() >= burst.leave if self._bad else random_() < burst.enter
            lost = lost or (self._bad and random_() < burst.loss)
        if shape.episodes:
            chance = self.episode_loss(at)
            lost = (bool(chance) and random_() < chance) or lost
        return lost

    def episode_loss(self, at: float) -> float:
        """The chance that the episodes lose a packet at this time."""
        since, kept = at - self.epoch, 1.0
        for episode in self.shape.episodes:
            if since >= episode.every and since % episode.every < episode.seconds:
                kept *= 1.0 - episode.loss
        return 1.0 - kept

    def wander(self, at: float) -> float:
        """By how much the jitter moves the delay at this time, where packets keep their order."""
        shape = self.shape
        segment, place = divmod(at, shape.wander)
        if segment != self._segment:
            follows = segment == self._segment + 1.0
            self._from = self._to if follows else (self._random() * 2.0 - 1.0)
            self._to = self._random() * 2.0 - 1.0
            self._segment = segment
        return (self._from + (self._to - self._from) * place / shape.wander) * shape.jitter
