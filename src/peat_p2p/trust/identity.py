"""Who a node is: its id, its key, its roles, as its certificate says.

Owns the names (node ids, formation names), the roles and the `peat://` URI that carries them in a certificate. Keeps
the rule that an identity exists only as the result of verifying a certificate (`anchor.py` makes them). Must not know
about files, TLS or documents.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from urllib.parse import parse_qsl, quote

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.trust.errors import MalformedError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SCHEME = "peat://"


class Role(StrEnum):
    """What a node may do in its formation. A node may have several."""

    OPERATOR = "operator"
    PUBLISHER = "publisher"
    HUB = "hub"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified node of the formation. `certificate` is the DER it was read from; times are Unix seconds."""

    node_id: str
    endpoint_id: str
    formation: str
    roles: frozenset[Role]
    not_before: float
    not_after: float
    certificate: bytes
    agents: frozenset[str] = frozenset()

    def has(self, *roles: Role) -> bool:
        """Whether the node has any of `roles`."""
        return not self.roles.isdisjoint(roles)

    def speaks_for(self, agent_id: str) -> bool:
        """Whether the certificate lets the node write as the agent `agent_id`: its own id, or one listed in it."""
        return agent_id == self.node_id or agent_id in self.agents

    def __str__(self) -> str:
        return f"{self.node_id} ({self.endpoint_id[:12]}, {', '.join(sorted(self.roles)) or 'no role'})"


@dataclass(frozen=True, slots=True)
class NodeUri:
    """The content of a certificate's `peat://` URI. A CA's URI names the formation alone."""

    formation: str
    node_id: str = ""
    roles: frozenset[Role] = frozenset()
    agents: frozenset[str] = frozenset()

    def __str__(self) -> str:
        query = [f"role={role}" for role in sorted(self.roles)] + [f"agent={quote(a)}" for a in sorted(self.agents)]
        text = f"{_SCHEME}{self.formation}"
        if self.node_id:
            text += f"/{self.node_id}"
        return f"{text}?{'&'.join(query)}" if query else text

    @classmethod
    def parse(cls, text: str) -> NodeUri:
        """Read the URI. A role this version does not know gives no right and is passed over. Raises MalformedError."""
        if not text.startswith(_SCHEME):
            raise MalformedError(f"certificate URI {text[:80]!r} is not {_SCHEME}FORMATION/NODE?role=ROLE")
        location, _, query = text.removeprefix(_SCHEME).partition("?")
        formation, slash, node_id = location.partition("/")
        if not _NAME.fullmatch(formation) or (slash and not _NAME.fullmatch(node_id)):
            raise MalformedError(f"certificate URI {text[:80]!r} holds a name that is not allowed")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=256)
        except ValueError as error:
            raise MalformedError(f"certificate URI {text[:80]!r}: {error}") from error
        known = {str(role) for role in Role}
        roles = frozenset(Role(value) for key, value in pairs if key == "role" and value in known)
        agents = frozenset(value for key, value in pairs if key == "agent" and _NAME.fullmatch(value))
        return cls(formation, node_id, roles, agents)


def check_node_id(text: str) -> str:
    """Return `text` if it may name a node. Raises InvalidInputError."""
    return _check_name(text, "node id")


def check_formation_name(text: str) -> str:
    """Return `text` if it may name a formation. Raises InvalidInputError."""
    return _check_name(text, "formation name")


def parse_roles(names: Iterable[str]) -> frozenset[Role]:
    """Turn role names into roles; at least one. Raises InvalidInputError."""
    roles = set()
    for name in names:
        try:
            roles.add(Role(name))
        except ValueError:
            raise InvalidInputError(f"{name!r} is not a role; the roles are {', '.join(Role)}") from None
    if not roles:
        raise InvalidInputError(f"name at least one role: {', '.join(Role)}")
    return frozenset(roles)


def endpoint_id_of(key: ec.EllipticCurvePublicKey) -> str:
    """The name of a public key on the mesh: SHA-256 of its SubjectPublicKeyInfo, in hex."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


@lru_cache(maxsize=16384)
def public_key_of(certificate: bytes) -> ec.EllipticCurvePublicKey:
    """The P-256 key of a DER certificate. Raises MalformedError."""
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except Exception as error:  # the parser raises many kinds for hostile input
        raise MalformedError(f"certificate cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MalformedError("certificate key is not P-256")
    return key


def _check_name(text: str, what: str) -> str:
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise InvalidInputError(
            f"{what} {text!r} is not allowed: 1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit"
        )
    return text
