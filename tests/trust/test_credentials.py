import shutil
import ssl
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peat_p2p.core.errors import ConfigError
from peat_p2p.trust.credentials import NodeCredentials, peer_identity, verify_signature
from peat_p2p.trust.errors import BadSignatureError, ForeignFormationError
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role


def test_a_signature_belongs_to_its_signer_and_content(issue) -> None:
    one, two = issue("one"), issue("two")
    signature = one.sign(b"content")
    assert len(signature) == 64
    verify_signature(one.identity, signature, b"content")
    for identity, sig, content in (
        (one.identity, signature, b"Content"),
        (two.identity, signature, b"content"),
        (one.identity, bytes(64), b"content"),
        (one.identity, b"\xff" * 64, b"content"),
        (one.identity, signature[:-1], b"content"),
        (one.identity, b"", b"content"),
    ):
        with pytest.raises(BadSignatureError):
            verify_signature(identity, sig, content)


@given(st.integers(0, 511))
@settings(max_examples=100, deadline=None)
def test_no_flipped_bit_of_a_signature_verifies(issue, bit: int) -> None:
    one = issue("one")
    signature = bytearray(one.sign(b"x"))
    signature[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(BadSignatureError):
        verify_signature(one.identity, bytes(signature), b"x")


@pytest.mark.parametrize("name", ["node.crt", "node.key", "ca.crt"])
def test_missing_and_unreadable_files_are_named(tmp_path: Path, issue, now: float, name: str) -> None:
    shutil.copytree(issue("n").directory, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        NodeCredentials.load(tmp_path, now)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name} is missing.*peat formation issue"):
        NodeCredentials.load(tmp_path, now)


def test_files_of_different_nodes_do_not_go_together(tmp_path: Path, issue, other_formation, now: float) -> None:
    shutil.copytree(issue("n").directory, tmp_path, dirs_exist_ok=True)
    shutil.copy(issue("m").directory / "node.key", tmp_path)
    with pytest.raises(ConfigError, match="not the key of"):
        NodeCredentials.load(tmp_path, now)
    shutil.copy(other_formation.directory / "ca.crt", tmp_path)
    with pytest.raises(ForeignFormationError):
        NodeCredentials.load(tmp_path, now)


def test_credentials_do_not_print_their_key(issue) -> None:
    credentials = issue("n")
    assert "PRIVATE" not in repr(credentials) and "n (" in repr(credentials)


def test_both_sides_of_tls_learn_who_the_other_is(issue, shake, now: float) -> None:
    hub, edge = issue("hub", Role.HUB), issue("edge")
    server, client = shake(hub.server_context(["x"]), edge.client_context(["x"]))
    assert server.version() == client.version() == "TLSv1.3"
    assert server.selected_alpn_protocol() == "x"
    assert peer_identity(server, hub.anchor, now) == edge.identity
    assert peer_identity(client, edge.anchor, now) == hub.identity


def test_tls_refuses_a_stranger_on_either_side(issue, shake, other_formation: Formation) -> None:
    ours, theirs = issue("n"), issue("n", of=other_formation)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(theirs.server_context(), ours.client_context())
    with pytest.raises(ssl.SSLError):
        shake(ours.server_context(), theirs.client_context())


def test_tls_refuses_a_client_without_certificate_and_an_older_protocol(issue, shake) -> None:
    ours = issue("n")
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname = False
    anonymous.verify_mode = ssl.CERT_NONE
    with pytest.raises(ssl.SSLError):
        shake(ours.server_context(), anonymous)
    old = ours.client_context()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake(ours.server_context(), old)
