"""What the formation's certificates look like.

Owns the X.509 fields of the CA's and the nodes' certificates. Must not know where they are kept.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from peat_p2p.trust.identity import NodeUri

CA_DAYS = 20 * 365
# A node's clock may lag behind the issuing machine's: a certificate is good from a day before it was made.
_BACKDATE = timedelta(days=1)


def node_certificate(
    uri: NodeUri,
    key: ec.EllipticCurvePublicKey,
    days: int,
    now: float,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """A node's certificate: `key` belongs to what `uri` says, for `days` from `now` (Unix seconds)."""
    start = datetime.fromtimestamp(now, UTC)
    usage = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    # libtorrent looks for the torrent's name or "*" among the DNS names of a peer of an SSL torrent.
    names = x509.SubjectAlternativeName([x509.DNSName("*"), x509.UniformResourceIdentifier(str(uri))])
    return (
        x509.CertificateBuilder()
        .subject_name(_common_name(uri.node_id))
        .issuer_name(ca.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _BACKDATE)
        .not_valid_after(min(start + timedelta(days=days), ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def ca_certificate(name: str, key: ec.EllipticCurvePrivateKey, now: float) -> x509.Certificate:
    """The self-signed certificate of the formation `name`."""
    start = datetime.fromtimestamp(now, UTC)
    subject = _common_name(f"{name} CA")
    uri = x509.UniformResourceIdentifier(str(NodeUri(name)))
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _BACKDATE)
        .not_valid_after(start + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as its file holds it: PKCS #8 in PEM, not encrypted (the file's mode protects it)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
