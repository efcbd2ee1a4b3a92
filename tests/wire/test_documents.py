import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.wire.documents import COLLECTIONS, from_json, from_mapping, to_fields, to_json
from peat_p2p.wire.gen.peat.sidecar.v1.sidecar_pb import (
    Cell,
    Command,
    CommandStatus,
    Platform,
    PlatformStatus,
    Track,
    TrackCategory,
)

text = st.text(max_size=20)
double = st.floats(allow_nan=False, allow_infinity=False)
int64 = st.integers(-(2**63), 2**63 - 1)
optional_text = st.none() | text
optional_double = st.none() | double
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet=st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)


def given_fields(**fields):
    return st.fixed_dictionaries(fields).map(lambda d: {k: v for k, v in d.items() if v is not None})


MESSAGES = {
    Platform: given_fields(
        id=text,
        platform_type=text,
        name=text,
        status=st.integers(0, 4).map(PlatformStatus) | st.integers(5, 2**31 - 1),
        latitude=double,
        longitude=double,
        altitude_m=double,
        readiness=double,
        capabilities=st.lists(text, max_size=4),
        unit_id=optional_text,
        callsign=optional_text,
    ),
    Cell: given_fields(
        id=text,
        name=text,
        platform_count=st.integers(0, 2**32 - 1),
        center_latitude=double,
        center_longitude=double,
        capabilities=st.lists(text, max_size=4),
        formation_id=optional_text,
        leader_id=optional_text,
    ),
    Track: given_fields(
        id=text,
        source_platform=text,
        cell_id=optional_text,
        formation_id=optional_text,
        latitude=double,
        longitude=double,
        altitude_m=optional_double,
        cep_m=optional_double,
        heading_deg=optional_double,
        speed_mps=optional_double,
        classification=text,
        confidence=double,
        category=st.integers(0, 5).map(TrackCategory),
    ),
    Command: given_fields(
        id=text,
        target_id=text,
        command_type=text,
        status=st.integers(0, 5).map(CommandStatus),
        created_at=int64,
        expires_at=int64,
        payload_json=text,
    ),
}


@pytest.mark.parametrize("kind", COLLECTIONS)
@given(data=st.data())
def test_what_was_written_reads_back(kind, data):
    fields = data.draw(MESSAGES[kind])
    message = kind(**fields)
    again = from_json(kind, message.id, to_json(message))
    assert again == message
    for field in kind.desc().fields:
        assert again.has_field(field.name) == message.has_field(field.name), field.name
    assert again.to_binary() == kind.from_binary(message.to_binary()).to_binary()


@pytest.mark.parametrize("kind", COLLECTIONS)
@given(document=st.dictionaries(st.text(max_size=8), json_values, max_size=4), data=st.data())
def test_any_document_reads_as_something_that_can_be_sent(kind, document, data):
    names = [field.name for field in kind.desc().fields]
    document = {**document, **data.draw(st.dictionaries(st.sampled_from(names), json_values, max_size=6))}
    message = from_json(kind, "the-id", json.dumps(document))
    assert message.id == "the-id"
    assert kind.from_binary(message.to_binary()) == message
    assert kind.from_json(message.to_json()) == message


def test_stored_form_has_the_proto_names_numbers_for_enums_and_int64_and_every_default():
    command = Command(id="c", status=CommandStatus.PENDING, created_at=2**63 - 1, payload_json='{"a":1}')
    assert to_json(command) == (
        '{"id":"c","target_id":"","command_type":"","status":1,"created_at":9223372036854775807,"expires_at":0,'
        '"payload_json":"{\\"a\\":1}"}'
    )
    platform = to_fields(Platform(id="p", latitude=5, status=PlatformStatus.BUSY, capabilities=["ä"]))
    assert platform["latitude"] == "5.0"
    assert platform["status"] == "2"
    assert platform["capabilities"] == '["ä"]'
    assert platform["readiness"] == "0.0"
    assert "callsign" not in platform


def test_optional_fields_are_absent_unless_set_even_to_their_default():
    assert "altitude_m" not in to_fields(Track(id="t"))
    assert to_fields(Track(id="t", altitude_m=0.0))["altitude_m"] == "0.0"
    assert from_mapping(Track, "t", {"altitude_m": 0}).has_field("altitude_m")
    assert not from_mapping(Track, "t", {"altitude_m": None}).has_field("altitude_m")


@pytest.mark.parametrize(
    ("key", "raw", "read"),
    [
        ("created_at", 5.0, 5),
        ("created_at", 5.5, 0),
        ("created_at", "5", 0),
        ("created_at", True, 0),
        ("created_at", 2**63, 0),
        ("created_at", -(2**63), -(2**63)),
        ("status", 99, 99),
        ("status", "COMMAND_STATUS_PENDING", 0),
        ("status", 2**31, 0),
        ("target_id", 5, ""),
        ("target_id", None, ""),
        ("target_id", "\ud800", ""),
        ("target_id", "\n", "\n"),
        ("id", "another", "the-id"),
    ],
)
def test_wrongly_typed_fields_read_as_their_default(key, raw, read):
    assert getattr(from_mapping(Command, "the-id", {key: raw, "unknown": 1}), key) == read


@pytest.mark.parametrize("raw", [True, "1.0", [], 10**400, math.inf])
def test_a_wrong_double_reads_as_zero(raw):
    assert from_mapping(Platform, "p", {"latitude": raw}).latitude == 0.0


def test_integers_read_as_doubles():
    assert from_mapping(Platform, "p", {"latitude": 52}).latitude == 52.0


@pytest.mark.parametrize("raw", ["rover", [1], ["a", None], ["\ud800"], {"a": 1}])
def test_a_wrong_list_reads_as_empty(raw):
    assert from_mapping(Platform, "p", {"capabilities": raw}).capabilities == []


@pytest.mark.parametrize("document", ["", "[]", "null", "7", '"x"', "{", "[" * 100_000])
def test_what_is_not_an_object_reads_as_an_empty_message(document):
    assert from_json(Platform, "p", document) == Platform(id="p")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_json_cannot_hold_is_refused(value):
    with pytest.raises(InvalidInputError, match="longitude"):
        to_fields(Platform(id="p", longitude=value))
