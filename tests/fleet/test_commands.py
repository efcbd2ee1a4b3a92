import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.core.errors import UntrustedError
from peat_p2p.fleet.commands import (
    PAYLOAD_TYPE,
    Command,
    CommandStatus,
    fresh_command_id,
    is_sealed,
    may_act,
    open_command,
    require_may_act,
    seal_command,
)
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.dsse import seal
from peat_p2p.trust.errors import BadSignatureError, MalformedError, MissingRoleError, UnsignedError
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role

NOW = 1_800_000_000.0
ORDER = Command(
    id="c-1",
    target_id="edge-1",
    command_type="pull",
    status=CommandStatus.PENDING,
    created_at=1,
    expires_at=2**62,
    payload_json='{"package": "ä", "version": "1"}',
)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NodeCredentials]:
    root: Path = tmp_path_factory.mktemp("nodes")
    formation = Formation.init(root / "f", "alpha", NOW)
    made = {}
    for name, role in {
        "hub": Role.HUB,
        "op": Role.OPERATOR,
        "pub": Role.PUBLISHER,
        "edge-1": Role.AGENT,
        "edge-2": Role.AGENT,
    }.items():
        formation.issue(name, [role], root / name, agents=["camera"] if name == "edge-2" else [], at=NOW)
        made[name] = NodeCredentials.load(root / name, NOW)
    return made


def document(credentials: NodeCredentials, **changes: Any) -> dict[str, Any]:
    fields = {**ORDER.to_fields(), "envelope": seal_command(credentials, ORDER), **changes}
    loaded: dict[str, Any] = json.loads(json.dumps(fields))
    return loaded


def test_a_sealed_command_comes_out_as_it_was_signed(nodes: dict[str, NodeCredentials]) -> None:
    hub = nodes["hub"]
    command, signer = open_command("c-1", json.dumps(document(hub)), hub.anchor, NOW)
    assert signer == hub.identity
    assert command.sealed_fields() == ORDER.sealed_fields() and command.status is CommandStatus.PENDING
    assert Command.from_document("c-1", command.to_fields()) == command


def test_the_document_around_the_envelope_cannot_change_the_order(nodes: dict[str, NodeCredentials]) -> None:
    hub = nodes["hub"]
    forged = document(
        hub, target_id="*", payload_json='{"package":"evil"}', expires_at=0, command_type="deploy", status=2
    )
    command, _ = open_command("c-1", forged, hub.anchor, NOW)
    assert command.sealed_fields() == ORDER.sealed_fields()
    assert command.status is CommandStatus.EXECUTING


def test_an_envelope_does_not_serve_another_command(nodes: dict[str, NodeCredentials]) -> None:
    hub = nodes["hub"]
    with pytest.raises(BadSignatureError, match="what was signed is the command 'c-1'"):
        open_command("c-2", document(hub), hub.anchor, NOW)


def test_unsigned_and_malformed(nodes: dict[str, NodeCredentials]) -> None:
    hub = nodes["hub"]
    with pytest.raises(UnsignedError):
        open_command("c-1", ORDER.to_fields(), hub.anchor, NOW)
    for envelope in (None, 3, "x", {}, {"payload": 1}):
        with pytest.raises(UntrustedError):
            open_command("c-1", document(hub, envelope=envelope), hub.anchor, NOW)
    for payload in (b"{", b"[]", b"\xff", b"[" * 50_000):
        with pytest.raises(MalformedError):
            open_command("c-1", document(hub, envelope=seal(hub, PAYLOAD_TYPE, payload)), hub.anchor, NOW)
    with pytest.raises(BadSignatureError):
        open_command("c-1", document(hub, envelope=seal(hub, PAYLOAD_TYPE, b"{}")), hub.anchor, NOW)
    with pytest.raises(MalformedError):
        open_command("c-1", document(hub, envelope=seal(hub, "application/other", b"{}")), hub.anchor, NOW)


def test_fields_can_be_sealed_as_they_come(nodes: dict[str, NodeCredentials]) -> None:
    fields = {k: v for k, v in ORDER.to_fields().items() if k != "status"}
    envelope = seal_command(nodes["op"], fields)
    command, _ = open_command("c-1", {"envelope": envelope}, nodes["op"].anchor, NOW)
    assert command.sealed_fields() == ORDER.sealed_fields()
    odd = Command(id="c", payload_json="\ud800")  # half a surrogate pair, as JSON text may hold it
    assert (
        open_command("c", {"envelope": seal_command(nodes["op"], odd)}, nodes["op"].anchor, NOW)[0].payload_json
        == "\ud800"
    )


def test_who_may_order(nodes: dict[str, NodeCredentials]) -> None:
    allowed = {name: [a for a in ("edge-1", "edge-2", "camera") if may_act(n.identity, a)] for name, n in nodes.items()}
    everyone = ["edge-1", "edge-2", "camera"]
    assert allowed == {"hub": everyone, "op": everyone, "pub": [], "edge-1": ["edge-1"], "edge-2": ["edge-2", "camera"]}
    require_may_act(ORDER, nodes["hub"].identity, "edge-1")
    with pytest.raises(MissingRoleError, match=r"command c-1 was signed by pub .* may not order edge-1"):
        require_may_act(ORDER, nodes["pub"].identity, "edge-1")


def test_a_status_needs_no_new_signature(nodes: dict[str, NodeCredentials]) -> None:
    sealed = Command.from_document("c-1", document(nodes["hub"]))
    assert is_sealed(sealed) and is_sealed(replace(sealed, status=CommandStatus.FAILED))
    assert not is_sealed(replace(sealed, payload_json="{}")) and not is_sealed(ORDER)
    assert not is_sealed(replace(sealed, envelope={"payload": "%"})) and not is_sealed(
        replace(sealed, envelope={"payload": 1})
    )


@given(
    st.integers(min_value=0, max_value=4_000_000_000_000),
    st.integers(min_value=1, max_value=100_000),
    st.text("0123456789abcdef", min_size=12, max_size=12),
    st.text("0123456789abcdef", min_size=12, max_size=12),
)
def test_of_commands_of_one_second_the_later_has_the_greater_id(first: int, later: int, a: str, b: str) -> None:
    assert fresh_command_id(first / 1000, "deploy-app", a) < fresh_command_id(
        (first + later + 1) / 1000, "deploy-app", b
    )


def test_a_fresh_id_says_when() -> None:
    assert fresh_command_id(1_800_000_000.25, "pull", "app", "c0ffee") == "20270115T080000.250-pull-app-c0ffee"
