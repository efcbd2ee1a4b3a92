"""The small parts: JSON text, queries, chains, updates as bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycrdt import Doc, Map

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.documents.chain import Chain, proves
from peat_p2p.documents.codec import decode_update, encode_update
from peat_p2p.documents.content import (
    EXISTS,
    Anchor,
    Content,
    Value,
    canonical,
    combine,
    decode,
    difference,
    encode,
    extend,
)
from peat_p2p.documents.jsontext import check_fields, join_object, split_object
from peat_p2p.documents.parts import Part, from_row
from peat_p2p.documents.query import All, And, Eq, Greater, Less, Not, Or, check, matches
from peat_p2p.documents.stamps import MAX_STAMP, StampClock, stamp_at, stamp_time
from peat_p2p.documents.types import Beat, BeatUpdate, CertificateUpdate, PartKey, PartUpdate
from peat_p2p.documents.ymap import CLIENT, ROOT, BadContentError, read_update

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=10,
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(suppress_health_check=[HealthCheck.too_slow])  # it counts the time that a busy machine takes
@given(st.dictionaries(names, json_values, max_size=6), st.sampled_from([None, 1]), st.booleans())
def test_taking_apart_and_putting_together_changes_nothing(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        return
    fields = split_object(f" {text}\n")
    assert json.loads(join_object(fields)) == value
    assert check_fields(fields) == fields
    assert split_object(join_object(fields)) == fields


def test_every_value_stays_as_written():
    text = '{"a": 1.10 ,"b":-0,"c":123456789012345678901234567890,"d":1E-7,"e":[1.0,  2],"f":"\\u00e9/\\/"}'
    assert split_object(text) == {
        "a": "1.10",
        "b": "-0",
        "c": "123456789012345678901234567890",
        "d": "1E-7",
        "e": "[1.0,  2]",
        "f": '"\\u00e9/\\/"',
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1 column 1: a document is a JSON object"),
        ("[]", "a JSON object"),
        ("nul", "a JSON object"),
        ('{"a":1', "comma or the closing brace"),
        ('{"a":1,}', "name in double quotes"),
        ('{"a" 1}', "colon is missing after 'a'"),
        ('{"a":}', "line 1 column 6"),
        ('{\n "a": 1,\n "a": 2}', "line 3 column 2: field 'a' stands twice"),
        ('{"a":{"b":1,"b":2}}', "'b' stands twice"),
        ('{"a":NaN}', "NaN"),
        ('{"a":-Infinity}', "Infinity"),
        ('{"a":01}', "line 1 column 7"),
        ('{"a":"\n"}', "line 1 column 7"),
        ("{'a':1}", "double quotes"),
        ('{"a":1} x', "something after the object"),
        ('{"\\ud800":1}', "surrogate"),
        ('{"a":"\ud800"}', "surrogate"),
        ("\ufeff{}", "a JSON object"),
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ],
)
def test_bad_json_is_refused_with_its_place(text, says):
    with pytest.raises(InvalidInputError, match=says):
        split_object(text)


def test_nesting_has_a_limit_of_its_own():
    deep = "[" * 100 + '"[[[["' + "]" * 100
    assert split_object(f'{{"a":{deep}}}') == {"a": deep} == check_fields({"a": deep})
    wide = "[" + ",".join(["[]"] * 1000) + "]"
    assert check_fields({"a": wide}) == {"a": wide}
    with pytest.raises(InvalidInputError, match="100 levels"):
        split_object(f'{{"a":[{deep}]}}')
    with pytest.raises(InvalidInputError, match="100 levels"):
        check_fields({"a": f"[{deep}]"})


def test_a_number_of_a_million_digits_is_just_text():
    digits = "1" * 1_000_000
    assert split_object(f'{{"a":{digits}}}')["a"] == digits


@pytest.mark.parametrize("text", ["", " ", "1 2", "{", "nope", '"a" "b"'])
def test_a_field_given_apart_is_one_value(text):
    with pytest.raises(InvalidInputError):
        check_fields({"a": text})


DOCUMENT = {
    "n": "10",
    "big": "9007199254740993",
    "x": "1.50",
    "s": '"b"',
    "t": "true",
    "z": "null",
    "o": "{}",
    "l": "[1]",
}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (All(), True),
        (Eq("n", "10"), True),
        (Eq("n", "10.0"), True),
        (Eq("n", "1e1"), True),
        (Eq("n", '"10"'), False),
        (Eq("big", "9007199254740992"), False),
        (Eq("big", "9007199254740993"), True),
        (Eq("s", '"b"'), True),
        (Eq("s", '"\\u0062"'), True),
        (Eq("t", "true"), True),
        (Eq("t", "1"), False),
        (Eq("z", "null"), True),
        (Eq("missing", "null"), False),
        (Eq("o", "null"), False),
        (Less("n", "11"), True),
        (Less("n", "10"), False),
        (Greater("n", "9"), True),
        (Greater("big", "9007199254740992"), True),
        (Less("n", '"z"'), False),
        (Less("s", '"c"'), True),
        (Greater("s", '"a"'), True),
        (Greater("s", "1"), False),
        (Less("t", "true"), False),
        (Less("missing", "1"), False),
        (Greater("l", "0"), False),
        (Not(Less("missing", "1")), True),
        (And(()), True),
        (Or(()), False),
        (And((Eq("n", "10"), Eq("s", '"b"'))), True),
        (And((Eq("n", "10"), Eq("s", '"x"'))), False),
        (Or((Eq("n", "1"), Eq("s", '"b"'))), True),
        (Not(All()), False),
    ],
)
def test_query(query, expected):
    check(query)
    assert matches(query, DOCUMENT) is expected


@pytest.mark.parametrize("value", ["", "ready", "{}", "[1]", "NaN", "1 2", "1" * 500])
def test_a_query_value_is_a_json_scalar(value):
    with pytest.raises(InvalidInputError, match="JSON scalar"):
        check(And((Eq("a", value),)))


def test_a_query_is_bounded():
    deep = All()
    for _ in range(100):
        deep = Not(deep)
    for query in (deep, And(tuple(All() for _ in range(2000)))):
        with pytest.raises(InvalidInputError, match="at most"):
            check(query)


def test_chain_proves_forward_only():
    chain = Chain(b"s" * 16, 1000)
    at_300, at_700 = chain.preimage(300), chain.preimage(700)
    assert proves(at_300, 300, chain.end, 0)
    assert proves(at_700, 700, at_300, 300)
    assert not proves(at_300, 300, at_700, 700)
    assert not proves(at_300, 301, chain.end, 0)
    assert not proves(at_300[:-1], 300, chain.end, 0)
    assert not proves(at_300, 1 << 40, chain.end, 0)
    assert chain.preimage(1000) == b"s" * 16
    with pytest.raises(ValueError, match="1001"):
        chain.preimage(1001)


def test_stamps_only_rise():
    clock = StampClock()
    first = clock.next(1_700_000_000.0, 0)
    assert stamp_time(first) == 1_700_000_000.0
    back = clock.next(0.0, 0)
    assert back > first
    far = stamp_at(4e9)
    assert clock.next(1_700_000_001.0, far) == far + 1
    assert clock.next(1_700_000_002.0, 0) < far, "another's clock is not taken over"
    assert stamp_at(1e300) < MAX_STAMP


KEY = PartKey("things", "one", "ab" * 32, 7)
stamps = st.integers(1, MAX_STAMP)
contents = st.builds(  # each says something, as parts do
    Content,
    st.dictionaries(names | st.just(EXISTS), st.builds(Value, stamps, names), max_size=5).map(
        lambda fields: {n: Value(v.stamp, "true") if n == EXISTS else v for n, v in fields.items()}
    ),
    st.just(0) | stamps,
    st.none() | st.builds(Anchor, stamps, st.binary(min_size=16, max_size=16), st.integers(1, 1 << 40), st.just(99)),
).filter(lambda content: content.version)


@given(contents, contents)
def test_content_survives_its_form_and_differences(first, second):
    form = encode(first)
    assert decode(form.state) == first
    after = Content({**first.fields, **second.fields}, second.deleted or first.deleted, second.anchor or first.anchor)
    longer = extend(form.state, first, after)
    assert decode(longer.state) == after
    if longer.count > form.count:
        delta = difference(longer.state, form.count)
        assert combine(form.state, delta) == (longer, after)
        assert combine(longer.state, delta) == (longer, after)


@given(contents, contents, st.integers(0, 1 << 63))
def test_the_signed_bytes_differ_when_anything_does(first, second, generation):
    one = canonical(KEY, generation, first)
    assert one == canonical(KEY, generation, decode(encode(first).state))
    assert (one == canonical(KEY, generation, second)) == (first == second)
    assert one != canonical(KEY, generation + 1, first)
    assert one != canonical(KEY._replace(collection="thing", doc_id="sone"), generation, first)


@given(st.binary(max_size=200))
def test_any_bytes_are_content_or_refused(data):
    try:
        combine(b"", data)
    except BadContentError:
        pass


@given(contents, contents, st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_updates_are_content_or_refused(first, second, damage):
    form = encode(first)
    after = Content({**first.fields, **second.fields}, second.deleted or first.deleted, second.anchor or first.anchor)
    data = bytearray(extend(form.state, first, after).state)
    for at, value in damage:
        data[at % len(data)] = value
    try:
        combine(form.state, bytes(data))
    except BadContentError:
        pass


def pycrdt_reads(data):
    """What pycrdt says of a map's bytes, or None when it refuses them."""
    doc = Doc(client_id=CLIENT)
    root = doc.get(ROOT, type=Map)
    try:
        doc.apply_update(data)
    except Exception:
        return None
    return json.loads(str(root))


