"""What the sidecar should hold about this agent, against what it does hold.

Owns the rule of reporting: the difference between the two is written, nothing else, and nothing is queued. An entry
that changes while it waits is simply newer when its turn comes. When the sidecar goes away, what it holds becomes
unknown; when it is back and its snapshot has been read, the difference says what it lost. So a push in full, a push of
one field and a repair after the sidecar lost its data are the same thing. Synchronous; knows no transport and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from peat_p2p.fleet.ids import COMMANDS, DEPLOYMENTS, MANIFESTS, PACKAGES, PLATFORMS, RECEIPTS

Fields: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """The name of one document."""

    collection: str
    doc_id: str


@dataclass(frozen=True, slots=True)
class Put:
    """Effect: merge `fields` into the document."""

    key: Key
    fields: Fields


@dataclass(frozen=True, slots=True)
class Delete:
    """Effect: delete the document."""

    key: Key


Write: TypeAlias = Put | Delete


@dataclass(frozen=True, slots=True)
class _Wanted:
    fields: Fields
    only_if_exists: bool


# The order in which things are told after a long silence: what was ordered, who is alive, what is had.
_URGENCY = {RECEIPTS: 0, COMMANDS: 0, PLATFORMS: 1, DEPLOYMENTS: 2, MANIFESTS: 3, PACKAGES: 4}
_LEAST_URGENT = 5


# Where an operator's word stands beside the agent's: it is not fought over.
_SHARED = (PLATFORMS, COMMANDS)


def _urgency(key: Key) -> int:
    return _URGENCY.get(key.collection, _LEAST_URGENT)


class ReportBook:
    """The two sides of the comparison and the set of documents in which they differ."""

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        self._wanted: dict[Key, _Wanted] = {}
        self._held: dict[Key, Fields] = {}  # what the sidecar holds, of the documents that are ours to write
        self._said: dict[Key, dict[str, Any]] = {}  # what was last written, where others may write too
        self._removed: set[Key] = set()  # receipts to take back; unlike holdings they outlive what is known here
        # By urgency, as ordered sets: with ten thousand documents due, nothing may sort or scan them all.
        self._dirty: list[dict[Key, None]] = [{} for _ in range(_LEAST_URGENT + 1)]
        self._in_flight: dict[Key, Write] = {}
        self._synced = False

    @property
    def synced(self) -> bool:
        """Whether what the sidecar holds is known."""
        return self._synced

    def want(self, key: Key, fields: Fields, *, only_if_exists: bool = False) -> None:
        """The document shall have these fields. With `only_if_exists`, only while somebody else's document is there."""
        self._removed.discard(key)
        entry = _Wanted(dict(fields), only_if_exists)
        if self._wanted.get(key) != entry:
            self._wanted[key] = entry
            self._mark(key)

    def unwant(self, key: Key) -> None:
        """Nothing is wanted of the document any more; if it is one of this agent's own it shall go away."""
        if self._wanted.pop(key, None) is not None or self.is_own(key):
            if key.collection == RECEIPTS and self.is_own(key):
                self._removed.add(key)
            self._mark(key)

    def wanted(self, collection: str) -> list[str]:
        """The ids of the documents wanted in a collection."""
        return [key.doc_id for key in self._wanted if key.collection == collection]

    def is_own(self, key: Key) -> bool:
        """Whether this agent alone writes the document, and so may delete it."""
        if key.collection in (PACKAGES, DEPLOYMENTS):
            return key.doc_id.startswith(f"{self.agent_id}:")
        return key.collection == RECEIPTS and key.doc_id.endswith(f":{self.agent_id}")

    def saw(self, key: Key, fields: Fields | None) -> None:
        """The sidecar says what it holds: its fields, or None when the document is not there."""
        if fields is None:
            self._held.pop(key, None)
        elif key in self._wanted or self.is_own(key) or key.collection in (COMMANDS, MANIFESTS):
            self._held[key] = fields
        else:
            return
        self._mark(key)

    def lost(self) -> None:
        """The sidecar went away: what it holds is unknown, and what it holds when it is back may be anything."""
        self._held.clear()
        self._in_flight.clear()
        for keys in self._dirty:
            keys.clear()
        for key in self._wanted:
            if key.collection == PLATFORMS:
                self._mark(key)
        self._synced = False

    def snapshot_complete(self) -> None:
        """Every document the sidecar held when it was last found has been shown by `saw`."""
        self._synced = True
        for key in (*self._wanted, *self._held):
            self._mark(key)

    def take(self, limit: int) -> list[Write]:
        """Up to `limit` writes that are due now, most urgent first. Each must be answered by `wrote` or `failed`.

        Before the snapshot is complete only the heartbeat goes out, whole: being seen alive does not wait.
        """
        writes: list[Write] = []
        for urgency, keys in enumerate(self._dirty):
            if not self._synced and urgency != _URGENCY[PLATFORMS]:
                continue
            while keys and len(writes) < limit:
                key, _ = keys.popitem()
                write = self._difference(key)
                if write is not None:
                    writes.append(write)
                    self._in_flight[key] = write
        return writes

    def wrote(self, write: Write) -> None:
        """The sidecar has accepted `write`."""
        key = write.key
        if key not in self._in_flight:
            return  # the sidecar was lost since: whether it kept this is no longer known
        del self._in_flight[key]
        if isinstance(write, Delete):
            self._held.pop(key, None)
            self._removed.discard(key)
        else:
            self._held[key] = {**self._held.get(key, {}), **write.fields}
            if key.collection in _SHARED:
                self._said.setdefault(key, {}).update(write.fields)
        # It may have changed again meanwhile; `take` finds out.
        self._mark(key)

    def failed(self, write: Write) -> None:
        """The sidecar did not take `write`; it stays due, in the form it will have by then."""
        if self._in_flight.pop(write.key, None) is not None:
            self._mark(write.key)

    def settled(self, key: Key) -> bool:
        """Whether the sidecar is known to hold what is wanted of the document."""
        return self._synced and key not in self._dirty[_urgency(key)] and key not in self._in_flight

    def refused(self, write: Write) -> None:
        """The sidecar will never take `write` as it is: it is not offered again until what is wanted changes."""
        if self._in_flight.pop(write.key, None) is not None and self._difference(write.key) != write:
            self._mark(write.key)

    def _mark(self, key: Key) -> None:
        """The two sides may differ in this document. What is in flight is looked at again when it is answered."""
        if key not in self._in_flight:
            self._dirty[_urgency(key)][key] = None

    def _difference(self, key: Key) -> Write | None:
        wanted, held = self._wanted.get(key), self._held.get(key)
        if wanted is None:
            unfounded = key in self._removed if key.collection == RECEIPTS else self.is_own(key)
            return Delete(key) if held is not None and unfounded else None
        if held is None:
            return None if wanted.only_if_exists else Put(key, wanted.fields)
        said = self._said.get(key, {})
        changed = {
            name: value
            for name, value in wanted.fields.items()
            # What was said once and reads otherwise now was changed by somebody who spoke later: it is left alone.
            if name not in held or (held[name] != value and (name not in said or said[name] != value))
        }
        return Put(key, changed) if changed else None


def next_beat(now: float, interval: float, jitter: float, chance: float) -> float:
    """When the next heartbeat is due: `interval` from `now`, moved by up to `jitter` of it. `chance` is in [0, 1).

    Agents that start together would otherwise beat together for ever.
    """
    return now + interval * (1 + jitter * (2 * chance - 1))
