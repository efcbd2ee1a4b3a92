from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from peat_p2p.core.errors import ConfigError, UntrustedError
from peat_p2p.trust.anchor import TrustAnchor
from peat_p2p.trust.certificates import node_certificate
from peat_p2p.trust.errors import ExpiredError, ForeignFormationError, MalformedError, NotYetValidError
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Identity, NodeUri, Role

DAY = 86400


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def test_a_certificate_of_the_formation_proves_an_identity(formation: Formation, issue, now: float) -> None:
    credentials = issue("pub", Role.PUBLISHER, Role.AGENT)
    identity = TrustAnchor.load(formation.anchor.pem).verify(credentials.identity.certificate, now)
    assert identity == credentials.identity
    assert identity.node_id == "pub" and identity.formation == "alpha"
    assert identity.has(Role.PUBLISHER) and identity.has(Role.HUB, Role.AGENT) and not identity.has(Role.HUB)
    assert len(identity.endpoint_id) == 64


def test_time_decides(formation: Formation, issue, now: float) -> None:
    identity: Identity = issue("timed").identity
    assert formation.anchor.verify(identity.certificate, identity.not_after) == identity
    with pytest.raises(ExpiredError, match="timed expired on"):
        formation.anchor.verify(identity.certificate, identity.not_after + 1)
    with pytest.raises(NotYetValidError, match="clock"):
        formation.anchor.verify(identity.certificate, identity.not_before - 1)
    with pytest.raises(ExpiredError):
        formation.anchor.verify(identity.certificate, 1e300)


def test_another_formation_of_the_same_name_is_foreign(other_formation: Formation, issue, now: float) -> None:
    with pytest.raises(ForeignFormationError, match="not issued by the CA of formation alpha"):
        other_formation.anchor.verify(issue("n").identity.certificate, now)


def test_another_name_is_foreign(tmp_path: Path, issue, now: float) -> None:
    beta = Formation.init(tmp_path, "beta", now)
    with pytest.raises(ForeignFormationError, match="formation beta"):
        beta.anchor.verify(issue("n").identity.certificate, now)


def test_the_ca_itself_is_not_a_node(formation: Formation, now: float) -> None:
    ca = x509.load_pem_x509_certificate(formation.anchor.pem)
    with pytest.raises(MalformedError, match="CA certificate"):
        formation.anchor.verify(der(ca), now)


def test_a_node_certificate_is_not_a_ca(issue) -> None:
    with pytest.raises(ConfigError, match="not the CA certificate"):
        TrustAnchor.load(issue("n").cert_pem)
    with pytest.raises(ConfigError):
        TrustAnchor.load(b"")


def test_a_node_cannot_issue(formation: Formation, issue, now: float) -> None:
    agent = issue("evil")
    key = ec.generate_private_key(ec.SECP256R1())
    ca = x509.load_pem_x509_certificate(formation.anchor.pem)
    uri = NodeUri("alpha", "fake", frozenset({Role.OPERATOR}))
    forged = node_certificate(uri, key.public_key(), 1, now, ca, agent.private_key)
    with pytest.raises(ForeignFormationError):
        formation.anchor.verify(der(forged), now)
    by_node = node_certificate(
        uri, key.public_key(), 1, now, x509.load_pem_x509_certificate(agent.cert_pem), agent.private_key
    )
    with pytest.raises(ForeignFormationError):
        formation.anchor.verify(der(by_node), now)


def test_what_the_ca_signed_must_still_have_the_right_shape(formation: Formation, now: float) -> None:
    ca = x509.load_pem_x509_certificate(formation.anchor.pem)
    key = ec.generate_private_key(ec.SECP256R1())

    def signed(uri: NodeUri, public: ec.EllipticCurvePublicKey | None = None) -> bytes:
        return der(node_certificate(uri, public or key.public_key(), 1, now, ca, formation._key))

    with pytest.raises(ForeignFormationError, match="formation beta, this is alpha"):
        formation.anchor.verify(signed(NodeUri("beta", "n", frozenset({Role.AGENT}))), now)
    p384 = ec.generate_private_key(ec.SECP384R1()).public_key()
    with pytest.raises(MalformedError, match="P-256"):
        formation.anchor.verify(signed(NodeUri("alpha", "n", frozenset({Role.AGENT})), p384), now)


def test_an_unknown_critical_extension_is_refused(formation: Formation, issue, now: float) -> None:
    issued = x509.load_pem_x509_certificate(issue("n").cert_pem)
    builder = (
        x509.CertificateBuilder()
        .subject_name(issued.subject)
        .issuer_name(issued.issuer)
        .public_key(issued.public_key())
        .serial_number(1)
        .not_valid_before(issued.not_valid_before_utc)
        .not_valid_after(issued.not_valid_after_utc)
        .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x"), critical=True)
    )
    with pytest.raises(MalformedError, match=r"1\.2\.3\.4"):
        formation.anchor.verify(der(builder.sign(formation._key, hashes.SHA256())), now)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_certificate_is_never_believed(formation: Formation, issue, now: float, data: st.DataObject) -> None:
    good = issue("n").identity
    mutated = bytearray(good.certificate)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(mutated) - 1))
        mutated[position] ^= data.draw(st.integers(1, 255))
    if bytes(mutated) == good.certificate:
        return
    with pytest.raises(UntrustedError):
        formation.anchor.verify(bytes(mutated), now)


@given(st.binary(max_size=2000))
@settings(max_examples=200, deadline=None)
def test_noise_is_never_believed(formation: Formation, noise: bytes) -> None:
    with pytest.raises(UntrustedError):
        formation.anchor.verify(noise, 1.0)


NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


@given(NAMES, NAMES, st.frozensets(st.sampled_from(Role), min_size=1), st.frozensets(NAMES, max_size=4))
def test_uri_round_trip(formation: str, node_id: str, roles: frozenset[Role], agents: frozenset[str]) -> None:
    uri = NodeUri(formation, node_id, roles, agents)
    assert NodeUri.parse(str(uri)) == uri


@given(st.text())
def test_any_text_is_a_uri_or_malformed(text: str) -> None:
    for candidate in (text, f"peat://{text}", f"peat://a/{text}", f"peat://a/b?{text}"):
        try:
            uri = NodeUri.parse(candidate)
        except MalformedError:
            continue
        assert NodeUri.parse(str(uri)) == uri


def test_an_unknown_role_gives_nothing() -> None:
    assert NodeUri.parse("peat://a/b?role=emperor&role=agent").roles == {Role.AGENT}
