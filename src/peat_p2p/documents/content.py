"""What one part says, and its pycrdt form.

Owns the map of a part (field -> stamp and JSON text, the deletion stamp, the anchor of heartbeats), the update and
state bytes that carry it, and the canonical bytes that its writer signs. Keeps the rule that a part has one writer,
whose map is therefore a straight line: a state is known by its generation and its number of operations. Must not know
who signs or how parts are merged.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from pycrdt import Doc, Map

from peat_p2p.documents.chain import MAX_CHAIN_LENGTH, VALUE_BYTES
from peat_p2p.documents.stamps import COUNTER_BITS, MAX_STAMP
from peat_p2p.documents.types import PartKey
from peat_p2p.documents.ymap import CLIENT, ROOT, BadContentError, read_update

_DOMAIN = b"peat document part 1\n"
_FIELD, _DELETED, _ANCHOR, _EXISTS = "f", "d", "l", "e"
# The field of a document that has no other, so that an empty object is a document too. No JSON text that can be
# stored has such a name.
EXISTS = "\udc00"
EXISTS_TEXT = "true"
_MILLISECONDS = 1000 << COUNTER_BITS
_SIZE, _STAMP_AND_SIZE = struct.Struct(">I"), struct.Struct(">QI")


class Value(NamedTuple):
    """A field's JSON text and when it was written."""

    stamp: int
    text: str


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where proofs of life start: the chain's end stands for the second `base` and was signed at `stamp`."""

    stamp: int
    end: bytes
    base: int
    length: int

    def value_at(self, position: int) -> Value:
        """The field's value that a proof of `position` gives; a second lived is a second later."""
        return Value(min(self.stamp + position * _MILLISECONDS, MAX_STAMP), str(self.base + position))


@dataclass(frozen=True, slots=True)
class Content:
    """What a part says. `deleted`: everything in the document stamped up to it is deleted (0: nothing)."""

    fields: dict[str, Value]
    deleted: int = 0
    anchor: Anchor | None = None
    # The highest and the lowest stamp in it (0: there is none).
    version: int = field(init=False, compare=False)
    oldest: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        # Asked of every part that comes, several times.
        stamps = {value.stamp for value in self.fields.values()}
        if self.deleted:
            stamps.add(self.deleted)
        if self.anchor is not None:
            stamps.add(self.anchor.stamp)
        object.__setattr__(self, "version", max(stamps, default=0))
        object.__setattr__(self, "oldest", min(stamps, default=0))

    def after(self, stamp: int) -> Content:
        """Without the values stamped up to `stamp`; the deletion stays."""
        return self.without(lambda name, value: value <= stamp)

    def without(self, is_hidden: Callable[[str, int], bool], live_field: str = "") -> Content:
        """Without the values of which `is_hidden(name, stamp)` says so; the deletion stays."""
        anchor = self.anchor
        if anchor is not None and is_hidden(live_field, anchor.stamp):
            anchor = None
        return Content({n: v for n, v in self.fields.items() if not is_hidden(n, v.stamp)}, self.deleted, anchor)


@dataclass(frozen=True, slots=True)
class Form:
    """A part's pycrdt state and how many operations made it."""

    state: bytes
    count: int


def encode(content: Content) -> Form:
    """A fresh map that says `content`."""
    return _write(Doc(client_id=CLIENT), _entries(content))


def extend(state: bytes, old: Content, new: Content) -> Form:
    """The map `state` (which says `old`) with what differs in `new` written to it. Nothing may be missing in `new`."""
    doc: Doc[Map[str]] = Doc(client_id=CLIENT)
    doc.apply_update(state)
    before = _entries(old)
    return _write(doc, {name: text for name, text in _entries(new).items() if before.get(name) != text})


def difference(state: bytes, since: int) -> bytes:
    """What follows the first `since` operations of `state`."""
    doc: Doc[Map[str]] = Doc(client_id=CLIENT)
    doc.apply_update(state)
    return doc.get_update(_vector(since)) if since else state


def combine(state: bytes, payload: bytes) -> tuple[Form, Content]:
    """`state` (may be empty) with the update `payload` applied, and what it says then. Raises BadContentError."""
    if not state:
        entries = read_update(payload)
        if entries is not None:
            content = _content(entries)
            _remember(payload, content)
            return Form(payload, len(entries)), content
    else:
        read_update(payload)
    doc: Doc[Map[str]] = Doc(client_id=CLIENT)
    try:
        root = doc.get(ROOT, type=Map)
        if state:
            doc.apply_update(state)
        doc.apply_update(payload)
        form = Form(doc.get_update(), _count(doc))
        text = str(root)
    except BadContentError:
        raise
    except Exception as error:  # the decoder raises many kinds for hostile bytes
        raise BadContentError(f"update cannot be read: {error}") from None
    return form, _content(json.loads(text))


# What came a moment ago is merged for readers next, and need not be read twice.
_read_lately: dict[bytes, Content] = {}
_LATELY = 256


def _remember(state: bytes, content: Content) -> None:
    if len(_read_lately) >= _LATELY:
        _read_lately.clear()
    _read_lately[state] = content