@given(contents, contents, st.booleans(), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=2))
def test_what_is_read_without_pycrdt_is_what_pycrdt_reads(first, second, is_overwritten, damage):
    data = bytearray(encode(first).state)
    if is_overwritten:
        fields = {**first.fields, **second.fields}
        after = Content(fields, second.deleted or first.deleted, second.anchor or first.anchor)
        data = bytearray(extend(bytes(data), first, after).state)
    for at, value in damage:
        data[at % len(data)] = value
    try:
        entries = read_update(bytes(data))
    except BadContentError:
        return
    if entries is not None:
        assert entries == pycrdt_reads(bytes(data))
    assert is_overwritten or damage or entries is not None


def test_a_number_has_one_form():
    state = encode(Content({"a": Value(1, "1")})).state
    assert read_update(state) == {"fa": "1 1"}
    assert state[1] == 1
    with pytest.raises(BadContentError):
        read_update(state[:1] + b"\x81\x00" + state[2:])


def test_hostile_counts_cost_nothing():
    for data in (
        b"\x80\xbb\x808",
        b"\x01\xff\xff\xff\x7f\x01\x00",
        b"\x01\x01\x01\x00\x21\x01\x01p\x01a\xff\xff\xff\x7f\x00",
    ):
        with pytest.raises(BadContentError):
            combine(b"", data)


