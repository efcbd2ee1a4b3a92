"""The one shape of pycrdt update that parts are made of.

Owns the check of update bytes before pycrdt sees them. Keeps the rule that only what a single writer's map of texts can
produce gets through: pycrdt trusts the counts it reads, so four hostile bytes would cost seconds or all the memory.
Most maps are written once, whole: what such a one says is read on the way, and pycrdt, which takes ten times as long,
is not needed for it. Must not know what the texts mean.
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
_ROOT_BYTES = ROOT.encode()
# The bytes before the name of a first entry, and between it and the text.
_FIRST = bytes((_HEAD | _TEXT, _BY_NAME, len(_ROOT_BYTES))) + _ROOT_BYTES
_IS_TEXT = bytes((_ONE_VALUE, _STRING))


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
                    if not byte:
                        break  # a longer form of a smaller number: equal maps would have unequal bytes
                    self.at = at + 1
                    return value
        except IndexError:
            raise BadContentError("an update is cut short") from None
        raise BadContentError("a number in an update is too large, or has a longer form than it needs")

    def expect(self, value: int, what: str) -> None:
        if self.number() != value:
            raise BadContentError(f"an update has another {what} than a part's")

    def text(self) -> bytes:
        size = self.number()
        if size > len(self.data) - self.at:
            raise BadContentError("an update is cut short")
        self.at += size
        return self.data[self.at - size : self.at]


def read_update(data: bytes) -> dict[str, str] | None:
    """Check that `data` is an update of a map of texts by its one writer.

    Returns what the map says if it is whole and each entry was written once; None if only pycrdt can tell. Raises
    BadContentError.
    """
    read = _Reader(data)
    read.expect(1, "number of writers")
    items = read.number()
    read.expect(CLIENT, "writer")
    clock = read.number()
    if not 0 < items <= len(data):
        raise BadContentError("an update has no items, or more than it has room for")
    entries: dict[str, str] = {}
    is_plain = clock == 0
    plain = _first_entries(read, items, entries) if is_plain else 0
    clock += plain
    for _ in range(items - plain):
        length, entry = _item(read, clock)
        clock += length
        if clock > MAX_OPERATIONS:
            raise BadContentError(f"a part's map has more than {MAX_OPERATIONS} operations")
        if entry is None:
            is_plain = False
        elif is_plain:
            entries[_decoded(entry[0])] = _decoded(entry[1])
    writers = read.number()
    if writers > 1:
        raise BadContentError("an update deletes what another wrote")
    if writers:
        is_plain = False
        read.expect(CLIENT, "writer")
        ranges = read.number()
        if ranges > len(data):
            raise BadContentError("an update has more deletions than it has room for")
        for _ in range(ranges):
            if read.number() + read.number() > clock:
                raise BadContentError("an update deletes what there is not")
    if read.at != len(data):
        raise BadContentError("an update has bytes left over")
    return entries if is_plain and len(entries) == items else None


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise BadContentError("a text in an update is not UTF-8") from None


def _first_entries(read: _Reader, items: int, entries: dict[str, str]) -> int:
    """Read up to `items` first entries, as nearly all are, into `entries`; how many there were before another kind."""
    data, at = read.data, read.at
    found = 0
    try:
        # Written out for speed: names and texts of up to 127 bytes, and texts of up to 16,383.
        while found < items and data[at : at + 4] == _FIRST and (size := data[at + 4]) < 0x80:
            begin = at + 7 + size
            if data[begin - 2 : begin] != _IS_TEXT:
                break
            length = data[begin]
            if length < 0x80:
                text = begin + 1
            elif 0 < data[begin + 1] < 0x80:
                length = length & 0x7F | data[begin + 1] << 7
                text = begin + 2
            else:
                break
            if text + length > len(data):
                break
            entries[data[at + 5 : begin - 2].decode()] = data[text : text + length].decode()
            at = text + length
            found += 1
    except (IndexError, UnicodeDecodeError):
        pass  # the slow way says what is wrong
    read.at = at
    return found


def _item(read: _Reader, clock: int) -> tuple[int, tuple[bytes, bytes] | None]:
    """Read one item that begins at operation `clock`: how many operations it is; name and text of a first entry."""
    info = read.byte()
    place, kind = info & 0xE0, info & 0x1F
    name = None
    if place == _HEAD:
        read.expect(_BY_NAME, "parent")
        if read.text() != _ROOT_BYTES:
            raise BadContentError("an update is of another map than a part's")
        name = read.text()
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
        return length, None
    if kind != _TEXT:
        raise BadContentError("an update holds something that is not text")
    read.expect(_ONE_VALUE, "number of values")
    if read.byte() != _STRING:
        raise BadContentError("an update holds something that is not text")
    text = read.text()
    return 1, None if name is None else (name, text)
