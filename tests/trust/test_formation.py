import json
import stat
from pathlib import Path

import pytest
from cryptography import x509

from peat_p2p.core.errors import ConfigError, ConflictError, CorruptError, InvalidInputError
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.errors import ExpiredError
from peat_p2p.trust.formation import Formation, dev_credentials
from peat_p2p.trust.identity import Role

DAY = 86400


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_formation_is_made_once_and_never_overwritten(tmp_path: Path) -> None:
    made = Formation.init(tmp_path / "f", "alpha")
    before = {p.name: p.read_bytes() for p in (tmp_path / "f").iterdir()}
    with pytest.raises(ConflictError, match="already holds a formation"):
        Formation.init(tmp_path / "f", "beta")
    assert {p.name: p.read_bytes() for p in (tmp_path / "f").iterdir()} == before
    assert Formation.load(tmp_path / "f").name == made.name == "alpha"
    assert mode(tmp_path / "f" / "ca.key") == 0o600
    assert mode(tmp_path / "f") == 0o700


@pytest.mark.parametrize("survivor", ["ca.crt", "ca.key", "formation.json"])
def test_any_file_of_a_formation_protects_the_folder(tmp_path: Path, survivor: str) -> None:
    Formation.init(tmp_path, "alpha")
    for path in tmp_path.iterdir():
        if path.name != survivor:
            path.unlink()
    with pytest.raises(ConflictError, match=survivor):
        Formation.init(tmp_path, "alpha")


def test_issued_nodes_are_listed_with_their_roles(tmp_path: Path, now: float) -> None:
    formation = Formation.init(tmp_path / "f", "alpha", now)
    first = formation.issue("hub-1", [Role.HUB, Role.OPERATOR], tmp_path / "hub", at=now)
    second = formation.issue("edge.1", [Role.AGENT], tmp_path / "edge", days=7, agents=["camera"], at=now)
    assert [(n.node_id, n.endpoint_id, n.roles, n.agents) for n in Formation.load(tmp_path / "f").nodes()] == [
        ("hub-1", first.endpoint_id, (Role.HUB, Role.OPERATOR), ()),
        ("edge.1", second.endpoint_id, (Role.AGENT,), ("camera",)),
    ]
    assert second.not_after == now + 7 * DAY
    assert second.speaks_for("edge.1") and second.speaks_for("camera") and not second.speaks_for("hub-1")
    assert mode(tmp_path / "edge" / "node.key") == 0o600
    assert {p.name for p in (tmp_path / "edge").iterdir()} == {"node.crt", "node.key", "ca.crt"}


