"""What readers see: the parts of a document merged.

Owns the merge: of each field the value with the highest (weight, stamp, writer) is seen, unless a deletion of at
least its weight has a stamp that is not below its own. The weight is what the writer's word counts for on that field,
as the judge says. Keeps the rule that the result depends on the parts and the judge alone, never on the order in
which parts came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from peat_p2p.documents.content import EXISTS, Content, Value
from peat_p2p.documents.jsontext import join_object
from peat_p2p.documents.parts import Part
from peat_p2p.documents.types import Document
from peat_p2p.trust.identity import Identity

Writer = tuple[str, int]
DocKey = tuple[str, str]


class Judge(Protocol):
    """Says what a writer's word counts for."""

    identity_of: Callable[[str], Identity | None]

    def learn(self, identity: Identity) -> frozenset[str]:
        """Take note of a certificate. Returns the owners whose documents must be merged anew."""
        ...

    def owner(self, collection: str, doc_id: str) -> str:
        """Whose document it is; empty if nobody's in particular."""
        ...

    def revise(self, revocations: Mapping[str, str]) -> frozenset[str]:
        """Take note of the documents (JSON by id) of `revocations`. Returns the origins whose word counts otherwise
        now."""
        ...

    def weight(self, origin: str, collection: str, doc_id: str, field: str, target: str) -> int:
        """On one field; 0: it is not seen. `target` is the text of the document's target field, if it has one.

        Only in collections that have a target field may it depend on the field.
        """
        ...

    def delete_weight(self, origin: str, collection: str, doc_id: str) -> int:
        """As a deletion: it takes away what does not weigh more; 0: it does nothing."""
        ...

    def target_field(self, collection: str) -> str:
        """The field whose value weights depend on; empty for most collections."""
        ...


class EqualJudge:
    """Everybody's word counts the same."""

    def __init__(self) -> None:
        self.identity_of: Callable[[str], Identity | None] = lambda origin: None

    def learn(self, identity: Identity) -> frozenset[str]:
        """Nothing changes."""
        return frozenset()

    def owner(self, collection: str, doc_id: str) -> str:
        """Nobody's."""
        return ""

    def revise(self, revocations: Mapping[str, str]) -> frozenset[str]:
        """Nothing changes."""
        return frozenset()

    def weight(self, origin: str, collection: str, doc_id: str, field: str, target: str) -> int:
        """One, always."""
        return 1

    def delete_weight(self, origin: str, collection: str, doc_id: str) -> int:
        """One, always."""
        return 1

    def target_field(self, collection: str) -> str:
        """None."""
        return ""


class Seen(NamedTuple):
    """A field's value, who wrote it and what that counts for."""

    value: Value
    writer: Writer
    weight: int = 1


@dataclass(frozen=True, slots=True)
class View:
    """A document as its parts say. `deletions` are (weight, stamp) of deletions, `top` the highest stamp of any
    kind."""

    fields: dict[str, Seen]
    deletions: tuple[tuple[int, int], ...]
    top: int

    def hides(self, weight: int, stamp: int) -> bool:
        """Whether a value of that weight and stamp is deleted."""
        return any(weight <= by and stamp <= up_to for by, up_to in self.deletions)

    @property
    def version(self) -> int:
        """The stamp of the newest field that is seen."""
        return max((seen.value.stamp for seen in self.fields.values()), default=0)

    def texts(self) -> dict[str, str]:
        """The fields' JSON text."""
        return {name: seen.value.text for name, seen in self.fields.items() if name != EXISTS}


def said_fields(part: Part, content: Content, live_field: str) -> dict[str, Value]:
    """The fields a part says, the one that heartbeats move included."""
    fields = content.fields
    if content.anchor is not None and live_field:
        live = content.anchor.value_at(part.beat.position if part.beat else 0)
        plain = fields.get(live_field)
        if plain is None or plain.stamp < live.stamp:
            fields = {**fields, live_field: live}
    return fields


def merge(doc: DocKey, parts: Iterable[Part], live_field: str, judge: Judge) -> View:
    """The document that `parts` make."""
    said: list[tuple[Writer, dict[str, Value]]] = []
    deletions: list[tuple[int, int]] = []
    top = 0
    for part in parts:
        content = part.content()
        fields = said_fields(part, content, live_field)
        said.append(((part.key.origin, part.key.incarnation), fields))
        if content.deleted and (weight := judge.delete_weight(part.key.origin, *doc)):
            deletions.append((weight, content.deleted))
        top = max(top, part.version)
        if fields is not content.fields:
            top = max(top, fields[live_field].stamp)
    view = View({}, tuple(deletions), top)
    first = judge.target_field(doc[0])
    if not first:
        for writer, fields in said:
            if weight := judge.weight(writer[0], *doc, "", ""):
                _show(view, fields.items(), writer, weight)
        return view
    for writer, fields in said:
        if first in fields and (weight := judge.weight(writer[0], *doc, first, "")):
            _show(view, ((first, fields[first]),), writer, weight)
    target = view.fields[first].value.text if first in view.fields else ""
    for writer, fields in said:
        for name, value in fields.items():
            if name != first and (weight := judge.weight(writer[0], *doc, name, target)):
                _show(view, ((name, value),), writer, weight)
    return view


def _show(view: View, fields: Iterable[tuple[str, Value]], writer: Writer, weight: int) -> None:
    """Let each value be seen that counts for more than the one seen so far."""
    shown = view.fields
    if not shown and not view.deletions:
        shown.update((name, Seen(value, writer, weight)) for name, value in fields)
        return
    for name, value in fields:
        if view.deletions and view.hides(weight, value.stamp):
            continue
        other = shown.get(name)
        if other is None or (weight, value.stamp, writer) > (other.weight, other.value.stamp, other.writer):
            shown[name] = Seen(value, writer, weight)


def document_of(doc: DocKey, view: View) -> Document | None:
    """The document readers get; None when there is none (any more)."""
    if not view.fields:
        return None
    return Document(*doc, join_object(view.texts()), view.version)