updates = st.one_of(
    st.builds(BeatUpdate, st.just(KEY), st.builds(Beat, st.integers(0, 1 << 20), st.binary(min_size=16, max_size=16))),
    st.builds(
        PartUpdate,
        st.just(KEY),
        st.integers(0, (1 << 64) - 1),
        st.integers(0, (1 << 64) - 1),
        st.integers(0, 1 << 20),
        st.binary(max_size=50),
        st.binary(min_size=64, max_size=64),
        st.none() | st.builds(Beat, st.integers(0, 1 << 20), st.binary(min_size=16, max_size=16)),
    ),
)


@given(updates)
def test_updates_survive_the_wire(update):
    assert decode_update(KEY, encode_update(update)) == update


def test_certificates_survive_the_wire():
    key = PartKey("_certificates", "ab" * 32, "ab" * 32, 0)
    update = CertificateUpdate(key, b"der")
    assert decode_update(key, encode_update(update)) == update
    with pytest.raises(InvalidInputError):
        decode_update(KEY, encode_update(update))


@given(st.binary(max_size=120))
def test_any_bytes_are_an_update_or_refused(data):
    try:
        update = decode_update(KEY, data)
    except InvalidInputError:
        return
    assert decode_update(KEY, encode_update(update)) == update


def test_rows_of_parts_survive():
    part = Part(KEY, 5, 6, 7, b"state", b"s" * 64, Beat(9, b"p" * 16), 10, 11, 12)
    assert from_row(part.to_row(), {}) == part
    for row in (b"", part.to_row()[:40], b"\xff" + part.to_row()[1:]):
        with pytest.raises(BadContentError):
            from_row(row, {})
