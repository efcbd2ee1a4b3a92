"""What of the fleet's documents is worth the hub's memory.

Owns the difference between what was remembered and what is seen: heartbeats that say nothing new leave no trace, a
changed field leaves the old and the new value. Synchronous; what to write comes out as values. Must not know SQLite nor
the sidecar.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from peat_p2p.fleet.ids import COMMANDS, DEPLOYMENTS, PLATFORMS, RECEIPTS, REVOCATIONS

TRACKED = (PLATFORMS, DEPLOYMENTS, COMMANDS, RECEIPTS, REVOCATIONS)
# They change with every heartbeat and say nothing else.
_VOLATILE = frozenset({"last_seen"})
# Kept with the document, but not repeated in its events: it is long and says nothing to a person.
_SILENT = frozenset({"envelope"})

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of the history, and what is to be remembered of the document since: None if it is gone.

    `kind` is "appeared", "changed" or "gone"; `detail` is the fields of one that appeared, and for changed ones each
    field's old and new value.
    """

    at: float
    kind: str
    collection: str
    doc_id: str
    detail: Mapping[str, Any]
    remember: Mapping[str, Any] | None


class Observer:
    """Documents in, entries out. `known` is what was remembered of the documents that were there last."""

    def __init__(self, known: Iterable[tuple[str, str, Fields]] = ()) -> None:
        self._known: dict[tuple[str, str], Fields] = {(c, d): fields for c, d, fields in known}
        self._unconfirmed: set[tuple[str, str]] = set(self._known)

    def snapshot_begins(self) -> None:
        """All documents will be told anew; those that are not are gone."""
        self._unconfirmed = set(self._known)

    def snapshot_complete(self, at: float) -> list[Entry]:
        """All documents were told."""
        gone = sorted(self._unconfirmed)
        self._unconfirmed = set()
        return [entry for collection, doc_id in gone for entry in self.saw(collection, doc_id, None, at)]

    def saw(self, collection: str, doc_id: str, document: Mapping[str, Any] | None, at: float) -> list[Entry]:
        """The document is now this, or None for gone."""
        if collection not in TRACKED:
            return []
        key = (collection, doc_id)
        self._unconfirmed.discard(key)
        before = self._known.get(key)
        if document is None:
            if before is None:
                return []
            del self._known[key]
            return [Entry(at, "gone", collection, doc_id, {}, None)]
        fields = {name: value for name, value in document.items() if name not in _VOLATILE}
        if fields == before:
            return []
        self._known[key] = fields
        if before is None:
            return [Entry(at, "appeared", collection, doc_id, _telling(fields), fields)]
        names = sorted(n for n in before.keys() | fields.keys() if before.get(n) != fields.get(n))
        changes = {name: [before.get(name), fields.get(name)] for name in names if name not in _SILENT}
        return [Entry(at, "changed", collection, doc_id, changes, fields)]


def _telling(fields: Fields) -> Fields:
    return {name: value for name, value in fields.items() if name not in _SILENT and value not in ("", [], {}, None)}
