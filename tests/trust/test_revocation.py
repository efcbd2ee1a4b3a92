import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peat_p2p.core.errors import InvalidInputError, UntrustedError
from peat_p2p.trust.dsse import seal
from peat_p2p.trust.errors import (
    BadSignatureError,
    ForeignFormationError,
    MalformedError,
    MissingRoleError,
    RevokedError,
)
from peat_p2p.trust.identity import Role
from peat_p2p.trust.revocation import (
    PAYLOAD_TYPE,
    Kind,
    Proved,
    Revocation,
    RevocationSet,
    open_revocation,
    seal_revocation,
)

DIGEST = "ab" * 32


def stored(document: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(json.dumps(document))
    return loaded


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.HUB])
def test_a_revocation_takes_trust_away(issue, now: float, role: Role) -> None:
    boss, bad, good = issue(f"boss-{role}", role), issue("captured"), issue("n")
    made = Revocation.of_endpoint(bad.identity.endpoint_id, reason="lost in the field", created_at=int(now))
    package = Revocation.of_package(f"blake3:{DIGEST}", created_at=int(now))
    documents = {r.doc_id: stored(seal_revocation(boss, r)) for r in (made, package)}
    revoked = RevocationSet.read(documents, good.anchor)
    assert revoked.endpoint(bad.identity.endpoint_id) == made and len(revoked) == 2
    assert revoked.endpoints() == {bad.identity.endpoint_id} and revoked.packages() == {DIGEST}
    assert revoked.package(DIGEST) == revoked.package(f"blake3:{DIGEST}") == package
    with pytest.raises(RevokedError, match="captured was revoked: lost in the field"):
        revoked.check_identity(bad.identity)
    with pytest.raises(RevokedError, match="package with manifest"):
        revoked.check_package(f"blake3:{DIGEST}")
    revoked.check_identity(good.identity)
    revoked.check_package("blake3:" + "cd" * 32)
    assert {p.signer.node_id for p in revoked} == {boss.identity.node_id}


def test_the_kinds_do_not_mix(issue, now: float) -> None:
    made = Revocation.of_package(DIGEST, created_at=int(now))
    revoked = RevocationSet.of([Proved(made, issue("op", Role.OPERATOR).identity)])
    assert revoked.package(DIGEST) and revoked.endpoint(DIGEST) is None
    assert not RevocationSet.of() and RevocationSet.of().endpoint(DIGEST) is None


def test_who_may_not_revoke(issue, other_formation, now: float) -> None:
    made = Revocation.of_package(DIGEST, created_at=int(now))
    payload = json.dumps(made.to_fields()).encode()
    for node in (issue("agent"), issue("pub", Role.PUBLISHER)):
        with pytest.raises(MissingRoleError, match="may not revoke"):
            seal_revocation(node, made)
        forged = {**made.to_fields(), "envelope": seal(node, PAYLOAD_TYPE, payload)}
        with pytest.raises(MissingRoleError):
            open_revocation(made.doc_id, forged, node.anchor)
        assert not RevocationSet.read({made.doc_id: forged}, node.anchor)
    foreign = issue("op", Role.OPERATOR, of=other_formation)
    with pytest.raises(ForeignFormationError):
        open_revocation(made.doc_id, seal_revocation(foreign, made), issue("agent").anchor)


def test_what_stands_beside_the_envelope_changes_nothing(issue, now: float) -> None:
    boss = issue("op", Role.OPERATOR)
    made = Revocation.of_package(DIGEST, created_at=int(now))
    document = {**seal_revocation(boss, made), "subject": "ef" * 32, "kind": "endpoint"}
    assert open_revocation(made.doc_id, document, boss.anchor).revocation == made
    with pytest.raises(BadSignatureError, match="what was signed is the revocation package:abab"):
        open_revocation("package:" + "ef" * 32, document, boss.anchor)


def test_a_revocation_outlives_its_signers_certificate(issue, now: float) -> None:
    boss = issue("op", Role.OPERATOR)
    at_the_end = int(boss.identity.not_after)
    assert open_revocation(
        f"package:{DIGEST}", seal_revocation(boss, Revocation.of_package(DIGEST, created_at=at_the_end)), boss.anchor
    )
    late = Revocation.of_package(DIGEST, created_at=at_the_end + 10)
    with pytest.raises(UntrustedError, match="expired"):
        open_revocation(late.doc_id, seal_revocation(boss, late), boss.anchor)


