"""The formation: its CA, and the certificates it issues.

Owns the formation's folder (`ca.crt`, `ca.key`, `formation.json`) and the making of node folders. Keeps the rules that
nothing existing is overwritten, that private keys are readable by their owner alone from the first moment, and that
the list of nodes is what was issued. Must not know how certificates are used.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from peat_p2p.core.atomic import write_atomic
from peat_p2p.core.clock import SystemClock
from peat_p2p.core.errors import ConfigError, ConflictError, CorruptError, InvalidInputError, UntrustedError
from peat_p2p.trust.anchor import TrustAnchor
from peat_p2p.trust.certificates import ca_certificate, key_pem, node_certificate
from peat_p2p.trust.credentials import CA_FILE, CERTIFICATE_FILE, KEY_FILE, NodeCredentials
from peat_p2p.trust.identity import (
    Identity,
    NodeUri,
    Role,
    check_formation_name,
    check_node_id,
    endpoint_id_of,
    public_key_of,
)

CA_KEY_FILE = "ca.key"
LIST_FILE = "formation.json"
MAX_DAYS = 10 * 365


@dataclass(frozen=True, slots=True)
class IssuedNode:
    """A line of the formation's list: a certificate that was issued. Times are Unix seconds."""

    node_id: str
    endpoint_id: str
    roles: tuple[Role, ...]
    agents: tuple[str, ...]
    issued_at: float
    not_after: float