@pytest.mark.parametrize("node_id", ["", ".hidden", "-flag", "a/b", "a b", "a" * 64, "a\n", "ü", "a?role=hub", "../x"])
def test_a_bad_node_id_is_refused(tmp_path: Path, formation: Formation, node_id: str) -> None:
    with pytest.raises(InvalidInputError, match="node id"):
        formation.issue(node_id, [Role.AGENT], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bad_agent_id_no_role_and_a_bad_lifetime_are_refused(tmp_path: Path, formation: Formation) -> None:
    with pytest.raises(InvalidInputError, match="at least one role"):
        formation.issue("n", [], tmp_path / "out")
    with pytest.raises(InvalidInputError, match="node id"):
        formation.issue("n", [Role.AGENT], tmp_path / "out", agents=["a&role=hub"])
    for days in (0, -1, 100_000):
        with pytest.raises(InvalidInputError, match="days"):
            formation.issue("n", [Role.AGENT], tmp_path / "out", days=days)


def test_a_node_id_is_issued_once_and_a_folder_holds_one_node(tmp_path: Path) -> None:
    formation = Formation.init(tmp_path / "f", "alpha")
    first = formation.issue("n", [Role.AGENT], tmp_path / "a")
    with pytest.raises(ConflictError, match="issued before"):
        formation.issue("n", [Role.HUB], tmp_path / "b")
    with pytest.raises(ConflictError, match="exists already"):
        formation.issue("m", [Role.AGENT], tmp_path / "a")
    again = formation.issue("n", [Role.AGENT], tmp_path / "b", replace=True)
    assert again.endpoint_id != first.endpoint_id
    assert [n.endpoint_id for n in formation.nodes()] == [again.endpoint_id]


def test_renewal_keeps_the_key_and_moves_the_dates(tmp_path: Path, now: float) -> None:
    formation = Formation.init(tmp_path / "f", "alpha", now)
    old = formation.issue("n", [Role.AGENT], tmp_path / "n", days=1, agents=["x"], at=now)
    with pytest.raises(ExpiredError, match="n expired"):
        NodeCredentials.load(tmp_path / "n", now + 2 * DAY)
    formation.renew(tmp_path / "n", days=5, at=now + 2 * DAY)
    renewed = NodeCredentials.load(tmp_path / "n", now + 2 * DAY).identity
    assert (renewed.endpoint_id, renewed.roles, renewed.agents) == (old.endpoint_id, old.roles, old.agents)
    assert renewed.not_after == now + 7 * DAY
    assert [n.not_after for n in formation.nodes()] == [now + 7 * DAY]


def test_a_foreign_node_is_not_renewed(tmp_path: Path, formation: Formation) -> None:
    Formation.init(tmp_path / "f", "alpha").issue("n", [Role.AGENT], tmp_path / "n")
    with pytest.raises(ConflictError, match="did not issue"):
        formation.renew(tmp_path / "n")


def test_a_certificate_never_outlives_the_ca(tmp_path: Path, now: float) -> None:
    formation = Formation.init(tmp_path / "f", "alpha", now)
    late = now + 19.5 * 365 * DAY
    identity = formation.issue("n", [Role.AGENT], tmp_path / "n", days=3650, at=late)
    assert identity.not_after == now + 20 * 365 * DAY


def test_missing_and_damaged_formations_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="peat formation init"):
        Formation.load(tmp_path)
    formation = Formation.init(tmp_path / "f", "alpha")
    (tmp_path / "f" / "formation.json").write_text('{"nodes": 3}')
    with pytest.raises(CorruptError, match=r"formation\.json is damaged"):
        formation.nodes()
    other = Formation.init(tmp_path / "g", "beta")
    (tmp_path / "f" / "ca.key").write_bytes((other.directory / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="not the key of"):
        Formation.load(tmp_path / "f")
    (tmp_path / "f" / "ca.key").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="not an unencrypted private key"):
        Formation.load(tmp_path / "f")


def test_a_node_certificate_has_what_tls_and_libtorrent_ask_for(issue: object) -> None:
    credentials = issue("shape", Role.AGENT)  # type: ignore[operator]
    certificate = x509.load_pem_x509_certificate(credentials.cert_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["*"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["peat://alpha/shape?role=agent"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {u._name for u in usage} == {"clientAuth", "serverAuth"}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_dev_credentials_are_the_same_after_a_restart(tmp_path: Path) -> None:
    first = dev_credentials(tmp_path / "dev", "n", [Role.AGENT])
    assert dev_credentials(tmp_path / "dev", "n", [Role.AGENT]).identity == first.identity
    other = dev_credentials(tmp_path / "dev", "m", [Role.HUB])
    assert other.identity.endpoint_id != first.identity.endpoint_id
    assert first.anchor.verify(other.identity.certificate, other.identity.not_before) == other.identity


def test_dev_credentials_take_on_new_roles_and_renew_themselves(tmp_path: Path, now: float) -> None:
    first = dev_credentials(tmp_path, "n", [Role.AGENT], at=now)
    more = dev_credentials(tmp_path, "n", [Role.OPERATOR], at=now)
    assert more.identity.roles == {Role.AGENT, Role.OPERATOR}
    later = dev_credentials(tmp_path, "n", [Role.AGENT], at=now + 400 * DAY)
    assert later.identity.endpoint_id == more.identity.endpoint_id == first.identity.endpoint_id
    assert later.identity.not_after > now + 700 * DAY


@pytest.mark.parametrize("lost", ["nodes/n/node.crt", "formation/ca.crt"])
def test_dev_credentials_survive_a_first_start_cut_off(tmp_path: Path, lost: str) -> None:
    dev_credentials(tmp_path, "n", [Role.AGENT])
    (tmp_path / lost).unlink()
    if lost.startswith("formation"):  # the CA was never finished, so nothing was issued
        (tmp_path / "nodes" / "n" / "node.crt").unlink()
    assert dev_credentials(tmp_path, "n", [Role.AGENT]).identity.node_id == "n"


def test_the_list_is_plain_json(tmp_path: Path) -> None:
    formation = Formation.init(tmp_path, "alpha")
    formation.issue("n", [Role.AGENT], tmp_path / "n")
    listed = json.loads((tmp_path / "formation.json").read_text())
    assert listed["name"] == "alpha" and listed["nodes"][0]["node_id"] == "n"
