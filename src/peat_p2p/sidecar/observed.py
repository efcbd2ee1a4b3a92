"""What a polled agent says of itself, as documents.

Owns reading the agent's HTTP face and working out which documents differ. Pure. Tolerant: a 64-bit number may come as a
number or as a string, an empty list may be left out, a field of the wrong kind is its default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.fleet.fields import Fields, table, text, texts_by_name, whole
from peat_p2p.fleet.heartbeat import PLATFORM_TYPE
from peat_p2p.fleet.holdings import Deployment, Holding

LAST_SEEN = "last_seen"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do to one collection. `writes` are whole documents by id."""

    writes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    deletes: tuple[str, ...] = ()


def heartbeat(agent_id: str, status: object, now: int) -> dict[str, object]:
    """The keys of `platforms/{agent_id}` that `GET /status` tells. Raises InvalidInputError."""
    fields = _object(status, "/status")
    return {
        "agent_id": agent_id,
        "platform_type": PLATFORM_TYPE,
        "version": text(fields, "version"),
        "architecture": text(fields, "architecture"),
        "classification": text(fields, "classification"),
        "k8s_version": text(fields, "k8sVersion"),
        "k8s_node_status": text(fields, "k8sNodeStatus"),
        "zarf_version": text(fields, "zarfVersion"),
        "run_mode": text(fields, "runMode"),
        LAST_SEEN: now,
    }


def deployments(agent_id: str, listed: object, now: int) -> dict[str, dict[str, object]]:
    """The documents of `deployments` that ListPackages tells. Raises InvalidInputError."""
    found: dict[str, dict[str, object]] = {}
    for package in _objects(_object(listed, "ListPackages"), "packages"):
        name = text(package, "name")
        if not name:
            continue
        status = package.get("status")
        deployment = Deployment(
            agent_id=agent_id,
            package=name,
            version=text(package, "version"),
            status=status if isinstance(status, str) and not status.isdigit() else _number(package, "status"),
            flavor=text(package, "flavor"),
            namespace_override=text(package, "namespaceOverride"),
            annotations=texts_by_name(package, "annotations"),
            last_seen=now,
        )
        fields = deployment.to_fields()
        # An agent of this kind does not know these; writing them would hide what another writer says.
        del fields["digest"], fields["path"]
        found[deployment.doc_id] = fields
    return found


def holdings(agent_id: str, listed: object, now: int) -> dict[str, dict[str, object]]:
    """The documents of `packages` that ListPulledPackages tells. Raises InvalidInputError."""
    found: dict[str, dict[str, object]] = {}
    for registry in _objects(_object(listed, "ListPulledPackages"), "registries"):
        for package in _objects(registry, "packages"):
            for tag in _objects(package, "tags"):
                if not text(tag, "reference"):
                    continue
                pull = table(tag, "pullInfo")
                holding = Holding(
                    agent_id=agent_id,
                    package=text(package, "packageName") or text(package, "repoName"),
                    version=text(tag, "version"),
                    arch=text(tag, "arch"),
                    reference=text(tag, "reference"),
                    registry=text(registry, "name") or text(registry, "host"),
                    total_bytes=_number(tag, "totalBytes"),
                    held_bytes=_number(pull, "downloadedBytes"),
                    pull_status=_number(pull, "status"),
                    last_seen=now,
                )
                fields = holding.to_fields()
                del fields["manifest"]
                found[holding.doc_id] = fields
    return found


def plan(present: Mapping[str, Fields], observed: Mapping[str, Mapping[str, object]]) -> Plan:
    """How to get from the documents that are there to those observed.

    What differs in its time alone is not written again: a fleet of ten thousand holdings must not be told every ten
    seconds that nothing happened.
    """
    writes = {}
    for doc_id, fields in observed.items():
        before = present.get(doc_id)
        if before is None or any(before.get(k) != v for k, v in fields.items() if k != LAST_SEEN):
            writes[doc_id] = fields
    return Plan(writes, tuple(sorted(present.keys() - observed.keys())))


def _object(value: object, call: str) -> Fields:
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{call} answered with something that is no JSON object")
    return value


def _objects(fields: Fields, key: str) -> Iterator[Fields]:
    value = fields.get(key)
    if value is not None and not isinstance(value, list):
        raise InvalidInputError(f"{key!r} in the agent's answer is no list")
    return (item for item in value or () if isinstance(item, Mapping))


def _number(fields: Fields, key: str) -> int:
    value = fields.get(key)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return whole(fields, key)
