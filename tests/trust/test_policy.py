import pytest
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.core.errors import DeniedError, UntrustedError
from peat_p2p.trust.access import may_call, require_caller
from peat_p2p.trust.errors import RevokedError
from peat_p2p.trust.identity import Identity, Role
from peat_p2p.trust.policy import Claims, Standing, delete_standing, owner_of, refusal, standing
from peat_p2p.trust.revocation import Proved, Revocation, RevocationSet

NONE, MEMBER, RIGHTFUL = Standing.NONE, Standing.MEMBER, Standing.RIGHTFUL


def who(node_id: str, *roles: Role, agents: tuple[str, ...] = ()) -> Identity:
    return Identity(node_id, f"{node_id:0<64}", "alpha", frozenset(roles), 0, 1, b"", frozenset(agents))


OP, HUB, PUB = who("op", Role.OPERATOR), who("hub", Role.HUB), who("pub", Role.PUBLISHER)
EDGE, OTHER = who("edge-1", Role.AGENT, agents=("camera",)), who("edge-2", Role.AGENT)

OWNED = [
    "platforms/edge-1",
    "deployments/edge-1:app",
    "packages/edge-1:app:1-x",
    "packages/edge-1:a:b",
    "platforms/camera",
]


def place(text: str) -> tuple[str, str]:
    collection, _, doc_id = text.partition("/")
    return collection, doc_id


@pytest.mark.parametrize("document", OWNED)
def test_an_agents_documents_are_its_own_and_the_operators(document: str) -> None:
    where = place(document)
    for writer, right in ((EDGE, RIGHTFUL), (OP, RIGHTFUL), (HUB, RIGHTFUL), (OTHER, NONE), (PUB, NONE)):
        assert standing(writer, *where, "last_seen") is right
        assert delete_standing(writer, *where) is right
        assert bool(refusal(writer, *where, ["x"], False)) is (right is NONE)
        assert bool(refusal(writer, *where, [], True)) is (right is NONE)
    assert f"may not write {document}: only the sidecar of" in refusal(OTHER, *where, ["x"], True)
    assert f"may not delete {document}" in refusal(OTHER, *where, [], True)


def test_what_nobody_claims_any_member_may_report() -> None:
    assert standing(OTHER, "platforms", "drone-7", "latitude", claimed=False) is MEMBER
    assert refusal(OTHER, "platforms", "drone-7", ["latitude"], True, claimed=False) == ""
    assert standing(EDGE, "platforms", "edge-1", "x", claimed=False) is RIGHTFUL


def test_what_is_claimed_is_known_from_certificates() -> None:
    claims = Claims()
    assert not claims.claimed("platforms", "edge-1")
    assert claims.learn(EDGE) and not claims.learn(EDGE) and claims.learn(OTHER)
    assert all(claims.claimed(*place(document)) for document in OWNED)
    assert claims.claimed("receipts", "c:edge-2") and not claims.claimed("platforms", "drone-7")
    assert not claims.claimed("commands", "edge-1"), "a command belongs to no agent"


def test_receipts_are_the_agents_word_alone() -> None:
    where = ("receipts", "cmd:7:edge-1")
    assert [standing(w, *where, "status") for w in (EDGE, OTHER, OP, HUB)] == [RIGHTFUL, NONE, NONE, NONE]
    assert [delete_standing(w, *where) for w in (EDGE, OTHER, OP, HUB)] == [RIGHTFUL, NONE, RIGHTFUL, RIGHTFUL]
    assert refusal(HUB, *where, ["status"], False).endswith("only the sidecar of edge-1 may")
    assert refusal(HUB, *where, [], True) == ""


def test_nobody_unmakes_a_hubs_command() -> None:
    where = ("commands", "c1")
    for field in ("payload_json", "envelope", "target_id", "status"):
        assert standing(HUB, *where, field) is standing(OP, *where, field) is RIGHTFUL
        assert standing(OTHER, *where, field, target="edge-1") is MEMBER
    assert (
        standing(EDGE, *where, "status", target="edge-1")
        is standing(EDGE, *where, "status", target="camera")
        is RIGHTFUL
    )
    assert standing(EDGE, *where, "envelope", target="edge-1") is MEMBER
    assert standing(EDGE, *where, "status") is MEMBER, "the target is not known"
    assert delete_standing(OTHER, *where) is MEMBER and delete_standing(HUB, *where) is RIGHTFUL
    assert refusal(OTHER, *where, ["payload_json"], True) == "", "stored, and acted on by its own agent at most"


@pytest.mark.parametrize("collection", ["rollouts", "desired", "revocations"])
def test_orders_to_all_need_a_role(collection: str) -> None:
    assert refusal(OP, collection, "x", ["a"], True) == refusal(HUB, collection, "x", ["a"], True) == ""
    for writer in (EDGE, PUB):
        assert refusal(writer, collection, "x", ["a"], False).endswith("the role operator or hub is needed")
        assert "may not delete" in refusal(writer, collection, "x", [], True)


def test_a_publishers_manifest_stands_above_a_holders_copy() -> None:
    assert standing(PUB, "manifests", "ff", "envelope") is RIGHTFUL
    assert standing(EDGE, "manifests", "ff", "envelope") is MEMBER
    assert refusal(EDGE, "manifests", "ff", ["envelope"], False) == ""


def test_other_collections_are_everybodys() -> None:
    for collection in ("tracks", "cells", "anything"):
        assert owner_of(collection, "edge-1:x") is None
        assert refusal(OTHER, collection, "edge-1", ["a"], True) == ""


@given(st.sampled_from(["platforms", "deployments", "packages", "receipts"]), st.text(max_size=20), st.text(max_size=5))
def test_a_captured_agent_lies_about_itself_alone(collection: str, doc_id: str, field: str) -> None:
    """Whatever the id looks like, what is not its own is refused."""
    owner = owner_of(collection, doc_id)
    allowed = not refusal(EDGE, collection, doc_id, [field], True)
    assert allowed is (owner in ("edge-1", "camera"))


def test_who_may_call_an_api() -> None:
    hub, op, edge, edge2 = HUB, OP, EDGE, OTHER
    allowed = {(c.node_id, n.node_id) for c in (hub, op, edge, edge2) for n in (hub, op, edge, edge2) if may_call(c, n)}
    assert allowed == {
        ("hub", "hub"), ("hub", "edge-1"), ("hub", "edge-2"),
        ("op", "hub"), ("op", "op"), ("op", "edge-1"), ("op", "edge-2"),
        ("edge-1", "edge-1"), ("edge-2", "edge-2"),
    }  # fmt: skip
    helper = who("helper", Role.AGENT, agents=("edge-1", "hub"))
    assert may_call(helper, edge) and not may_call(helper, hub), "no voice is gained"


def test_a_caller_proves_itself_by_tls(issue, shake, now: float) -> None:
    node, operator, stranger = issue("n"), issue("op", Role.OPERATOR), issue("m")
    server, _ = shake(node.server_context(), operator.client_context())
    assert require_caller(server, node, now) == operator.identity
    revoked = RevocationSet.of(
        [
            Proved(
                Revocation.of_endpoint(operator.identity.endpoint_id, created_at=1),
                issue("op-2", Role.OPERATOR).identity,
            )
        ]
    )
    with pytest.raises(RevokedError):
        require_caller(server, node, now, revoked)
    server, _ = shake(node.server_context(), stranger.client_context())
    with pytest.raises(DeniedError, match="may not use the API of n"):
        require_caller(server, node, now, revoked)
    with pytest.raises(UntrustedError):
        require_caller(server, node, now + 10**9)
