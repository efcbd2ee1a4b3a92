"""Who may say what: the port to the formation's trust.

Owns the `Authority` port the deciding core asks for signatures and identities, and its real form on node credentials.
Keeps the rule that a part counts only after its writer's signature and certificate were checked here. Must not know how
parts are merged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography import x509

from peat_p2p.core.errors import UntrustedError
from peat_p2p.trust.credentials import NodeCredentials, verify_signature
from peat_p2p.trust.errors import ExpiredError, NotYetValidError
from peat_p2p.trust.identity import Identity
from peat_p2p.trust.policy import refusal


@dataclass(frozen=True, slots=True)
class Claim:
    """What a part would do, for a policy to allow or not: who writes which fields of which document."""

    collection: str
    doc_id: str
    origin: Identity
    fields: frozenset[str]
    deletes: bool


# Gives the reason why a claim is not allowed, or nothing.
Policy = Callable[[Claim], str]


def formation_policy(claim: Claim) -> str:
    """Refuse what no certificate that is yet to come could make right."""
    # Only of commands does it matter which field it is; all fields of a large part need not be asked for one by one.
    fields = claim.fields if claim.collection == "commands" else list(claim.fields)[:1]
    return refusal(claim.origin, claim.collection, claim.doc_id, fields, claim.deletes, claimed=False)


class Authority(Protocol):
    """Signing as this node; checking certificates and signatures of others."""

    @property
    def node(self) -> Identity:
        """Who this node is."""
        ...

    def sign(self, data: bytes) -> bytes:
        """This node's signature."""
        ...

    def identify(self, certificate: bytes) -> Identity:
        """Whose certificate it is; its dates do not matter here. Raises UntrustedError."""
        ...

    def verifies(self, identity: Identity, signature: bytes, data: bytes) -> bool:
        """Whether `identity` made `signature` over `data`."""
        ...

    def refusal(self, claim: Claim) -> str:
        """Why the claim is not allowed; empty if it is."""
        ...


class FormationAuthority:
    """The authority of a node of a formation."""

    def __init__(self, credentials: NodeCredentials, policy: Policy = formation_policy) -> None:
        self._credentials = credentials
        self._policy = policy
        self._likely = credentials.identity.not_before

    @property
    def node(self) -> Identity:
        """Who this node is."""
        return self._credentials.identity

    def sign(self, data: bytes) -> bytes:
        """This node's signature."""
        return self._credentials.sign(data)

    def identify(self, certificate: bytes) -> Identity:
        """Whose certificate it is.

        Any moment of its life will do: what a node signed while it was a member stays true, and a replica that joins
        later must be able to learn it.
        """
        anchor = self._credentials.anchor
        try:
            return anchor.verify(certificate, self._likely)
        except (ExpiredError, NotYetValidError):
            # Reading the dates alone means reading the certificate twice, so the time that was good last is tried
            # first.
            self._likely = not_before_of(certificate)
            return anchor.verify(certificate, self._likely)

    def verifies(self, identity: Identity, signature: bytes, data: bytes) -> bool:
        """Whether `identity` made `signature` over `data`."""
        try:
            verify_signature(identity, signature, data)
        except UntrustedError:
            return False
        return True

    def refusal(self, claim: Claim) -> str:
        """Why the claim is not allowed; empty if it is."""
        return self._policy(claim)


def not_before_of(certificate: bytes) -> float:
    """When a certificate begins to be valid. Raises UntrustedError."""
    try:
        return x509.load_der_x509_certificate(certificate).not_valid_before_utc.timestamp()
    except Exception as error:  # the parser raises many kinds for hostile input
        raise UntrustedError(f"certificate cannot be read: {error}") from error
