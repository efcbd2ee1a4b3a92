"""Associations with peers behind the same link: each gets an equal part of it. Pure.

Left to themselves they find the link's rate each on its own, in what the others leave of it: who comes first keeps
nearly all, and when it is done the others take long to grow into what it leaves. So what they carry together is counted
together (after RFC 3124, the congestion manager), and is divided among those that have more to send.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from peat_p2p.swarm.bearers.pace import Pacer, next_send

# One after the other they send a little faster than the link carries: their own rates decide, this keeps them apart.
_FASTER = 1.3
_MEMORY_ROUNDS, _LEAST_MEMORY_S = 10, 3.0


class Member(Protocol):
    """One association."""

    pacer: Pacer

    @property
    def busy(self) -> bool:
        """Whether it sends to a peer that answers."""


class Bundle:
    """The associations of one node with peers behind one link."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self._sums: deque[tuple[float, float]] = deque()  # when, and bytes per second that all carried; the best first
        self._crowded_at = float("-inf")
        self.free_at = 0.0  # when the next of them may send: those that send at the same time fill a short queue

    def part(self, member: Member, now: float) -> tuple[float, int]:
        """The bytes per second that are a member's, and among how many the link is divided; (0, 1): it has it alone."""
        if member.pacer.is_apart(now):
            return 0.0, 1
        memory = max(_LEAST_MEMORY_S, _MEMORY_ROUNDS * member.pacer.min_rtt)
        hungry = [one for one in self.members if one.pacer.hungry and one.busy and not one.pacer.is_apart(now)]
        if len(hungry) > 1:
            self._crowded_at = now
        if now - self._crowded_at > memory:
            self._sums.clear()
            return 0.0, 1
        total = sum(one.pacer.latest for one in hungry)
        while self._sums and self._sums[-1][1] <= total:
            self._sums.pop()
        self._sums.append((now, total))
        while self._sums[0][0] < now - memory:
            self._sums.popleft()
        count = len(hungry) + (member not in hungry)
        return self._total / count, count

    def sent(self, size: int, now: float) -> None:
        """One of them sent a packet."""
        if self._total:
            self.free_at = next_send(self.free_at, now, size, self._total * _FASTER)

    @property
    def _total(self) -> float:
        """Bytes per second that all carried at best of late, while they share the link."""
        return self._sums[0][1] if self._sums else 0.0
