"""What agents have and run: holdings, deployments, and the announcement of manifests.

Owns the keys of `packages/…`, `deployments/…` and `manifests/…`. An announced manifest is only a claim here: its
envelope is verified by whoever acts on it (`content.manifest`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from peat_p2p.fleet.fields import NOTHING, Fields, parse, table, text, texts_by_name, whole
from peat_p2p.fleet.ids import deployment_id, holding_id, manifest_digest, manifest_id, reference_of, split_agent_id


class PullStatus(IntEnum):
    """How far an agent is with a package, as the wire numbers it."""

    UNSPECIFIED = 0
    QUEUED = 1
    PULLING = 2
    COMPLETE = 3
    FAILED = 4


_COMPLETE = int(PullStatus.COMPLETE)  # asked for every holding of a fleet: an enum's member costs ten times as much


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What an agent has of one package. `manifest` is empty if the package cannot be fetched by its digest.

    `waiting` says why the agent is not getting on with it; empty when it is, and for a package that is complete.
    """

    agent_id: str
    package: str
    version: str = ""
    arch: str = ""
    reference: str = ""
    registry: str = ""
    total_bytes: int = 0
    held_bytes: int = 0
    pull_status: int = PullStatus.UNSPECIFIED
    manifest: str = ""
    waiting: str = ""
    last_seen: int = 0

    @property
    def doc_id(self) -> str:
        """The document's id in `packages`."""
        return holding_id(self.agent_id, self.reference or reference_of(self.package, self.version), self.arch)

    @property
    def complete(self) -> bool:
        """Whether the agent has all of it."""
        return self.pull_status == _COMPLETE

    @property
    def completeness(self) -> float:
        """How much of it the agent has, from 0 to 1."""
        if self.complete:
            return 1.0
        return min(1.0, max(0.0, self.held_bytes / self.total_bytes)) if self.total_bytes > 0 else 0.0

    @classmethod
    def from_document(cls, doc_id: str, document: Fields | str) -> Holding:
        """Read `packages/{doc_id}`. Never fails; the agent is the one the id names."""
        fields = parse(document)
        agent_id, rest = split_agent_id(doc_id)
        arch = text(fields, "arch")
        reference = text(fields, "reference") or (rest.removesuffix(f"-{arch}") if arch else rest)
        name, _, version = reference.rpartition(":")
        return cls(
            agent_id=agent_id,
            package=text(fields, "package") or name or reference,
            version=text(fields, "version") or version,
            arch=arch,
            reference=reference,
            registry=text(fields, "registry"),
            total_bytes=max(0, whole(fields, "total_bytes")),
            held_bytes=max(0, whole(fields, "held_bytes")),
            pull_status=whole(fields, "pull_status"),
            manifest=text(fields, "manifest"),
            waiting=text(fields, "waiting") if whole(fields, "pull_status") != _COMPLETE else "",
            last_seen=whole(fields, "last_seen"),
        )

    def to_fields(self) -> dict[str, object]:
        """The document's fields."""
        return {
            "agent_id": self.agent_id,
            "registry": self.registry,
            "package": self.package,
            "reference": self.reference or reference_of(self.package, self.version),
            "arch": self.arch,
            "version": self.version,
            "total_bytes": self.total_bytes,
            "held_bytes": self.held_bytes,
            "pull_status": int(self.pull_status),
            "manifest": self.manifest,
            # Most holdings are complete, and a fleet has many: they do without.
            **({} if self.complete else {"waiting": self.waiting}),
            "last_seen": self.last_seen,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What an agent runs of one package. `status` is what the agent's tool calls it: a text or a number."""

    agent_id: str
    package: str
    version: str = ""
    status: str | int = ""
    flavor: str = ""
    namespace_override: str = ""
    annotations: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    last_seen: int = 0
    digest: str = ""
    path: str = ""

    @property
    def doc_id(self) -> str:
        """The document's id in `deployments`."""
        return deployment_id(self.agent_id, self.package)

    @classmethod
    def from_document(cls, doc_id: str, document: Fields | str) -> Deployment:
        """Read `deployments/{doc_id}`. Never fails; agent and package are those the id names."""
        fields = parse(document)
        agent_id, package = split_agent_id(doc_id)
        status = fields.get("status")
        return cls(
            agent_id=agent_id,
            package=package or text(fields, "package"),
            version=text(fields, "version"),
            status=status if isinstance(status, str) else whole(fields, "status") if "status" in fields else "",
            flavor=text(fields, "flavor"),
            namespace_override=text(fields, "namespace_override"),
            annotations=texts_by_name(fields, "annotations"),
            last_seen=whole(fields, "last_seen"),
            digest=text(fields, "digest"),
            path=text(fields, "path"),
        )

    def to_fields(self) -> dict[str, object]:
        """The document's fields."""
        return {
            "agent_id": self.agent_id,
            "package": self.package,
            "version": self.version,
            "status": self.status,
            "flavor": self.flavor,
            "namespace_override": self.namespace_override,
            "annotations": dict(self.annotations),
            "last_seen": self.last_seen,
            "digest": self.digest,
            "path": self.path,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A manifest that somebody put into the mesh: what it claims to be, and the signed envelope that proves it."""

    manifest: str
    name: str = ""
    version: str = ""
    arch: str = ""
    digest: str = ""
    envelope: Fields = field(default_factory=dict)

    @property
    def doc_id(self) -> str:
        """The document's id in `manifests`."""
        return manifest_id(self.manifest)

    @classmethod
    def from_document(cls, doc_id: str, document: Fields | str) -> Announcement:
        """Read `manifests/{doc_id}`. Never fails, and proves nothing."""
        fields = parse(document)
        return cls(
            manifest=manifest_digest(doc_id),
            name=text(fields, "name"),
            version=text(fields, "version"),
            arch=text(fields, "arch"),
            digest=text(fields, "digest"),
            envelope=table(fields, "envelope"),
        )

    def to_fields(self) -> dict[str, object]:
        """The document's fields."""
        return {
            "name": self.name,
            "version": self.version,
            "arch": self.arch,
            "digest": self.digest,
            "envelope": dict(self.envelope),
        }