def proved(issue: Any, signer: str, subject: str, at: int) -> Proved:
    boss, target = issue(signer, Role.OPERATOR), issue(subject, Role.OPERATOR)
    return Proved(Revocation.of_endpoint(target.identity.endpoint_id, created_at=at), boss.identity)


def test_a_revoked_signer_revokes_nothing_more(issue) -> None:
    by_a = proved(issue, "op-a", "op-b", 100)
    before, after = proved(issue, "op-b", "op-c", 50), proved(issue, "op-b", "op-a", 200)
    expected = {by_a.revocation.subject, before.revocation.subject}
    for order in itertools.permutations([by_a, before, after]):
        assert RevocationSet.of(order).endpoints() == expected
    chain = [proved(issue, "op-a", "op-b", 1), proved(issue, "op-b", "op-c", 2), proved(issue, "op-c", "op-a", 3)]
    assert RevocationSet.of(chain).endpoints() == {chain[0].revocation.subject, chain[2].revocation.subject}


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"), st.integers(0, 5)), max_size=8), st.randoms()
)
@settings(deadline=None)
def test_every_node_comes_to_the_same_set(issue, made: list[tuple[str, str, int]], chance: Any) -> None:
    all_of_them = [proved(issue, f"op-{s}", f"op-{t}", at) for s, t, at in made]
    first = RevocationSet.of(all_of_them)
    chance.shuffle(all_of_them)
    assert RevocationSet.of(all_of_them).endpoints() == first.endpoints()
    assert first.endpoints() <= {p.revocation.subject for p in all_of_them}


@pytest.mark.parametrize(
    "changes",
    [{"subject": "AB" * 32}, {"subject": ""}, {"reason": "x" * 600}, {"created_at": -1}, {"created_at": True},
     {"created_at": 2**60}, {"created_at": None}],
)  # fmt: skip
def test_malformed_revocations_are_not_made(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Revocation(**{"kind": Kind.PACKAGE, "subject": DIGEST, "created_at": 1, **changes})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(JSON, JSON)
@settings(deadline=None)
def test_any_content_of_an_operator_is_read_or_refused(issue, content: Any, value: Any) -> None:
    """Signed garbage is garbage, and never another kind of failure."""
    boss = issue("op", Role.OPERATOR)
    good = Revocation.of_package(DIGEST, created_at=int(boss.identity.not_before) + 5).to_fields()
    payloads = [json.dumps(content).encode()]
    payloads += [json.dumps({**good, key: value}).encode() for key in good]
    for payload in payloads:
        document = {"envelope": seal(boss, PAYLOAD_TYPE, payload)}
        try:
            found = open_revocation(f"package:{DIGEST}", document, boss.anchor)
        except UntrustedError:
            continue
        assert found.revocation.subject == DIGEST
    for document in ({}, {"envelope": content}, {"envelope": seal(boss, "other/type", b"{}")}):
        with pytest.raises(UntrustedError):
            open_revocation("x", document, boss.anchor)
    with pytest.raises(MalformedError):
        open_revocation("x", {"envelope": seal(boss, PAYLOAD_TYPE, b"[" * 50_000)}, boss.anchor)


def test_what_is_asked_for_by_a_plain_document(issue, now: float) -> None:
    boss = issue("op", Role.OPERATOR)
    asked = Revocation.asked_for(
        f"package:{DIGEST}", {"reason": "bad build", "created_at": 1, "subject": "x"}, now + 0.5
    )
    assert asked == Revocation.of_package(DIGEST, reason="bad build", created_at=int(now))
    assert open_revocation(asked.doc_id, seal_revocation(boss, asked), boss.anchor).revocation == asked
    for doc_id, fields in (("x", {}), ("node:" + DIGEST, {}), ("endpoint:", {}), (f"package:{DIGEST}", {"reason": 3})):
        with pytest.raises(InvalidInputError):
            Revocation.asked_for(doc_id, fields, now)
