"""The one shape of pycrdt update that parts are made of.

Owns the check of update bytes before pycrdt sees them. Keeps the rule that only what a single writer's map of texts can
produce gets through: pycrdt trusts the counts it reads, so four hostile bytes would cost seconds or all the memory.
Must not know what the texts mean.
"""

from __future__ import annotations

ROOT = "p"
# One writer per map: its client id need not differ from any other's, so it is the one that encodes shortest.
CLIENT = 1
MAX_OPERATIONS = 1 << 24

# Kinds of items: a text or what is left of an overwritten one; at the head of its key, or after an earlier item.
_TEXT, _DELETED = 0x08, 0x01
_HEAD, _AFTER = 0x20, 0xA0
_BY_NAME = 1
_ONE_VALUE, _STRING = 1, 0x77


class BadContentError(ValueError):
    """Bytes that no honest writer makes."""


class _Reader:
    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        at = self.at
        self.at = at + 1
        try:
            return self.data[at]
        except IndexError:
            raise BadContentError("an update is cut short") from None

    def number(self) -> int:
        # Written out for speed: most numbers are one byte, and every part that comes in is read so.
        data, at = self.data, self.at
        try:
            value = data[at]
            if value < 0x80:
                self.at = at + 1
                return value
            value &= 0x7F
            for shift in (7, 14, 21, 28):
                at += 1
                byte = data[at]
                value |= (byte & 0x7F) << shift
                if byte < 0x80:
                    self.at = at + 1
                    return value
        except IndexError:
            raise BadContentError("an update is cut short") from None
        raise BadContentError("a number in an update is too large")

    def expect(self, value: int, what: str) -> None:
        if self.number() != value:
            raise BadContentError(f"an update has another {what} than a part's")

    def text(self) -> bytes:
        size = self.number()
        if size > len(self.data) - self.at:
            raise BadContentError("an update is cut short")
        self.at += size
        return self.data[self.at - size : self.at]


def check_update(data: bytes) -> None:
    """Raises BadContentError unless `data` is an update of a map of texts by its one writer."""
    read = _Reader(data)
    read.expect(1, "number of writers")
    items = read.number()
    read.expect(CLIENT, "writer")
    clock = read.number()
    if not 0 < items <= len(data):
        raise BadContentError("an update has no items, or more than it has room for")
    for _ in range(items):
        clock += _item(read, clock)
        if clock > MAX_OPERATIONS:
            raise BadContentError(f"a part's map has more than {MAX_OPERATIONS} operations")
    writers = read.number()
    if writers > 1:
        raise BadContentError("an update deletes what another wrote")
    if writers:
        read.expect(CLIENT, "writer")
        ranges = read.number()
        if ranges > len(data):
            raise BadContentError("an update has more deletions than it has room for")
        for _ in range(ranges):
            if read.number() + read.number() > clock:
                raise BadContentError("an update deletes what there is not")
    if read.at != len(data):
        raise BadContentError("an update has bytes left over")


def _item(read: _Reader, clock: int) -> int:
    """Read one item that begins at operation `clock`; how many operations it is."""
    info = read.byte()
    place, kind = info & 0xE0, info & 0x1F
    if place == _HEAD:
        read.expect(_BY_NAME, "parent")
        if read.text() != ROOT.encode():
            raise BadContentError("an update is of another map than a part's")
        read.text()
    elif place == _AFTER:
        read.expect(CLIENT, "writer")
        if read.number() >= clock:
            raise BadContentError("an update follows what there is not")
    else:
        raise BadContentError("an update holds an item that a part's map does not have")
    if kind == _DELETED:
        length = read.number()
        if not 0 < length <= MAX_OPERATIONS:
            raise BadContentError("an update deletes nothing, or too much")
        return length
    if kind != _TEXT:
        raise BadContentError("an update holds something that is not text")
    read.expect(_ONE_VALUE, "number of values")
    if read.byte() != _STRING:
        raise BadContentError("an update holds something that is not text")
    read.text()
    return 1
