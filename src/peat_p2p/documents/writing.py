"""This node's own writes.

Owns how a put or a delete becomes a new state of this node's part of the document: only what differs is written,
stamped above everything seen, signed. A heartbeat that only moves the live field shows the next value of its hash
chain and signs nothing. Keeps the rule that a part is begun anew, without what is deleted or grown, by a higher
generation. Must not know about readers, links or the disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from peat_p2p.core.errors import ConflictError, DeniedError, ExhaustedError, InvalidInputError, TooLargeError
from peat_p2p.documents.authority import Authority
from peat_p2p.documents.chain import CHAIN_LENGTH, Chain
from peat_p2p.documents.content import EXISTS, EXISTS_TEXT, Anchor, Content, Value, canonical, encode, extend
from peat_p2p.documents.jsontext import join_object
from peat_p2p.documents.parts import Part
from peat_p2p.documents.rules import BEACONS, is_known_reserved, is_public_name
from peat_p2p.documents.shelf import Shelf
from peat_p2p.documents.stamps import MAX_STAMP, StampClock, stamp_time
from peat_p2p.documents.types import Beat, Limits, PartKey
from peat_p2p.documents.view import Judge, View

BEACON_INTERVAL = 86_400.0
_SECONDS = re.compile(r"[1-9][0-9]{0,11}")


class Desk:
    """Where this node writes."""

    def __init__(
        self,
        shelf: Shelf,
        authority: Authority,
        judge: Judge,
        limits: Limits,
        stamps: StampClock,
        random: Callable[[int], bytes],
        chain_length: int = CHAIN_LENGTH,
    ) -> None:
        self._shelf = shelf
        self._authority = authority
        self._judge = judge
        self._limits = limits
        self._stamps = stamps
        self._random = random
        self._chain_length = chain_length
        self.incarnation = 0

    def key(self, collection: str, doc_id: str) -> PartKey:
        """Our part of a document."""
        return PartKey(collection, doc_id, self._authority.node.endpoint_id, self.incarnation)

    def check_name(self, collection: str, doc_id: str) -> None:
        """Raises InvalidInputError unless the API may write the document."""
        check_collection(collection)
        if not doc_id:
            raise InvalidInputError("a document needs an id; it is empty")
        try:
            size = len(doc_id.encode())
        except UnicodeEncodeError:
            raise InvalidInputError("the document's id holds half of a surrogate pair") from None
        if size > self._limits.doc_id_bytes:
            raise TooLargeError(f"a document's id has at most {self._limits.doc_id_bytes} bytes; this one has {size}")

    def put(self, collection: str, doc_id: str, fields: Mapping[str, str], now: float) -> bool:
        """Stage what of `fields` differs from the document. Returns whether anything did."""
        self.check_name(collection, doc_id)
        live_field = self._shelf.rules.of(collection).live_field
        view = self._shelf.newest_view((collection, doc_id))
        texts = view.texts()
        changed = {name: text for name, text in fields.items() if texts.get(name) != text}
        if not changed:
            if view.fields:
                return False
            changed = {EXISTS: EXISTS_TEXT}
        self._check_size(collection, doc_id, {**texts, **fields})
        key = self.key(collection, doc_id)
        self._check_right(key, view, changed)
        if live_field and live_field in changed and self._heartbeat(key, view, live_field, changed, now):
            return True
        self.write(key, view, changed, now)
        return True

    def delete(self, collection: str, doc_id: str, now: float) -> bool:
        """Stage the deletion of the document. Returns whether there was one."""
        self.check_name(collection, doc_id)
        view = self._shelf.newest_view((collection, doc_id))
        if not view.fields:
            return False
        key = self.key(collection, doc_id)
        weight = self._judge.delete_weight(key.origin, collection, doc_id)
        if any(seen.weight > weight for seen in view.fields.values()):
            raise DeniedError(
                f"{self._authority.node} may not delete {collection}/{doc_id}: others' word counts for more"
            )
        stamp = self._stamps.next(now, view.top)
        self._place(key, Content({}, deleted=stamp), now, anew=True)
        return True

    def write(self, key: PartKey, view: View, changed: Mapping[str, str], now: float) -> None:
        """Stage `changed` as new values of our part `key`."""
        stamp = self._stamps.next(now, view.top)
        content, anew = self._kept(key, view)
        fields = {**content.fields, **{name: Value(stamp, text) for name, text in changed.items()}}
        self._place(key, replace(content, fields=fields), now, anew=anew)

    def put_reserved(self, collection: str, fields: Mapping[str, str], now: float) -> bool:
        """Stage what differs of this node's document in a reserved collection. Returns whether anything did."""
        if not is_known_reserved(collection):
            raise InvalidInputError(f"{collection!r} is not a reserved collection")
        key = self.key(collection, self._authority.node.endpoint_id)
        view = self._shelf.newest_view((key.collection, key.doc_id))
        texts = view.texts()
        changed = {name: text for name, text in fields.items() if texts.get(name) != text}
        if changed:
            self.write(key, view, changed, now)
        return bool(changed)

    def beacons(self, now: float) -> None:
        """Stage today's beacon of every class we write in: all we wrote before is behind it on every link."""
        written = {
            self._shelf.rules.of(part.key.collection).klass
            for part in self._shelf.parts()
            if part.key.origin == self._authority.node.endpoint_id and part.key.incarnation == self.incarnation
        }
        for klass in written:
            key = self.key(f"{BEACONS}{klass}", self._authority.node.endpoint_id)
            part = self._shelf.newest(key)
            if part is None or stamp_time(part.version) < now - BEACON_INTERVAL:
                view = self._shelf.newest_view((key.collection, key.doc_id))
                self.write(key, view, {"at": str(int(now))}, now)

    def reissue(self, key: PartKey, content: Content, now: float) -> None:
        """Stage our part `key` anew with just `content`; without any, forget it."""
        if content.version:
            self._place(key, content, now, anew=True)
        else:
            self._shelf.stage_removal(key)

    def say_again(self, key: PartKey, content: Content, now: float) -> None:
        """Stage our part `key` as new writes of what `content` says and readers see; without any, forget it."""
        live_field = self._shelf.rules.of(key.collection).live_field
        view = self._shelf.newest_view((key.collection, key.doc_id))
        fields = dict(content.fields)
        part = self._shelf.newest(key)
        if live_field and content.anchor is not None and part is not None:
            fields[live_field] = content.anchor.value_at(part.beat.position if part.beat else 0)
        seen = {name: value.text for name, value in fields.items() if _sees(view, name, value)}
        if seen:
            stamp = self._stamps.next(now, view.top)
            self._place(key, Content({name: Value(stamp, text) for name, text in seen.items()}), now, anew=True)
        else:
            self._shelf.stage_removal(key)

    def _heartbeat(self, key: PartKey, view: View, live_field: str, changed: dict[str, str], now: float) -> bool:
        """Stage a new value of the live field by proof of life. False: it has to be written like any other."""
        text = changed[live_field]
        if not _SECONDS.fullmatch(text):
            return False
        rest = {name: value for name, value in changed.items() if name != live_field}
        content, anew = self._kept(key, view)
        part = self._shelf.newest(key)
        chain = self._shelf.chain(key)
        anchor = content.anchor
        if part is not None and chain is not None and anchor is not None and anchor.end == chain.end:
            position = int(text) - anchor.base
            shown = part.beat.position if part.beat else 0
            seen = view.fields.get(live_field)
            ours = seen is not None and seen.value == anchor.value_at(shown)
            if ours and shown < position <= anchor.length:
                beat = Beat(position, chain.preimage(position))
                if rest:
                    self.write(key, view, rest, now)
                    part = self._shelf.newest(key)
                    assert part is not None
                    self._shelf.stage(replace(part, beat=beat))
                else:
                    self._shelf.stage(replace(part, beat=beat, seq=self._shelf.next_seq(), accepted=int(now), peers=()))
                return True
        stamp = self._stamps.next(now, view.top)
        chain = Chain(self._random(16), self._chain_length)
        fields = {name: value for name, value in content.fields.items() if name != live_field}
        # A part without the field it had is another map, so it begins anew.
        anew = anew or len(fields) != len(content.fields)
        fields |= {name: Value(stamp, value) for name, value in rest.items()}
        self._shelf.staged.chains[key] = chain
        self._place(
            key, Content(fields, content.deleted, Anchor(stamp, chain.end, int(text), chain.length)), now, anew=anew
        )
        return True

    def _kept(self, key: PartKey, view: View) -> tuple[Content, bool]:
        """What our part says and still counts, and whether that means to begin it anew."""
        part = self._shelf.newest(key)
        if part is None:
            return Content({}), True
        content = part.content()
        live_field = self._shelf.rules.of(key.collection).live_field
        target = self._target(key.collection, view)
        kept = content.without(
            lambda name, stamp: view.hides(self._weight(key, name, target), stamp),
            live_field,
        )
        # pycrdt keeps some bytes of every value overwritten out of order; begin anew before that weighs.
        size = sum(len(name) + len(value.text) + 40 for name, value in content.fields.items())
        return kept, kept != content or len(part.state) > size + size // 4 + 256

    def _place(self, key: PartKey, content: Content, now: float, *, anew: bool) -> None:
        part = self._shelf.newest(key)
        seq = self._shelf.next_seq()
        if part is None or anew:
            form = encode(content)
            generation = max(content.version, part.generation + 1 if part else 0)
            marks: tuple[tuple[int, int], ...] = ()
        else:
            form = extend(part.state, part.content(), content)
            generation = part.generation
            marks = part.older_marks()
        beat = None
        if part is not None and part.beat is not None and content.anchor is not None:
            old = part.content().anchor
            beat = part.beat if old is not None and old.end == content.anchor.end else None
        signature = self._authority.sign(canonical(key, generation, content))
        self._shelf.stage(
            Part(
                key=key,
                generation=generation,
                version=content.version,
                count=form.count,
                state=form.state,
                signature=signature,
                beat=beat,
                seq=seq,
                content_seq=seq,
                accepted=int(now),
                marks=marks,
            )
        )

    def _weight(self, key: PartKey, name: str, target: str) -> int:
        return self._judge.weight(key.origin, key.collection, key.doc_id, name, target)

    def _target(self, collection: str, view: View) -> str:
        seen = view.fields.get(self._judge.target_field(collection))
        return seen.value.text if seen is not None else ""

    def _check_right(self, key: PartKey, view: View, changed: Mapping[str, str]) -> None:
        """Raises DeniedError for a write that nobody would see."""
        target = changed.get(self._judge.target_field(key.collection), self._target(key.collection, view))
        for name in changed:
            weight = self._weight(key, name, target)
            seen = view.fields.get(name)
            if not weight or (seen is not None and seen.weight > weight):
                raise DeniedError(
                    f"{self._authority.node} may not write {name!r} of {key.collection}/{key.doc_id}:"
                    " another node's word counts for more there"
                )
            if seen is not None and seen.weight == weight and seen.value.stamp >= MAX_STAMP:
                raise ConflictError(
                    f"{name!r} of {key.collection}/{key.doc_id} was written as of the end of time by {seen.writer[0]}:"
                    " only a node whose word counts for more can change it"
                )

    def _check_size(self, collection: str, doc_id: str, texts: Mapping[str, str]) -> None:
        if len(texts) > self._limits.fields:
            raise TooLargeError(
                f"{collection}/{doc_id} would have {len(texts)} fields; {self._limits.fields} are allowed"
            )
        mine, allowed = (
            self._shelf.bytes_of.get(self._authority.node.endpoint_id, 0),
            self._limits.of(self._authority.node),
        )
        if mine > allowed:
            raise ExhaustedError(f"the documents this node wrote have {mine} bytes; {allowed} are allowed: delete some")
        size = len(join_object(texts).encode())
        if size > self._limits.document_bytes:
            raise TooLargeError(
                f"{collection}/{doc_id} would have {size} bytes; a document has at most {self._limits.document_bytes}"
                " (setting document_bytes)"
            )


def _sees(view: View, name: str, value: Value) -> bool:
    seen = view.fields.get(name)
    return seen is not None and seen.value == value


def check_collection(collection: str) -> None:
    """Raises InvalidInputError unless the API may name the collection."""
    if not is_public_name(collection):
        raise InvalidInputError(
            f"collection {collection[:140]!r} is not allowed: letters, digits, '.', '_' and '-', at most 128,"
            " the first a letter or digit"
        )
