import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.fleet.commands import CommandStatus
from peat_p2p.hub.orders import DEFAULT_EXPIRY_S, read_order

NOW = 1_800_000_000
GOOD = {"target_id": "*", "command_type": "pull", "payload": {"package": "app", "version": "1"}}


def read(**changes: Any) -> Any:
    asked = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
    return read_order(json.dumps(asked).encode(), now=NOW, fresh_id="fresh")


def test_an_order_is_read() -> None:
    command = read()
    assert (command.id, command.target_id, command.command_type) == ("fresh", "*", "pull")
    assert command.payload == {"package": "app", "version": "1"}
    assert command.status is CommandStatus.PENDING and command.created_at == NOW
    assert command.expires_at == NOW + DEFAULT_EXPIRY_S
    assert read(expires_in_s=0.5).expires_at == NOW + 1
    assert read(expires_at=0).expires_at == 0 and read(expires_at=NOW + 5).expires_at == NOW + 5
    assert read(payload=None, payload_json='{"package":"x"}').payload == {"package": "x"}
    assert read(id="my:order-1").id == "my:order-1"
    assert read(target_id="site:north").target_id == "site:north"
    assert read(command_type="reboot", payload=None).payload == {}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target_id": None}, "target_id"),
        ({"target_id": ""}, "target_id"),
        ({"target_id": "site:"}, "not allowed"),
        ({"target_id": "a b"}, "not allowed"),
        ({"target_id": 7}, "target_id"),
        ({"command_type": None}, "command_type"),
        ({"command_type": "Pull it"}, "command_type"),
        ({"payload": None}, "needs \"package\""),
        ({"payload": {"package": 3}}, "needs \"package\""),
        ({"payload": []}, "not a JSON object"),
        ({"payload": None, "payload_json": "{"}, "not a JSON object"),
        ({"payload": None, "payload_json": 3}, "not a JSON object"),
        ({"payload_json": "{}"}, "not both"),
        ({"expires_at": NOW}, "time to come"),
        ({"expires_at": "soon"}, "time to come"),
        ({"expires_at": 2**60}, "time to come"),
        ({"expires_in_s": 0}, "over 0"),
        ({"expires_in_s": True}, "over 0"),
        ({"expires_in_s": 1, "expires_at": 0}, "not both"),
        ({"id": ""}, "'id'"),
        ({"id": "a/b"}, "'id'"),
        ({"target": "*"}, "unknown key 'target'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        read(**changes)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"expires_in_s": NaN}'])
def test_no_json_object(body: bytes) -> None:
    with pytest.raises(InvalidInputError):
        read_order(body, now=NOW, fresh_id="fresh")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "id", "payload_json", "expires_at", "expires_in_s"]), JSON))
def test_any_body_is_an_order_or_is_refused(asked: dict[str, Any]) -> None:
    for body in (asked, {**GOOD, **asked}):
        try:
            command = read_order(json.dumps(body).encode(), now=NOW, fresh_id="fresh")
        except InvalidInputError:
            continue
        assert command.id and command.target_id and (command.expires_at == 0 or command.expires_at > NOW)
        json.dumps(command.to_fields())
