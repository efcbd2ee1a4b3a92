"""Noticing peers that hold back what they promised.

Owns the judgement from one look at a torrent to the next: who was asked for which chunks, who gave, whose debts went
away unpaid. Two things count. A peer *withholds* when it lets several chunks go that it said it had, connected and
unchoked all the while. A peer *stands still* when it owes and gives next to nothing for a while in which others give
plenty. Rule: nobody is suspected of what a link may do: a peer that is gone is not judged, and while nobody gives,
nobody stands still. Bad data is another matter (`blame`). Pure: time is an argument.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

WITHHELD = 3  # chunks
STILL_S = 15.0
NEXT_TO_NOTHING = 16 << 10
PLENTY = 64 * NEXT_TO_NOTHING
WITHHOLDS = "does not give chunks that it says it has"
STANDS_STILL = "gives next to nothing of what it promised, while others give plenty"


@dataclass(frozen=True, slots=True)
class Look:
    """One connected peer at a moment: payload bytes so far, chunks it owes, chunks it gave parts of, choking or not."""

    received: int
    owes: frozenset[int] = frozenset()
    gave: frozenset[int] = frozenset()
    choked: bool = False


@dataclass(slots=True)
class _Record:
    look: Look
    withheld: set[int] = field(default_factory=set)
    gone: frozenset[int] = frozenset()  # debts that were there at the look before the last, and not at the last
    owing_since: float | None = None
    mark: int = 0  # bytes it had given when it began to owe
    others: int = 0  # and all others together


class Watch:
    """The peers of one torrent, by any name that is theirs alone."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def look(self, now: float, peers: Mapping[str, Look], settled: Collection[int]) -> dict[str, str]:
        """Take a look. Returns who is suspected anew, and why.

        `settled` are chunks that are here or not wanted any more, and so owed by nobody.
        """
        total = sum(look.received for look in peers.values())
        for name in self._records.keys() - peers.keys():
            del self._records[name]  # what it owed went with the connection
        found: dict[str, str] = {}
        for name, look in peers.items():
            record = self._records.get(name)
            if record is None or look.received < record.look.received:
                record = self._records[name] = _Record(look)
            else:
                self._debts(record, look, settled)
            record.look = look
            if len(record.withheld) >= WITHHELD:
                found[name] = WITHHOLDS
                record.withheld.clear()
            elif self._still(record, look, now, total):
                found[name] = STANDS_STILL
                record.owing_since = None
        return found

    @staticmethod
    def _debts(record: _Record, look: Look, settled: Collection[int]) -> None:
        """Count debts that went away without a byte. One that is paid later is forgiven.

        Judged a look later: whether a chunk is here is read a moment before or after who owes it.
        """
        record.withheld.update(piece for piece in record.gone if piece not in look.owes)
        record.withheld.difference_update(look.gave, settled)
        record.gone = frozenset()
        if not look.choked and not record.look.choked:
            record.gone = (record.look.owes - look.owes - look.gave - record.look.gave).difference(settled)

    @staticmethod
    def _still(record: _Record, look: Look, now: float, total: int) -> bool:
        others = total - look.received
        paid = look.received - record.mark
        if not look.owes or record.owing_since is None or paid >= NEXT_TO_NOTHING or others < record.others:
            record.owing_since = now if look.owes else None
            record.mark, record.others = look.received, others
            return False
        return now - record.owing_since >= STILL_S and others - record.others >= PLENTY
