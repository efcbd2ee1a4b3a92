"""What readers see: the parts of a document merged.

Owns the merge: the highest deletion stamp hides every field stamped up to it, and of each field the value with the
highest (stamp, writer) is seen. Keeps the rule that the result depends on the set of parts alone, never on the order
they came in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from peat_p2p.documents.content import EXISTS, Content, Value
from peat_p2p.documents.jsontext import join_object
from peat_p2p.documents.parts import Part
from peat_p2p.documents.types import Document

Writer = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Seen:
    """A field's value and who wrote it."""

    value: Value
    writer: Writer


@dataclass(frozen=True, slots=True)
class View:
    """A document as its parts say. `deleted` is the highest deletion stamp, `top` the highest stamp of any kind."""

    fields: dict[str, Seen]
    deleted: int
    top: int

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


def merge(parts: Iterable[Part], live_field: str) -> View:
    """The document that `parts` make."""
    said: list[tuple[Writer, dict[str, Value]]] = []
    deleted = top = 0
    for part in parts:
        content = part.content()
        fields = said_fields(part, content, live_field)
        said.append(((part.key.origin, part.key.incarnation), fields))
        deleted = max(deleted, content.deleted)
        top = max(top, part.version, max((value.stamp for value in fields.values()), default=0))
    seen: dict[str, Seen] = {}
    for writer, fields in said:
        for name, value in fields.items():
            if value.stamp <= deleted:
                continue
            other = seen.get(name)
            if other is None or (value.stamp, writer) > (other.value.stamp, other.writer):
                seen[name] = Seen(value, writer)
    return View(seen, deleted, top)


def document_of(collection: str, doc_id: str, parts: Iterable[Part], live_field: str) -> Document | None:
    """The document readers get; None when there is none (any more)."""
    view = merge(parts, live_field)
    if not view.fields:
        return None
    return Document(collection, doc_id, join_object(view.texts()), view.version)
