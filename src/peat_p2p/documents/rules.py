"""What is particular to a collection.

Owns the rules: a collection's priority class, how long its documents live, which field is proved by heartbeats. Must
not know what the documents mean otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

CLASSES = 4
DEFAULT_CLASS = 1
CERTIFICATES = "_certificates"
BEACONS = "_beacon."
SIDECARS = "_sidecars"
REVOCATIONS = "revocations"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class CollectionRule:
    """How documents of one collection are treated.

    `klass`: priority on a link, 0 first. `ttl`: a document nobody wrote for so many seconds is gone everywhere.
    `expiry_field`: a Unix time in the document; the horizon later it is gone. `live_field`: the Unix
    time that a heartbeat moves and a hash chain proves. `follows`: the document lives as long as the one of that
    collection whose id is this id up to the first colon.
    """

    klass: int = DEFAULT_CLASS
    ttl: float | None = None
    expiry_field: str = ""
    live_field: str = ""
    follows: str = ""


_RULES = {
    "commands": CollectionRule(klass=0, ttl=90 * _DAY, expiry_field="expires_at"),
    "receipts": CollectionRule(klass=0, ttl=90 * _DAY),
    REVOCATIONS: CollectionRule(klass=0),
    "rollouts": CollectionRule(klass=0),
    "manifests": CollectionRule(klass=0),
    CERTIFICATES: CollectionRule(klass=0),
    SIDECARS: CollectionRule(klass=1),
    "deployments": CollectionRule(klass=1, follows="platforms"),
    "packages": CollectionRule(klass=2, follows="platforms"),
    "platforms": CollectionRule(klass=3, ttl=30 * _DAY, live_field="last_seen"),
    "cells": CollectionRule(klass=3, ttl=30 * _DAY),
    "tracks": CollectionRule(klass=3, ttl=30 * _DAY),
}
_OTHER = CollectionRule()
_RESERVED = {CERTIFICATES, SIDECARS, *(f"{BEACONS}{klass}" for klass in range(CLASSES))}


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of every collection, and the horizon: how long what was deleted is remembered."""

    horizon: float = 7 * _DAY
    by_collection: dict[str, CollectionRule] = field(default_factory=lambda: dict(_RULES))

    def of(self, collection: str) -> CollectionRule:
        """The rule of a collection; collections nobody named share one."""
        rule = self.by_collection.get(collection)
        if rule is None and collection.startswith(BEACONS):
            klass = collection.removeprefix(BEACONS)
            if klass in {"0", "1", "2", "3"}:
                rule = CollectionRule(klass=int(klass))
        return rule or _OTHER


def is_public_name(collection: str) -> bool:
    """Whether the API may name the collection."""
    return len(collection) <= 128 and _NAME.fullmatch(collection) is not None


def is_reserved(collection: str) -> bool:
    """Whether the collection is the room's own and hidden from the API."""
    return collection.startswith("_")


def is_known_reserved(collection: str) -> bool:
    """Whether the collection is one of the room's own that exist."""
    return collection in (CERTIFICATES, SIDECARS) or (
        collection.startswith(BEACONS) and collection[len(BEACONS) :] in set("0123")
    )