class Formation:
    """A formation's folder, with the CA's private key: for the operator's machine, not for nodes."""

    def __init__(self, directory: Path, anchor: TrustAnchor, certificate: x509.Certificate, key: Any) -> None:
        self.directory = directory
        self.anchor = anchor
        self._certificate = certificate
        self._key: ec.EllipticCurvePrivateKey = key

    @property
    def name(self) -> str:
        """The formation's name."""
        return self.anchor.formation

    @classmethod
    def init(cls, directory: Path, name: str, at: float | None = None) -> Formation:
        """Make a CA in `directory`. Raises ConflictError if a formation is there already."""
        check_formation_name(name)
        _private_folder(directory)
        with _locked(directory):
            for file in (CA_FILE, CA_KEY_FILE, LIST_FILE):
                if (directory / file).exists():
                    raise ConflictError(f"{directory} already holds a formation ({file}); choose another --dir")
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = ca_certificate(name, key, _now(at))
            write_atomic(directory / CA_KEY_FILE, key_pem(key), mode=0o600)
            write_atomic(directory / LIST_FILE, _dump_list(name, []))
            # Last, so that a folder with ca.crt is whole.
            write_atomic(directory / CA_FILE, certificate.public_bytes(Encoding.PEM))
        return cls.load(directory)

    @classmethod
    def load(cls, directory: Path) -> Formation:
        """Open the formation in `directory`. Raises ConfigError if there is none or it is damaged."""
        try:
            ca_pem = (directory / CA_FILE).read_bytes()
            key_bytes = (directory / CA_KEY_FILE).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{directory} holds no formation ({Path(error.filename).name}: {error.strerror});"
                f" make one with `peat formation init --name NAME --dir {directory}`"
            ) from error
        anchor = TrustAnchor.load(ca_pem)
        certificate = x509.load_pem_x509_certificate(ca_pem)
        try:
            key = load_pem_private_key(key_bytes, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{directory / CA_KEY_FILE} is not an unencrypted private key in PEM") from error
        if key.public_key() != certificate.public_key():
            raise ConfigError(f"{directory / CA_KEY_FILE} is not the key of {directory / CA_FILE}")
        return cls(directory, anchor, certificate, key)

    def issue(
        self,
        node_id: str,
        roles: Iterable[Role],
        out_dir: Path,
        days: int = 365,
        *,
        agents: Iterable[str] = (),
        replace: bool = False,
        at: float | None = None,
    ) -> Identity:
        """Make a key and a certificate for `node_id` in `out_dir`. `agents` are further agent ids it may write for.

        A node id is issued once, or again with `replace`: for a node that was lost, whose old certificate stays valid
        until it expires or is revoked.

        Raises InvalidInputError for a bad name, no role or a bad lifetime, ConflictError if the node id was issued
        before or `out_dir` holds a node already.
        """
        uri = self._uri(node_id, roles, agents)
        _check_days(days)
        now = _now(at)
        with _locked(self.directory):
            if not replace and any(node.node_id == node_id for node in self.nodes()):
                raise ConflictError(
                    f"node {node_id} was issued before in formation {self.name}: renew its certificate"
                    " (`peat formation renew`), or issue it anew (--replace) and revoke the old one"
                )
            for file in (CERTIFICATE_FILE, KEY_FILE, CA_FILE):
                if (out_dir / file).exists():
                    raise ConflictError(f"{out_dir / file} exists already; choose another --out")
            _private_folder(out_dir)
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = self._sign(uri, key.public_key(), days, now)
            identity = self.anchor.verify(certificate.public_bytes(Encoding.DER), now)
            self._remember(identity, now)
            write_atomic(out_dir / KEY_FILE, key_pem(key), mode=0o600)
            write_atomic(out_dir / CA_FILE, self.anchor.pem)
            write_atomic(out_dir / CERTIFICATE_FILE, certificate.public_bytes(Encoding.PEM))
        return identity

    def renew(
        self,
        node_dir: Path,
        days: int = 365,
        *,
        roles: Iterable[Role] | None = None,
        agents: Iterable[str] | None = None,
        at: float | None = None,
    ) -> Identity:
        """Replace the certificate in `node_dir` by one for the same key, with new dates (and roles, if given)."""
        _check_days(days)
        now = _now(at)
        try:
            old_der = x509.load_pem_x509_certificate((node_dir / CERTIFICATE_FILE).read_bytes()).public_bytes(
                Encoding.DER
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"{node_dir / CERTIFICATE_FILE} cannot be read: {error}") from error
        with _locked(self.directory):
            key = public_key_of(old_der)
            endpoint_id = endpoint_id_of(key)
            known = [node for node in self.nodes() if node.endpoint_id == endpoint_id]
            if not known:
                raise ConflictError(f"{node_dir} holds a node that formation {self.name} did not issue")
            node = known[-1]
            uri = self._uri(
                node.node_id, node.roles if roles is None else roles, node.agents if agents is None else agents
            )
            certificate = self._sign(uri, key, days, now)
            identity = self.anchor.verify(certificate.public_bytes(Encoding.DER), now)
            self._remember(identity, now)
            write_atomic(node_dir / CERTIFICATE_FILE, certificate.public_bytes(Encoding.PEM))
        return identity

    def nodes(self) -> list[IssuedNode]:
        """What was issued and is not replaced, in order. Raises CorruptError if the list is damaged."""
        path = self.directory / LIST_FILE
        try:
            listed = json.loads(path.read_bytes())
            return [
                IssuedNode(
                    node_id=str(entry["node_id"]),
                    endpoint_id=str(entry["endpoint_id"]),
                    roles=tuple(Role(role) for role in entry["roles"]),
                    agents=tuple(str(agent) for agent in entry.get("agents", ())),
                    issued_at=float(entry["issued_at"]),
                    not_after=float(entry["not_after"]),
                )
                for entry in listed["nodes"]
            ]
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptError(f"{path} is damaged ({error}); restore it from a backup") from error

    def _uri(self, node_id: str, roles: Iterable[Role], agents: Iterable[str]) -> NodeUri:
        uri = NodeUri(
            self.name, check_node_id(node_id), frozenset(Role(r) for r in roles), frozenset(map(check_node_id, agents))
        )
        if not uri.roles:
            raise InvalidInputError(f"name at least one role for {node_id}: {', '.join(Role)}")
        return uri

    def _sign(self, uri: NodeUri, key: ec.EllipticCurvePublicKey, days: int, now: float) -> x509.Certificate:
        return node_certificate(uri, key, days, now, self._certificate, self._key)

    def _remember(self, identity: Identity, now: float) -> None:
        kept = [node for node in self.nodes() if node.node_id != identity.node_id]
        roles, agents = tuple(sorted(identity.roles)), tuple(sorted(identity.agents))
        node = IssuedNode(identity.node_id, identity.endpoint_id, roles, agents, now, identity.not_after)
        write_atomic(self.directory / LIST_FILE, _dump_list(self.name, [*kept, node]))


def dev_credentials(
    directory: Path, node_id: str, roles: Iterable[Role], *, at: float | None = None
) -> NodeCredentials:
    """Credentials of a throw-away formation kept in `directory`: made on first use, the same ones after a restart.

    Several nodes may share the folder, and are then of one formation. Not for a real fleet: the CA's key lies beside.
    """
    check_node_id(node_id)
    wanted = frozenset(roles)
    formation_dir, node_dir = directory / "formation", directory / "nodes" / node_id
    _private_folder(directory)
    with _locked(directory):
        if not (formation_dir / CA_FILE).exists():
            # Only a first start that was cut off leaves something here: nothing was issued by it yet.
            for leftover in (formation_dir / CA_KEY_FILE, formation_dir / LIST_FILE):
                leftover.unlink(missing_ok=True)
            Formation.init(formation_dir, "dev", at)
        formation = Formation.load(formation_dir)
        if not (node_dir / CERTIFICATE_FILE).exists():
            for leftover in (node_dir / KEY_FILE, node_dir / CA_FILE):
                leftover.unlink(missing_ok=True)
            formation.issue(node_id, wanted, node_dir, replace=True, at=at)
        try:
            credentials = NodeCredentials.load(node_dir, at)
            if wanted <= credentials.identity.roles:
                return credentials
            wanted |= credentials.identity.roles
        except UntrustedError:
            pass  # expired: a throw-away formation renews itself
        formation.renew(node_dir, roles=wanted, at=at)
    return NodeCredentials.load(node_dir, at)


def _dump_list(name: str, nodes: list[IssuedNode]) -> bytes:
    listed = [
        {
            "node_id": node.node_id,
            "endpoint_id": node.endpoint_id,
            "roles": list(node.roles),
            "agents": list(node.agents),
            "issued_at": node.issued_at,
            "not_after": node.not_after,
        }
        for node in nodes
    ]
    return json.dumps({"name": name, "nodes": listed}, indent=2).encode() + b"\n"


def _now(at: float | None) -> float:
    return SystemClock().wall() if at is None else at


def _check_days(days: int) -> None:
    if not 1 <= days <= MAX_DAYS:
        raise InvalidInputError(f"a certificate lives 1 to {MAX_DAYS} days, not {days}")


def _private_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"folder {path} cannot be made: {error.strerror}") from error


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time changes the folder; others wait."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
