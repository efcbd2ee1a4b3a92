from __future__ import annotations

import base64
import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peat_p2p.content.manifest import (
    PAYLOAD_TYPE,
    Manifest,
    WrongManifestError,
    manifest_digest,
    open_manifest,
    seal_manifest,
    unverified_payload,
)
from peat_p2p.core.clock import ManualClock
from peat_p2p.core.errors import InvalidInputError, TooLargeError, UntrustedError
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.dsse import seal
from peat_p2p.trust.errors import BadSignatureError, ExpiredError, ForeignFormationError, MissingRoleError

GOOD = Manifest(
    name="radio-tools",
    version="1.4.2+build~3",
    arch="amd64",
    digest="blake3:" + "ab" * 32,
    total_bytes=123_456_789,
    files=42,
    chunks=17,
    infohash="cd" * 32,
    created=1_750_000_000,
    annotations={"source": "größe"},
)


def test_payload_survives_and_is_small() -> None:
    payload = GOOD.to_payload()
    assert Manifest.from_payload(payload) == GOOD
    assert len(payload) < 1024
    assert GOOD.reference == "radio-tools:1.4.2+build~3"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "../x"),
        ("name", "a/b"),
        ("name", "a:b"),
        ("name", ".hidden"),
        ("version", "1 0"),
        ("version", "a/b"),
        ("version", ".."),
        ("arch", "AMD64"),
        ("arch", ""),
        ("digest", "sha256:" + "ab" * 32),
        ("digest", "blake3:" + "AB" * 32),
        ("infohash", "cd" * 20),
        ("total_bytes", -1),
        ("total_bytes", 1 << 60),
        ("files", True),
        ("chunks", 1.5),
        ("annotations", {"a": 1}),
        ("annotations", {"": "a"}),
    ],
)
def test_malformed_field_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidInputError):
        replace(GOOD, **{field: value})
    content = json.loads(GOOD.to_payload())
    content[field] = value
    with pytest.raises(InvalidInputError):
        Manifest.from_payload(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def _altered(**changes: object) -> bytes:
    content = json.loads(GOOD.to_payload())
    for key, value in changes.items():
        if value is None:
            del content[key]
        else:
            content[key] = value
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 5000,
        _altered(schema=2),
        _altered(schema=True),
        _altered(schema="1"),
        _altered(extra=1),
        _altered(created=None),
        _altered(name=None),
        _altered(annotations=[]),
        GOOD.to_payload() + b" ",
        GOOD.to_payload().replace(b'"files":42', b'"files": 42'),
        GOOD.to_payload().replace(b'"files":42', b'"files":41,"files":42'),
        GOOD.to_payload().replace("größe".encode(), b"gr\\u00f6\\u00dfe"),
    ],
)
def test_anything_but_canonical_json_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidInputError):
        Manifest.from_payload(payload)


def test_annotations_over_the_limit_are_refused() -> None:
    with pytest.raises(TooLargeError, match="shorten its annotations"):
        replace(GOOD, annotations={"a": "b" * 9000}).to_payload()
    with pytest.raises(InvalidInputError, match="not Unicode text"):
        replace(GOOD, annotations={"a": "\ud800"}).to_payload()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes_are_refused_or_another_manifest(data: st.DataObject) -> None:
    good = GOOD.to_payload()
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :]
    try:
        manifest = Manifest.from_payload(bad)
    except InvalidInputError:
        return
    assert manifest.to_payload() == bad
    assert (manifest == GOOD) == (bad == good)


def test_sealed_manifest_opens_as_asked(publisher: NodeCredentials, clock: ManualClock) -> None:
    envelope, digest = seal_manifest(GOOD, publisher)
    envelope = json.loads(json.dumps(envelope))
    opened = open_manifest(envelope, publisher.anchor, clock.wall(), GOOD.name, GOOD.version, GOOD.arch)
    assert opened == (GOOD, digest, publisher.identity)
    assert digest == manifest_digest(unverified_payload(envelope))
    assert open_manifest(envelope, publisher.anchor, clock.wall())[0] == GOOD


@pytest.mark.parametrize("asked", [("other", None, None), (None, "1.4.3", None), (None, None, "arm64")])
def test_manifest_about_something_else_is_refused(
    publisher: NodeCredentials, clock: ManualClock, asked: tuple[str | None, str | None, str | None]
) -> None:
    envelope, _ = seal_manifest(GOOD, publisher)
    with pytest.raises(WrongManifestError, match="asked for"):
        open_manifest(envelope, publisher.anchor, clock.wall(), *asked)


def test_tampered_manifest_is_refused(publisher: NodeCredentials, clock: ManualClock) -> None:
    envelope, _ = seal_manifest(GOOD, publisher)
    bad = copy.deepcopy(envelope)
    bad["payload"] = base64.b64encode(replace(GOOD, version="9.9").to_payload()).decode()
    with pytest.raises(BadSignatureError):
        open_manifest(bad, publisher.anchor, clock.wall())
    with pytest.raises(UntrustedError):
        open_manifest({**envelope, "signatures": []}, publisher.anchor, clock.wall())


def test_signer_without_the_role_or_of_another_formation_is_refused(
    publisher: NodeCredentials, agent: NodeCredentials, stranger: NodeCredentials, clock: ManualClock
) -> None:
    envelope, _ = seal_manifest(GOOD, agent)
    with pytest.raises(MissingRoleError):
        open_manifest(envelope, publisher.anchor, clock.wall())
    envelope, _ = seal_manifest(GOOD, stranger)
    with pytest.raises(ForeignFormationError):
        open_manifest(envelope, publisher.anchor, clock.wall())


def test_signed_payload_that_is_no_manifest_is_refused(publisher: NodeCredentials, clock: ManualClock) -> None:
    envelope = seal(publisher, PAYLOAD_TYPE, b'{"schema":1}')
    with pytest.raises(InvalidInputError):
        open_manifest(envelope, publisher.anchor, clock.wall())
    envelope = seal(publisher, "application/other", GOOD.to_payload())
    with pytest.raises(UntrustedError):
        open_manifest(envelope, publisher.anchor, clock.wall())


def test_package_outlives_its_publishers_certificate(publisher: NodeCredentials, clock: ManualClock) -> None:
    made = replace(GOOD, created=int(clock.wall()))
    envelope, _ = seal_manifest(made, publisher)
    later = publisher.identity.not_after + 1000
    assert open_manifest(envelope, publisher.anchor, later)[0] == made
    for created in (int(later) - 500, int(later) + 500):
        envelope, _ = seal_manifest(replace(GOOD, created=created), publisher)
        with pytest.raises(ExpiredError):
            open_manifest(envelope, publisher.anchor, later)
