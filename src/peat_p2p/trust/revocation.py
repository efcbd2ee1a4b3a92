"""Revocations: what the formation no longer trusts before its time is over.

Owns the signed document that takes trust away from a node (by endpoint id) or a package (by its manifest's digest), who
may make one, and the set that answers. Keeps two rules: a revocation counts for as long as its document is there, also
after its signer's certificate expired; and one made by a node that was itself revoked before does not count. Pure.
Must not know how documents travel nor what is done about a revoked peer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from peat_p2p.core.errors import InvalidInputError, UntrustedError
from peat_p2p.trust.anchor import TrustAnchor
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.dsse import read_unproved, seal, unseal
from peat_p2p.trust.errors import BadSignatureError, MalformedError, MissingRoleError, RevokedError
from peat_p2p.trust.identity import Identity, Role

PAYLOAD_TYPE = "application/vnd.peat.revocation+json"
REVOKING_ROLES = frozenset({Role.OPERATOR, Role.HUB})
MAX_REASON = 512
_HEX = re.compile(r"[0-9a-f]{64}")
_MOST = 1 << 53


class Kind(StrEnum):
    """What is revoked: a node by its endpoint id, or a package by its manifest's digest (both 64 hex digits)."""

    ENDPOINT = "endpoint"
    PACKAGE = "package"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """Trust taken away. `created_at` is Unix seconds. Raises InvalidInputError if a field is malformed."""

    kind: Kind
    subject: str
    reason: str = ""
    created_at: int

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.subject):
            raise InvalidInputError(f"{self.subject!r} is not 64 lower-case hex digits, as {self.kind} ids are")
        if len(self.reason) > MAX_REASON:
            raise InvalidInputError(f"the reason is over {MAX_REASON} characters")
        if type(self.created_at) is not int or not 0 <= self.created_at < _MOST:
            raise InvalidInputError(f"{self.created_at!r} is not a time in Unix seconds")

    @classmethod
    def of_endpoint(cls, endpoint_id: str, *, reason: str = "", created_at: int) -> Revocation:
        """The revocation of a node."""
        return cls(kind=Kind.ENDPOINT, subject=endpoint_id, reason=reason, created_at=created_at)

    @classmethod
    def of_package(cls, manifest_digest: str, *, reason: str = "", created_at: int) -> Revocation:
        """The revocation of one version of a package, by its manifest's digest (with or without `blake3:`)."""
        subject = manifest_digest.removeprefix("blake3:")
        return cls(kind=Kind.PACKAGE, subject=subject, reason=reason, created_at=created_at)

    @classmethod
    def asked_for(cls, doc_id: str, fields: Mapping[str, object], at: float) -> Revocation:
        """The revocation that somebody asks for by writing `revocations/{doc_id}`: the id says of what.

        `reason` is optional; the time is `at`, whatever the fields say. Raises InvalidInputError.
        """
        kind, _, subject = doc_id.partition(":")
        reason = fields.get("reason", "")
        if kind not in set(Kind) or not isinstance(reason, str):
            raise InvalidInputError(
                f"revocation {doc_id[:80]!r}: the id is endpoint:ENDPOINT_ID or package:MANIFEST_DIGEST,"
                " and the reason a text"
            )
        return cls(kind=Kind(kind), subject=subject, reason=reason, created_at=int(at))

    @property
    def doc_id(self) -> str:
        """The document's id in `revocations`: one for each thing revoked."""
        return f"{self.kind}:{self.subject}"

    def to_fields(self) -> dict[str, object]:
        """What is signed, and stands beside the envelope for people to read."""
        return {
            "kind": str(self.kind),
            "subject": self.subject,
            "reason": self.reason,
            "created_at": self.created_at,
        }


@dataclass(frozen=True, slots=True)
class Proved:
    """A revocation and who made it."""

    revocation: Revocation
    signer: Identity


def seal_revocation(credentials: NodeCredentials, revocation: Revocation) -> dict[str, Any]:
    """The document to put at `revocations/{revocation.doc_id}`. Raises MissingRoleError if this node may not revoke."""
    if not credentials.identity.has(*REVOKING_ROLES):
        raise MissingRoleError(f"{credentials.identity} may not revoke: the role operator or hub is needed")
    payload = json.dumps(revocation.to_fields(), sort_keys=True, separators=(",", ":")).encode()
    return {**revocation.to_fields(), "envelope": seal(credentials, PAYLOAD_TYPE, payload)}


