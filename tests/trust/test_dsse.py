import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peat_p2p.core.errors import UntrustedError
from peat_p2p.trust.dsse import seal, unseal
from peat_p2p.trust.errors import (
    BadSignatureError,
    ExpiredError,
    ForeignFormationError,
    MalformedError,
    MissingRoleError,
    UnsignedError,
)
from peat_p2p.trust.identity import Role

TYPE = "application/vnd.peat.test+json"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_an_envelope_gives_back_payload_and_signer(issue, now: float) -> None:
    publisher = issue("pub", Role.PUBLISHER)
    envelope = json.loads(json.dumps(seal(publisher, TYPE, b'{"a":1}')))
    before = copy.deepcopy(envelope)
    payload, who = unseal(envelope, TYPE, publisher.anchor, now, {Role.PUBLISHER, Role.HUB})
    assert (payload, who) == (b'{"a":1}', publisher.identity)
    assert envelope == before, "checking must not take the envelope apart"
    assert set(envelope) == {"payload", "payloadType", "signatures"}
    assert unseal(envelope, TYPE, publisher.anchor, now)[1] == who


def test_the_signature_is_standard_dsse(issue) -> None:
    """Checked with nothing but the primitive, as another implementation would."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    node = issue("n")
    envelope = seal(node, TYPE, b"payload")
    pae = b"DSSEv1 %d %s %d %s" % (len(TYPE), TYPE.encode(), 7, b"payload")
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    node.private_key.public_key().verify(signature, pae, ec.ECDSA(hashes.SHA256()))


def test_the_role_is_needed(issue, now: float) -> None:
    agent = issue("agent")
    with pytest.raises(MissingRoleError, match=r"agent .* signed this, but the role hub or operator is needed"):
        unseal(seal(agent, TYPE, b"x"), TYPE, agent.anchor, now, {Role.OPERATOR, Role.HUB})
    with pytest.raises(MissingRoleError):
        unseal(seal(agent, TYPE, b"x"), TYPE, agent.anchor, now, set())


def test_expired_and_foreign_signers(issue, other_formation, now: float) -> None:
    node, foreign = issue("n"), issue("n", of=other_formation)
    with pytest.raises(ExpiredError):
        unseal(seal(node, TYPE, b"x"), TYPE, node.anchor, node.identity.not_after + 1)
    with pytest.raises(ForeignFormationError):
        unseal(seal(foreign, TYPE, b"x"), TYPE, node.anchor, now)


def test_changes_are_noticed(issue, now: float) -> None:
    node, other = issue("n", Role.OPERATOR), issue("m")

    def refused(error: type[UntrustedError], **changes: Any) -> None:
        envelope = seal(node, TYPE, b"x")
        entry = envelope["signatures"][0]
        for key, value in changes.items():
            if key in ("keyid", "sig", "certificate"):
                entry[key] = value
                if value is None:
                    del entry[key]
            else:
                envelope[key] = value
        with pytest.raises(error):
            unseal(envelope, TYPE, node.anchor, now)

    refused(BadSignatureError, payload=b64(b"y"))
    refused(MalformedError, payloadType="application/vnd.peat.other+json")
    refused(BadSignatureError, keyid="0" * 64)
    refused(BadSignatureError, certificate=b64(other.identity.certificate))
    refused(BadSignatureError, certificate=b64(other.identity.certificate), keyid=other.identity.endpoint_id)
    refused(BadSignatureError, sig=b64(b"nonsense"))
    refused(UnsignedError, certificate=None)
    refused(MalformedError, certificate="not base64!")
    refused(MalformedError, certificate=b64(b"not a certificate"))
    refused(UnsignedError, signatures=[])
    refused(MalformedError, signatures={})
    refused(MalformedError, signatures=["x"])
    refused(MalformedError, payload=None)
    refused(MalformedError, payload="%%%")


def test_a_type_is_part_of_what_is_signed(issue, now: float) -> None:
    node = issue("n")
    envelope = seal(node, "application/vnd.peat.other+json", b"x")
    envelope["payloadType"] = TYPE
    with pytest.raises(BadSignatureError):
        unseal(envelope, TYPE, node.anchor, now)


def test_one_good_signature_of_several_suffices(issue, other_formation, now: float) -> None:
    good, foreign, agent = issue("pub", Role.PUBLISHER), issue("f", of=other_formation), issue("agent")
    envelope = seal(foreign, TYPE, b"x")
    envelope["signatures"] += seal(good, TYPE, b"x")["signatures"]
    assert unseal(envelope, TYPE, good.anchor, now, {Role.PUBLISHER})[1] == good.identity
    mixed = seal(good, TYPE, b"y")
    mixed["signatures"] += seal(agent, TYPE, b"x")["signatures"]
    mixed["payload"] = b64(b"x")
    with pytest.raises(BadSignatureError):  # the agent's is good, but an agent may not; the publisher's is of another
        unseal(mixed, TYPE, good.anchor, now, {Role.PUBLISHER})
    envelope["signatures"] = envelope["signatures"][:1] * 2
    with pytest.raises(MalformedError, match="Multiple"):
        unseal(envelope, TYPE, good.anchor, now)
    envelope["signatures"] = [{**envelope["signatures"][0], "keyid": str(i)} for i in range(9)]
    with pytest.raises(MalformedError, match="9 signatures"):
        unseal(envelope, TYPE, good.anchor, now)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, JSON, JSON, JSON)
@settings(max_examples=300, deadline=None)
def test_any_json_is_refused_as_untrusted(issue, now: float, whole: Any, payload: Any, entry: Any, sig: Any) -> None:
    anchor = issue("n").anchor
    for envelope in (
        whole,
        {"payload": payload, "payloadType": TYPE, "signatures": entry},
        {"payload": "eA==", "payloadType": TYPE, "signatures": [entry]},
        {"payload": "eA==", "payloadType": TYPE, "signatures": [{"keyid": "k", "sig": sig, "certificate": payload}]},
    ):
        with pytest.raises(UntrustedError):
            unseal(envelope, TYPE, anchor, now)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_changed_envelope_gives_another_payload(issue, now: float, data: st.DataObject) -> None:
    node = issue("n")
    text = bytearray(json.dumps(seal(node, TYPE, b"the payload")).encode())
    position = data.draw(st.integers(0, 2000)) % len(text)  # its length varies with the signature
    text[position] = data.draw(st.integers(32, 126))
    try:
        payload, who = unseal(json.loads(text), TYPE, node.anchor, now)
    except (ValueError, UntrustedError):
        return
    assert (payload, who) == (b"the payload", node.identity)
