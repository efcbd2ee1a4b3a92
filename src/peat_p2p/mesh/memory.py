"""A small replica in memory.

Owns `MemoryStore`: the `Store` port and what a link's effects need of a replica, with numbers in place of documents, so
that thousands of nodes fit into one simulation. Keeps the replica's rules that matter to a link: a greater version
replaces a lesser, and a delta applies only to the version it was made for or a later one. Must not grow features a real
replica does not have.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.documents.types import Outcome, PartKey, Verdict
from peat_p2p.mesh.frames import CLASSES, Version
from peat_p2p.mesh.ports import Encoded

_KLASS_NAMES = ("commands", "deployments", "packages", "platforms")


@dataclass(frozen=True, slots=True)
class MemoryUpdate:
    """A version of a part; `base` 0: whole."""

    key: PartKey
    version: int
    base: int


class MemoryStore:
    """Parts are versions. A whole part weighs `whole` bytes on the wire, a delta `delta`."""

    def __init__(self, epoch: bytes, *, whole: int = 120, delta: int = 22) -> None:
        self._epoch = epoch
        self._whole = whole
        self._delta = delta
        self._seq = 0
        self._order: list[OrderedDict[PartKey, int]] = [OrderedDict() for _ in CLASSES]
        self._versions: dict[PartKey, int] = {}
        self._givers: dict[PartKey, str] = {}
        self._cursors: dict[tuple[str, bytes], dict[int, int]] = {}

    @property
    def epoch(self) -> bytes:
        """Names this store."""
        return self._epoch

    def key(self, klass: int, name: str) -> PartKey:
        """A key of class `klass`."""
        return PartKey(_KLASS_NAMES[klass], name, "", 0)

    def put(self, klass: int, name: str, version: int = 0) -> PartKey:
        """Write a part here: the version given, or one more than there is."""
        key = self.key(klass, name)
        self._set(key, version or self._versions.get(key, 0) + 1, "")
        return key

    def versions(self) -> dict[PartKey, int]:
        """Everything held."""
        return dict(self._versions)

    def head(self, klass: int) -> int:
        """See Store."""
        order = self._order[klass]
        return order[next(reversed(order))] if order else 0

    def changed_since(self, klass: int, seq: int, limit: int, *, peer: str = "") -> list[tuple[int, PartKey]]:
        """See Store."""
        found: list[tuple[int, PartKey]] = []
        order = self._order[klass]
        for key in reversed(order):
            at = order[key]
            if at <= seq:
                break
            if not peer or self._givers.get(key) != peer:
                found.append((at, key))
        found.reverse()
        return found[:limit]

    def seq(self, key: PartKey) -> int:
        """See Store."""
        return self._order[_KLASS_NAMES.index(key.collection)].get(key, 0)

    def version(self, key: PartKey) -> Version | None:
        """See Store."""
        version = self._versions.get(key)
        return None if version is None else (1, version, 0)

    def encode_key(self, key: PartKey) -> bytes:
        """See Store."""
        return f"{key.collection}/{key.doc_id}".encode()

    def decode_key(self, data: bytes) -> PartKey:
        """See Store."""
        try:
            collection, slash, name = data.decode().partition("/")
        except UnicodeDecodeError as error:
            raise InvalidInputError("key is not text") from error
        if collection not in _KLASS_NAMES or not slash:
            raise InvalidInputError("not a key")
        return PartKey(collection, name, "", 0)

    def encode(self, key: PartKey, base: Version | None, base_seq: int) -> Encoded | None:
        """See Store."""
        version = self._versions.get(key)
        if version is None:
            return None
        if base is None:
            head, size = b"W" + version.to_bytes(4, "big"), self._whole
        else:
            head, size = b"D" + version.to_bytes(4, "big") + base[1].to_bytes(4, "big"), self._delta
        return Encoded(head + _content(key, version, size), base is None)

    def decode(self, key: PartKey, body: bytes) -> MemoryUpdate:
        """See Store."""
        version = int.from_bytes(body[1:5], "big")
        if body[:1] == b"W" and body[5:] == _content(key, version, self._whole):
            return MemoryUpdate(key, version, 0)
        if body[:1] == b"D" and body[9:] == _content(key, version, self._delta):
            return MemoryUpdate(key, version, int.from_bytes(body[5:9], "big"))
        raise InvalidInputError("not an update")

    def version_of(self, update: MemoryUpdate) -> Version | None:
        """See Store."""
        return (1, update.version, 0)

    def certificate_key(self, key: PartKey) -> PartKey | None:
        """Parts here are not signed."""
        return None

    def apply(self, updates: Sequence[MemoryUpdate], source: str) -> list[Outcome]:
        """Take updates, as a replica does; durable at once."""
        return [Outcome(self._apply(update, source), update.key) for update in updates]

    def cursors(self, peer: str, epoch: bytes) -> dict[int, int]:
        """What is held of a peer's database."""
        return dict(self._cursors.get((peer, epoch), {}))

    def move_cursor(self, peer: str, epoch: bytes, klass: int, seq: int) -> None:
        """Remember a cursor."""
        self._cursors.setdefault((peer, epoch), {})[klass] = seq

    def _apply(self, update: MemoryUpdate, source: str) -> Verdict:
        have = self._versions.get(update.key, 0)
        if have == update.version:
            self._givers[update.key] = source
        if have >= update.version:
            return Verdict.STALE
        if update.base > have:
            return Verdict.NEED_FULL
        self._set(update.key, update.version, source)
        return Verdict.APPLIED

    def _set(self, key: PartKey, version: int, giver: str) -> None:
        self._seq += 1
        self._versions[key] = version
        self._givers[key] = giver
        order = self._order[_KLASS_NAMES.index(key.collection)]
        order[key] = self._seq
        order.move_to_end(key)


def _content(key: PartKey, version: int, size: int) -> bytes:
    """What does not compress, as signatures and preimages do not; and shows a change of any byte, as they do."""
    return hashlib.shake_128(b"%s %d" % (key.doc_id.encode(), version)).digest(size)