def open_revocation(doc_id: str, document: Mapping[str, object], anchor: TrustAnchor) -> Proved:
    """The revocation that the document proves. Raises a subclass of UntrustedError.

    The signer's certificate must have been valid when the revocation was made. That is its signer's word: who holds the
    key of an operator or hub can date it back, but whoever holds that key could have revoked then, too.
    """
    envelope = document.get("envelope")
    revocation = _read(read_unproved(envelope, PAYLOAD_TYPE))
    _, signer = unseal(envelope, PAYLOAD_TYPE, anchor, float(revocation.created_at), REVOKING_ROLES)
    if revocation.doc_id != doc_id:
        raise BadSignatureError(f"revocation {doc_id}: what was signed is the revocation {revocation.doc_id}")
    return Proved(revocation, signer)


@dataclass(frozen=True, slots=True)
class RevocationSet:
    """All that is revoked. Immutable: a new document makes a new set."""

    _in_force: Mapping[tuple[Kind, str], Proved]

    @classmethod
    def of(cls, proved: Iterable[Proved] = ()) -> RevocationSet:
        """The set of these revocations. The same ones in any order give the same set."""
        in_force: dict[tuple[Kind, str], Proved] = {}
        # Oldest first: so whether a signer was revoked before is known when its own revocation comes up.
        for it in sorted(proved, key=lambda p: (p.revocation.created_at, p.signer.endpoint_id, p.revocation.doc_id)):
            before = in_force.get((Kind.ENDPOINT, it.signer.endpoint_id))
            if before is None or before.revocation.created_at >= it.revocation.created_at:
                in_force.setdefault((it.revocation.kind, it.revocation.subject), it)
        return cls(in_force)

    @classmethod
    def read(cls, documents: Mapping[str, Mapping[str, object]], anchor: TrustAnchor) -> RevocationSet:
        """The set of the documents of `revocations`, by id. Those that prove nothing are passed over."""
        proved = []
        for doc_id, document in documents.items():
            try:
                proved.append(open_revocation(doc_id, document, anchor))
            except UntrustedError:
                continue
        return cls.of(proved)

    def endpoint(self, endpoint_id: str) -> Revocation | None:
        """The revocation of a node, or None."""
        return self._find(Kind.ENDPOINT, endpoint_id)

    def package(self, manifest_digest: str) -> Revocation | None:
        """The revocation of a package by its manifest's digest (with or without `blake3:`), or None."""
        return self._find(Kind.PACKAGE, manifest_digest.removeprefix("blake3:"))

    def check_identity(self, identity: Identity) -> None:
        """Raise RevokedError if the node is revoked."""
        found = self.endpoint(identity.endpoint_id)
        if found is not None:
            raise RevokedError(f"{identity.node_id} was revoked{_because(found)}")

    def check_package(self, manifest_digest: str) -> None:
        """Raise RevokedError if the package is revoked."""
        found = self.package(manifest_digest)
        if found is not None:
            raise RevokedError(f"the package with manifest {manifest_digest[:19]}… was revoked{_because(found)}")

    def endpoints(self) -> frozenset[str]:
        """The endpoint ids of all revoked nodes."""
        return frozenset(subject for kind, subject in self._in_force if kind is Kind.ENDPOINT)

    def packages(self) -> frozenset[str]:
        """The manifest digests (hex) of all revoked packages."""
        return frozenset(subject for kind, subject in self._in_force if kind is Kind.PACKAGE)

    def __iter__(self) -> Any:
        return iter(self._in_force.values())

    def __len__(self) -> int:
        return len(self._in_force)

    def _find(self, kind: Kind, subject: str) -> Revocation | None:
        found = self._in_force.get((kind, subject))
        return None if found is None else found.revocation


def _because(it: Revocation) -> str:
    return f": {it.reason}" if it.reason else ""


def _read(payload: bytes) -> Revocation:
    try:
        fields = json.loads(payload)
        if not isinstance(fields, dict) or not isinstance(fields.get("reason", ""), str):
            raise MalformedError("a revocation is a JSON object")
        return Revocation(
            kind=Kind(str(fields.get("kind"))),
            subject=str(fields.get("subject")),
            reason=fields.get("reason", ""),
            created_at=fields.get("created_at"),  # type: ignore[arg-type]  # checked when made
        )
    except (ValueError, RecursionError, InvalidInputError) as error:
        raise MalformedError(f"a revocation's signed content is malformed: {error}") from error