def decode(state: bytes) -> Content:
    """What the map `state`, which went through `combine` or was made here, says. Raises BadContentError."""
    content = _read_lately.get(state)
    if content is not None:
        return content
    entries = read_update(state)
    if entries is not None:
        return _content(entries)
    doc: Doc[Map[str]] = Doc(client_id=CLIENT)
    try:
        root = doc.get(ROOT, type=Map)
        doc.apply_update(state)
        text = str(root)
    except Exception as error:  # as above
        raise BadContentError(f"state cannot be read: {error}") from None
    # One call for the whole map: asking it for one entry after the other takes ten times as long.
    return _content(json.loads(text))


def _content(entries: dict[str, str]) -> Content:
    fields: dict[str, Value] = {}
    deleted = 0
    anchor = None
    # Most fields of a part were written at once: a stamp is read when it differs from the one before.
    read, stamp = "", 0
    for name, text in entries.items():
        if not isinstance(text, str):
            raise BadContentError(f"entry {name[:40]!r} is not text")
        if name[:1] == _FIELD:
            written, _, value = text.partition(" ")
            if written != read:
                read, stamp = written, _stamp(written)
            fields[name[1:]] = Value(stamp, value)
        elif name == _EXISTS:
            fields[EXISTS] = Value(_stamp(text), EXISTS_TEXT)
        elif name == _DELETED:
            deleted = _stamp(text)
        elif name == _ANCHOR:
            anchor = _anchor(text)
        else:
            raise BadContentError(f"entry {name[:40]!r} is of no known kind")
    return Content(fields, deleted, anchor)


def canonical(key: PartKey, generation: int, content: Content) -> bytes:
    """The bytes a writer signs: the same for the same content, different for any other."""
    out = [_DOMAIN]
    for text in (key.collection, key.doc_id, key.origin):
        out += _sized(text)
    out.append(struct.pack(">QQQQ", key.incarnation, generation, content.version, content.deleted))
    if (anchor := content.anchor) is None:
        out.append(b"\0")
    else:
        out.append(struct.pack(f">BQ{VALUE_BYTES}sQQ", 1, anchor.stamp, anchor.end, anchor.base, anchor.length))
    out.append(_SIZE.pack(len(content.fields)))
    for name, (stamp, text) in sorted(content.fields.items()):
        data = text.encode(errors="surrogatepass")
        out += (_sized_name(name), _STAMP_AND_SIZE.pack(stamp, len(data)), data)
    return b"".join(out)


def _sized(text: str) -> tuple[bytes, bytes]:
    data = text.encode(errors="surrogatepass")
    return _SIZE.pack(len(data)), data


@lru_cache(maxsize=4096)
def _sized_name(name: str) -> bytes:
    """A field's name, of which a fleet has few."""
    return b"".join(_sized(name))


def _entries(content: Content) -> dict[str, str]:
    entries = {_FIELD + name: f"{v.stamp:x} {v.text}" for name, v in content.fields.items() if name != EXISTS}
    if (exists := content.fields.get(EXISTS)) is not None:
        entries[_EXISTS] = f"{exists.stamp:x}"
    if content.deleted:
        entries[_DELETED] = f"{content.deleted:x}"
    if (anchor := content.anchor) is not None:
        entries[_ANCHOR] = f"{anchor.stamp:x} {anchor.end.hex()} {anchor.base} {anchor.length}"
    return entries


def _write(doc: Doc[Map[str]], entries: dict[str, str]) -> Form:
    root = doc.get(ROOT, type=Map)
    with doc.transaction():
        for name in sorted(entries):
            root[name] = entries[name]
    return Form(doc.get_update(), _count(doc))


def _vector(count: int) -> bytes:
    out = bytearray((1, CLIENT))
    while count > 0x7F:
        out.append(count & 0x7F | 0x80)
        count >>= 7
    out.append(count)
    return bytes(out)


def _count(doc: Doc[Map[str]]) -> int:
    """The number of operations, if they are all the one writer's. Raises BadContentError."""
    vector = doc.get_state()
    if vector[:2] != bytes((1, CLIENT)):
        raise BadContentError("a part's map holds something, by one writer")
    count = shift = 0
    for byte in vector[2:]:
        count |= (byte & 0x7F) << shift
        shift += 7
    return count


def _stamp(text: str) -> int:
    try:
        stamp = int(text, 16) if len(text) <= 16 else 0
    except ValueError:
        stamp = 0
    if not 0 < stamp <= MAX_STAMP or f"{stamp:x}" != text:
        raise BadContentError(f"{text[:40]!r} is not a stamp")
    return stamp


def _anchor(text: str) -> Anchor:
    try:
        stamp, end, base, length = text.split(" ")
        anchor = Anchor(_stamp(stamp), bytes.fromhex(end), int(base), int(length))
    except ValueError:
        raise BadContentError(f"{text[:40]!r} is not an anchor") from None
    if len(anchor.end) != VALUE_BYTES or not 0 < anchor.length <= MAX_CHAIN_LENGTH or not 0 < anchor.base < 1 << 48:
        raise BadContentError(f"{text[:40]!r} is not an anchor")
    return anchor
