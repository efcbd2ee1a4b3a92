"""Forgetting.

Owns what is removed and when: deleted documents and overwritten parts after the horizon, documents whose time is over,
certificates of writers long gone. Keeps the rule that nothing is forgotten while forgetting it could show or hide
anything: a deletion stays until every part it hides is known to be here whole and old, and time is not this clock's
word alone. Must not know about links or the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from peat_p2p.documents.content import Content
from peat_p2p.documents.horizon import Horizon
from peat_p2p.documents.parts import Part
from peat_p2p.documents.rules import BEACONS, CERTIFICATES, CLASSES, SIDECARS, CollectionRule
from peat_p2p.documents.shelf import Shelf
from peat_p2p.documents.stamps import MAX_STAMP, stamp_at, stamp_time
from peat_p2p.documents.types import PartKey
from peat_p2p.documents.view import DocKey, View, said_fields
from peat_p2p.documents.writing import Desk

_TIME = "time"
_DAY = 86_400.0
# How far a writer's newest signed stamp may be behind the fleet's time: a chain of heartbeats is anchored anew sooner.
_VOUCHED = 6 * 3600.0


class Compactor:
    """Decides, document by document, what to forget."""

    def __init__(self, shelf: Shelf, horizon: Horizon, desk: Desk) -> None:
        self._shelf = shelf
        self._horizon = horizon
        self._desk = desk

    def time(self, now: float) -> float:
        """The time that forgetting goes by: `now`, but not later than what other writers have signed vouches for.

        So a clock that jumps ahead makes a node forget nothing, and neither does being alone for long. Where there
        are no others, time goes on from what it was by some hours at most each time this node looks.
        """
        me = self._desk.key("", "").origin
        others = 0
        oldest = MAX_STAMP
        for part in self._shelf.parts():
            if part.key.origin == me:
                oldest = min(oldest, part.version)
            else:
                others = max(others, part.version)
        if others:
            return min(now, stamp_time(others) + _VOUCHED)
        before = int.from_bytes(self._shelf.meta.get(_TIME, b""), "big")
        return min(now, (before or stamp_time(oldest)) + _VOUCHED)

    def begin(self, now: float) -> Iterator[DocKey]:
        """Stage the new floor and name the documents to look at, one after the other."""
        time = self.time(now)
        self._shelf.staged.meta[_TIME] = int(time).to_bytes(8, "big")
        self._horizon.raise_floor(stamp_at(time - self._shelf.rules.horizon))
        for collection in self._shelf.collections():
            if not collection.startswith(BEACONS):
                for doc_id in self._shelf.doc_ids(collection):
                    yield collection, doc_id

    def look_at(self, doc: DocKey, now: float, time: float) -> None:
        """Stage what is to be forgotten of one document; `time` is what `time(now)` said."""
        rule = self._shelf.rules.of(doc[0])
        parts = list(self._shelf.writers(*doc).values())
        if not parts or (len(parts) == 1 and self._is_young(parts[0], rule, time)):
            return
        floor = self._horizon.floor
        view = self._shelf.view(doc, parts)
        if self._is_over(doc, rule, view, parts, now, time):
            self._remove(part.key for part in parts)
        elif not view.fields:
            if view.top <= floor and all(self._is_covered(part, rule) for part in parts):
                self._remove(part.key for part in parts)
        else:
            self._shed(parts, view, rule, floor, now)

    def writers_gone(self, time: float) -> None:
        """Stage the removal of what is left of writers whose certificates ended before the horizon."""
        gone = {
            origin
            for origin, certificate in self._shelf.certificates().items()
            if certificate.identity.not_after + self._shelf.rules.horizon < time
        }
        if not gone:
            return
        # What a node says of itself as a node lasts as long as its certificate.
        own = {SIDECARS, *(f"{BEACONS}{klass}" for klass in range(CLASSES))}
        busy = {part.key.origin for part in self._shelf.parts() if part.key.collection not in own}
        for origin in gone - busy:
            for collection in own:
                self._remove([part.key for part in self._shelf.writers(collection, origin).values()])
            self._shelf.staged.certificates[origin] = None
            for epoch, klass in self._shelf.cursor_peers().get(origin, {}):
                self._shelf.staged.cursors[origin, epoch, klass] = None
            for writer, klass in self._shelf.covers:
                if writer[0] == origin:
                    self._shelf.staged.covers[writer, klass] = None

    def forget(self, key: PartKey, floor: int, now: float, time: float) -> bool:
        """Forget what of a part is stamped up to `floor`, on the word of a peer. Returns whether there was anything.

        Only what is older than the horizon can have been forgotten by others. What our own part says since is
        written anew, as of now: with its old stamps it would seem to be a thing of the past to whoever has heard from
        us since. Another's part goes; its writer does the same.
        """
        part = self._shelf.newest(key)
        limit = stamp_at(time - self._shelf.rules.horizon)
        if part is None or key.collection == CERTIFICATES or key.collection.startswith(BEACONS):
            return False
        content = part.content()
        floor = min(floor, limit)
        if content.oldest > floor:
            return False
        self._horizon.raise_floor(limit)
        if key == self._desk.key(key.collection, key.doc_id):
            self._desk.say_again(key, content.after(floor), now)
        else:
            self._shelf.stage_removal(key)
        return True

    def _is_young(self, part: Part, rule: CollectionRule, time: float) -> bool:
        """Whether a document of this one part stays without looking into it: most do, and looking costs."""
        return part.version > self._horizon.floor and (rule.ttl is None or part.version >= stamp_at(time - rule.ttl))

    def _is_over(
        self, doc: DocKey, rule: CollectionRule, view: View, parts: list[Part], now: float, time: float
    ) -> bool:
        if not view.fields:
            return False
        if rule.ttl is not None and view.version < stamp_at(time - rule.ttl):
            return True
        if rule.expiry_field and (seen := view.fields.get(rule.expiry_field)) is not None:
            expiry = unix_seconds(seen.value.text)
            if expiry and expiry + self._shelf.rules.horizon < time and view.version <= self._horizon.floor:
                return True
        if rule.follows and view.version <= self._horizon.floor:
            leader = doc[1].partition(":")[0]
            # What came lately may have come ahead of the document it follows.
            settled = all(part.accepted < now - _DAY for part in parts)
            return settled and self._shelf.document(rule.follows, leader) is None
        return False

    def _shed(self, parts: list[Part], view: View, rule: CollectionRule, floor: int, now: float) -> None:
        """Forget the parts of a living document that say nothing any more."""
        contents = {part.key: part.content() for part in parts}
        for part in parts:
            content = contents[part.key]
            writer = (part.key.origin, part.key.incarnation)
            said = said_fields(part, content, rule.live_field)
            wins = {name for name in said if (seen := view.fields.get(name)) is not None and seen.writer == writer}
            others = [contents[other.key] for other in parts if other.key != part.key]
            hides = content.deleted and any(other.after(content.deleted) != other for other in others)
            if not wins and not hides:
                if part.version <= floor and self._is_covered(part, rule):
                    self._remove([part.key])
            elif part.key == self._desk.key(part.key.collection, part.key.doc_id):
                self._shed_own(part, content, wins, bool(hides), rule, floor, now)

    def _shed_own(
        self,
        part: Part,
        content: Content,
        wins: set[str],
        hides: bool,
        rule: CollectionRule,
        floor: int,
        now: float,
    ) -> None:
        fields = {name: value for name, value in content.fields.items() if name in wins or value.stamp > floor}
        deleted = content.deleted if hides or content.deleted > floor else 0
        anchor = content.anchor
        if anchor is not None and rule.live_field not in wins and anchor.stamp <= floor:
            anchor = None
        kept = Content(fields, deleted, anchor)
        if kept != content:
            self._desk.reissue(part.key, kept, now)

    def _is_covered(self, part: Part, rule: CollectionRule) -> bool:
        return self._horizon.cover((part.key.origin, part.key.incarnation), rule.klass) >= part.version

    def _remove(self, keys: Iterable[PartKey]) -> None:
        for key in list(keys):
            self._shelf.stage_removal(key)


def unix_seconds(text: str) -> float:
    """A JSON number that says a Unix time in seconds (or, if it is that large, milliseconds); 0 if it says none."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    if not 0 < value < 1e15:
        return 0.0
    return value / 1000 if value > 1e11 else value
