"""What a node holds to prove who it is: certificate, key, the formation's CA.

Owns reading a node's folder, signing, checking signatures, and the TLS contexts of both sides. Keeps the rule that
every TLS connection of the formation is TLS 1.3 with both certificates checked against the CA. One key does TLS and
signing. Must not know what is signed or what is said over a connection.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from peat_p2p.core.clock import SystemClock
from peat_p2p.core.errors import ConfigError, UntrustedError
from peat_p2p.trust.anchor import TrustAnchor
from peat_p2p.trust.errors import BadSignatureError, UnsignedError
from peat_p2p.trust.identity import Identity, endpoint_id_of, public_key_of

CERTIFICATE_FILE = "node.crt"
KEY_FILE = "node.key"
CA_FILE = "ca.crt"
SIGNATURE_BYTES = 64
_ALGORITHM = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class NodeCredentials:
    """A node's identity together with its private key. `directory` is where the files are (TLS reads them there)."""

    directory: Path
    identity: Identity
    anchor: TrustAnchor
    private_key: ec.EllipticCurvePrivateKey
    cert_pem: bytes
    key_pem: bytes
    ca_pem: bytes

    @classmethod
    def load(cls, directory: Path, at: float | None = None) -> NodeCredentials:
        """Read `node.crt`, `node.key` and `ca.crt` and check that they belong together and are valid at `at` (now).

        Raises ConfigError for missing or unreadable files, a subclass of UntrustedError for a certificate that is not
        good.
        """
        ca_pem, cert_pem, key_pem = (_read(directory, name) for name in (CA_FILE, CERTIFICATE_FILE, KEY_FILE))
        try:
            anchor = TrustAnchor.load(ca_pem)
        except ConfigError as error:
            raise ConfigError(f"{directory / CA_FILE}: {error}") from error
        try:
            certificate = x509.load_pem_x509_certificate(cert_pem)
        except ValueError as error:
            raise ConfigError(f"{directory / CERTIFICATE_FILE} is not a certificate in PEM") from error
        try:
            key = load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{directory / KEY_FILE} is not an unencrypted private key in PEM") from error
        try:
            identity = anchor.verify(certificate.public_bytes(Encoding.DER), SystemClock().wall() if at is None else at)
        except UntrustedError as error:
            raise type(error)(f"{directory / CERTIFICATE_FILE}: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or endpoint_id_of(key.public_key()) != identity.endpoint_id:
            raise ConfigError(f"{directory / KEY_FILE} is not the key of {directory / CERTIFICATE_FILE}")
        return cls(directory, identity, anchor, key, cert_pem, key_pem, ca_pem)

    def sign(self, data: bytes) -> bytes:
        """ECDSA over SHA-256 of `data`, as 64 bytes (r then s, big-endian)."""
        r, s = decode_dss_signature(self.private_key.sign(data, _ALGORITHM))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def server_context(self, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """TLS 1.3 for the accepting side; the caller must prove to be of the formation."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER, alpn)
        # No session tickets: each connection proves its certificate anew, a revoked one does not live on in a ticket.
        context.num_tickets = 0
        return context

    def client_context(self, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """TLS 1.3 for the calling side. Who answered is told by `peer_identity`; host names mean nothing here."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT, alpn)

    def _context(self, protocol: int, alpn: Sequence[str]) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self.ca_pem.decode("ascii"))
        context.load_cert_chain(self.directory / CERTIFICATE_FILE, self.directory / KEY_FILE)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def __repr__(self) -> str:
        return f"NodeCredentials({self.identity}, {self.directory})"


def verify_signature(identity: Identity, signature: bytes, data: bytes) -> None:
    """Check that `identity` made `signature` over `data`. Raises BadSignatureError."""
    if len(signature) != SIGNATURE_BYTES:
        raise BadSignatureError(f"signature of {identity.node_id} has {len(signature)} bytes, not {SIGNATURE_BYTES}")
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        public_key_of(identity.certificate).verify(der, data, _ALGORITHM)
    except InvalidSignature:
        raise BadSignatureError(
            f"signature does not match: not made by {identity.node_id}, or the content was changed"
        ) from None


def peer_identity(ssl_object: ssl.SSLObject | ssl.SSLSocket, anchor: TrustAnchor, at: float) -> Identity:
    """Who is at the other end of a finished TLS handshake. Raises a subclass of UntrustedError."""
    certificate = ssl_object.getpeercert(binary_form=True)
    if certificate is None:
        raise UnsignedError("the other side gave no certificate")
    return anchor.verify(certificate, at)


def _read(directory: Path, name: str) -> bytes:
    path = directory / name
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing: make a node's folder with `peat formation issue NODE --role ROLE --out {directory}`"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
