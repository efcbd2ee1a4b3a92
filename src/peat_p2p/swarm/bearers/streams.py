"""A stream and its two halves: bytes to be sent until acknowledged, and bytes put back into order. Pure."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

WINDOW = 4 << 20  # bytes of one stream that may be ahead of its reader
KEEP_AHEAD = 1 << 20  # bytes a sender takes from its socket before they can go


@dataclass(slots=True)
class SendHalf:
    """Bytes from our socket on their way: from `base` (not yet acknowledged) to `end`; `next` was never sent."""

    limit: int = WINDOW
    base: int = 0
    next: int = 0
    finished: bool = False
    fin_sent: bool = False
    fin_acked: bool = False
    _data: bytearray = field(default_factory=bytearray)
    _again: list[tuple[int, int]] = field(default_factory=list)
    _acked: list[int] = field(default_factory=list)  # where what has arrived ahead of `base` starts
    _acked_to: dict[int, int] = field(default_factory=dict)  # and where it stops

    @property
    def end(self) -> int:
        """The offset after the last byte we have."""
        return self.base + len(self._data)

    @property
    def room(self) -> int:
        """Bytes we are willing to take from the socket now."""
        return max(0, KEEP_AHEAD - (self.end - self.next)) if not self.finished else 0

    @property
    def done(self) -> bool:
        """Whether everything, the end included, has arrived."""
        return self.fin_acked and self.base == self.end

    @property
    def has_something(self) -> bool:
        """Whether there is something to send that may be sent."""
        if self._again or self.next < min(self.end, self.limit):
            return True
        return self.finished and not self.fin_sent and self.next == self.end

    def write(self, data: bytes) -> None:
        """More bytes from the socket."""
        self._data += data

    def take(self, most: int) -> tuple[int, bytes, bool] | None:
        """Up to `most` bytes to put into a packet, what was lost first: offset, bytes, whether they are the last."""
        while self._again:
            start, stop = self._again[0]
            start = max(start, self.base)
            if start >= stop or self._acked_to.get(start, 0) >= stop:
                heapq.heappop(self._again)
                continue
            cut = min(stop, start + most)
            if cut == stop:
                heapq.heappop(self._again)
            else:
                heapq.heapreplace(self._again, (cut, stop))
            return start, self._slice(start, cut), self._is_last(cut)
        stop = min(self.end, self.limit, self.next + most)
        if stop > self.next:
            start, self.next = self.next, stop
            return start, self._slice(start, stop), self._is_last(stop)
        if self.finished and not self.fin_sent and self.next == self.end:
            self.fin_sent = True
            return self.end, b"", True
        return None

    def acked(self, start: int, stop: int, fin: bool) -> None:
        """These bytes have arrived."""
        if fin:
            self.fin_acked = True
        if start not in self._acked_to:
            heapq.heappush(self._acked, start)
        self._acked_to[start] = max(stop, self._acked_to.get(start, 0))
        while self._acked and self._acked[0] <= self.base:
            self._advance(self._acked_to.pop(heapq.heappop(self._acked)))

    def lost(self, start: int, stop: int, fin: bool) -> None:
        """These bytes have to be sent again."""
        if fin and not self.fin_acked:
            self.fin_sent = False
        if stop > self.base and start < stop:
            heapq.heappush(self._again, (start, stop))

    def _is_last(self, stop: int) -> bool:
        if self.finished and stop == self.end:
            self.fin_sent = True
            return True
        return False

    def _advance(self, to: int) -> None:
        if to > self.base:
            del self._data[: to - self.base]
            self.base = to

    def _slice(self, start: int, stop: int) -> bytes:
        return bytes(self._data[start - self.base : stop - self.base])


@dataclass(slots=True)
class ReceiveHalf:
    """Bytes from the other side: what is in order may be read, what came early waits."""

    next: int = 0
    consumed: int = 0
    credit: int = WINDOW
    end: int | None = None
    _early: list[tuple[int, bytes]] = field(default_factory=list)
    _early_starts: set[int] = field(default_factory=set)

    @property
    def complete(self) -> bool:
        """Whether the last byte has been handed out."""
        return self.end is not None and self.next == self.end

    def accept(self, offset: int, data: bytes, fin: bool) -> list[bytes]:
        """Bytes that are in order now. Raises ValueError when the other side sends what it may not."""
        stop = offset + len(data)
        if stop > self.credit:
            raise ValueError("more was sent than was allowed")
        if fin:
            if self.end is not None and self.end != stop:
                raise ValueError("a stream ends twice")
            self.end = stop
        if stop <= self.next:
            return []
        if offset > self.next:
            key = (offset << 16) + len(data)
            if key not in self._early_starts:  # the same again would only take memory
                self._early_starts.add(key)
                heapq.heappush(self._early, (offset, data))
            return []
        out = [data[self.next - offset :]]
        self.next = stop
        while self._early and self._early[0][0] <= self.next:
            first, data = heapq.heappop(self._early)
            self._early_starts.discard((first << 16) + len(data))
            if first + len(data) > self.next:
                out.append(data[self.next - first :])
                self.next = first + len(data)
        return out

    def consume(self, count: int) -> bool:
        """The socket has taken bytes; True when the other side should hear of new credit."""
        self.consumed += count
        if self.consumed + WINDOW - self.credit >= WINDOW // 4:
            self.credit = self.consumed + WINDOW
            return True
        return False


@dataclass(slots=True)
class Stream:
    """Both halves of a stream."""

    number: int
    sending: SendHalf = field(default_factory=SendHalf)
    receiving: ReceiveHalf = field(default_factory=ReceiveHalf)


@dataclass(frozen=True, slots=True)
class Arrived:
    """Bytes of a stream in order. `new`: the other side has begun it; `fin`: they are its last; `reset`: it broke."""

    stream: int
    data: tuple[bytes, ...] = ()
    new: bool = False
    fin: bool = False
    reset: bool = False
