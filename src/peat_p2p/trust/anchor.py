"""The one thing a node trusts beforehand: its formation's CA certificate.

Owns the check that turns certificate bytes from anywhere into an Identity. Keeps the rule that nothing but the CA's
signature, the certificate's own shape and the time given by the caller decides. Must not know about files or sockets;
revocation is another question (`revocation.py`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from peat_p2p.core.errors import ConfigError
from peat_p2p.trust.errors import ExpiredError, ForeignFormationError, MalformedError, NotYetValidError
from peat_p2p.trust.identity import Identity, NodeUri, endpoint_id_of

MAX_CERTIFICATE_BYTES = 8192
_KNOWN_CRITICAL = {x509.BasicConstraints.oid, x509.KeyUsage.oid}


class TrustAnchor:
    """A formation's CA. `verify` is pure but for a bounded memory of certificates that were good before."""

    def __init__(self, certificate: x509.Certificate, formation: str) -> None:
        self._certificate = certificate
        self._expires = certificate.not_valid_after_utc.timestamp()
        self.formation = formation
        # A fleet's certificates are seen again and again; the signature need be checked once. Failures are not kept.
        self._checked = lru_cache(maxsize=16384)(self._check)

    @classmethod
    def load(cls, ca_pem: bytes) -> TrustAnchor:
        """Read a CA certificate in PEM. Raises ConfigError."""
        try:
            certificate = x509.load_pem_x509_certificate(ca_pem)
            certificate.verify_directly_issued_by(certificate)
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
            uri = _node_uri(certificate)
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound, MalformedError) as error:
            raise ConfigError(f"this is not the CA certificate of a formation: {error or 'bad signature'}") from error
        if not constraints.ca or uri.node_id:
            raise ConfigError("this is the certificate of a node, not of a formation's CA")
        return cls(certificate, uri.formation)

    @property
    def pem(self) -> bytes:
        """The CA certificate in PEM."""
        return self._certificate.public_bytes(Encoding.PEM)

    def verify(self, cert_der: bytes, at: float) -> Identity:
        """The identity that `cert_der` proves at Unix time `at`. Raises a subclass of UntrustedError saying why not."""
        identity = self._checked(bytes(cert_der))
        if at < identity.not_before:
            raise NotYetValidError(
                f"certificate of {identity.node_id} is valid from {_day(identity.not_before)}"
                f" and it is {_day(at)} here: check this machine's clock"
            )
        if at > min(identity.not_after, self._expires):
            raise ExpiredError(
                f"certificate of {identity.node_id} expired on {_day(min(identity.not_after, self._expires))}"
                f" (it is {_day(at)} here): renew it with `peat formation renew`"
            )
        return identity

    def _check(self, cert_der: bytes) -> Identity:
        if len(cert_der) > MAX_CERTIFICATE_BYTES:
            raise MalformedError(f"certificate of {len(cert_der)} bytes is over the limit of {MAX_CERTIFICATE_BYTES}")
        try:
            certificate = x509.load_der_x509_certificate(cert_der)
            certificate.verify_directly_issued_by(self._certificate)
        except (InvalidSignature, TypeError) as error:
            raise ForeignFormationError(
                f"certificate was not issued by the CA of formation {self.formation}"
            ) from error
        except Exception as error:  # the parser raises many kinds for hostile input
            if "issuer" in str(error).lower():
                raise ForeignFormationError(
                    f"certificate was not issued by the CA of formation {self.formation}"
                ) from error
            raise MalformedError(f"certificate cannot be read: {error}") from error
        # From here on the CA signed it: what is wrong now is a mistake of the CA's user or another kind of certificate.
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise MalformedError("certificate key is not P-256")
        for extension in certificate.extensions:
            if extension.critical and extension.oid not in _KNOWN_CRITICAL:
                raise MalformedError(f"certificate has a critical extension {extension.oid.dotted_string}")
            if isinstance(extension.value, x509.BasicConstraints) and extension.value.ca:
                raise MalformedError("this is a CA certificate, not a node's")
        uri = _node_uri(certificate)
        if not uri.node_id:
            raise MalformedError("certificate names no node")
        if uri.formation != self.formation:
            raise ForeignFormationError(f"certificate is of formation {uri.formation}, this is {self.formation}")
        return Identity(
            node_id=uri.node_id,
            endpoint_id=endpoint_id_of(key),
            formation=uri.formation,
            roles=uri.roles,
            not_before=certificate.not_valid_before_utc.timestamp(),
            not_after=certificate.not_valid_after_utc.timestamp(),
            certificate=cert_der,
            agents=uri.agents,
        )


def _node_uri(certificate: x509.Certificate) -> NodeUri:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise MalformedError("certificate has no peat:// name") from None
    except ValueError as error:
        raise MalformedError(f"certificate extensions cannot be read: {error}") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise MalformedError(f"certificate has {len(uris)} URIs, not one peat:// name")
    return NodeUri.parse(uris[0])


def _day(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return f"second {at}"
