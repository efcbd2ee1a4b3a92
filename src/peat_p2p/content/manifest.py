"""The manifest: what a package version is, in under a kilobyte, signed by a publisher.

Owns the form of the manifest and the checks that make one acceptable: signature and role (by `trust`), schema, and that
it is about the name, version and arch that were asked for. Nothing of a package is requested before `open_manifest` has
passed. Must not know of disks or peers.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from peat_p2p.core.errors import InvalidInputError, TooLargeError, UntrustedError
from peat_p2p.trust.anchor import TrustAnchor
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.dsse import seal, unseal
from peat_p2p.trust.errors import ExpiredError
from peat_p2p.trust.identity import Identity, Role

PAYLOAD_TYPE = "application/vnd.peat.manifest+json"
SCHEMA = 1
MAX_PAYLOAD_BYTES = 8192
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}")
_ARCH = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")
_DIGEST = re.compile(r"blake3:[0-9a-f]{64}")
_INFOHASH = re.compile(r"[0-9a-f]{64}")
_COUNT_LIMIT = 1 << 53  # what every JSON reader keeps exactly


class WrongManifestError(UntrustedError):
    """A validly signed manifest is about something else than what was asked for."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of a package. Raises InvalidInputError if a field is malformed.

    `digest` names the index, `infohash` (64 hex digits) the torrent; `files` counts entries, `chunks` distinct chunks;
    `created` is Unix time in seconds.
    """

    name: str
    version: str
    arch: str
    digest: str
    total_bytes: int
    files: int
    chunks: int
    infohash: str
    created: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name, self.version, self.arch)
        if not _DIGEST.fullmatch(self.digest):
            raise InvalidInputError(f"manifest digest {self.digest!r} is not blake3: and 64 hex digits")
        if not _INFOHASH.fullmatch(self.infohash):
            raise InvalidInputError(f"manifest infohash {self.infohash!r} is not 64 hex digits")
        for count in (self.total_bytes, self.files, self.chunks, self.created):
            if type(count) is not int or not 0 <= count < _COUNT_LIMIT:
                raise InvalidInputError(f"manifest of {self.reference}: {count!r} is no count")
        for key, value in self.annotations.items():
            if not (isinstance(key, str) and isinstance(value, str) and key):
                raise InvalidInputError(f"manifest of {self.reference}: annotation {key!r} is not a text")

    @property
    def reference(self) -> str:
        """`name:version`, as documents write it."""
        return f"{self.name}:{self.version}"

    def to_payload(self) -> bytes:
        """The canonical JSON that is signed."""
        content = {
            "schema": SCHEMA,
            "name": self.name,
            "version": self.version,
            "arch": self.arch,
            "digest": self.digest,
            "total_bytes": self.total_bytes,
            "files": self.files,
            "chunks": self.chunks,
            "infohash": self.infohash,
            "created": self.created,
            "annotations": dict(self.annotations),
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        try:
            payload = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"manifest of {self.reference}: an annotation is not Unicode text") from error
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise TooLargeError(
                f"the manifest of {self.reference} takes {len(payload)} bytes, the limit is {MAX_PAYLOAD_BYTES}; "
                "shorten its annotations"
            )
        return payload

    @classmethod
    def from_payload(cls, payload: bytes) -> Manifest:
        """Read canonical JSON from anywhere. Raises InvalidInputError for anything else."""
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise TooLargeError(f"a manifest of {len(payload)} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
        try:
            content: Any = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"not a manifest: {error}") from error
        if not isinstance(content, dict):
            raise InvalidInputError("not a manifest: no JSON object")
        schema = content.pop("schema", None)
        if schema != SCHEMA or type(schema) is not int:
            raise InvalidInputError(f"manifest of schema {schema!r}; this program reads schema {SCHEMA}")
        for key in ("name", "version", "arch", "digest", "infohash"):
            if not isinstance(content.get(key), str):
                raise InvalidInputError(f"not a manifest: {key!r} is missing or no text")
        if not isinstance(content.get("annotations"), dict):
            raise InvalidInputError("not a manifest: 'annotations' is missing or no object")
        try:
            manifest = cls(**content)
        except TypeError as error:
            raise InvalidInputError("not a manifest: a key is missing or unknown") from error
        if manifest.to_payload() != payload:
            raise InvalidInputError(f"the manifest of {manifest.reference} is not in canonical form")
        return manifest


def check_name(name: str, version: str, arch: str) -> None:
    """Refuse what cannot name a package version. Raises InvalidInputError."""
    if not _NAME.fullmatch(name):
        raise InvalidInputError(f"package name {name!r}: letters, digits, '.', '_' and '-', 1 to 128, no sign first")
    if not _VERSION.fullmatch(version):
        raise InvalidInputError(f"version {version!r}: letters, digits and . _ + ~ -, 1 to 128, no sign first")
    if not _ARCH.fullmatch(arch):
        raise InvalidInputError(f"arch {arch!r}: lower-case letters, digits, '_', '.' and '-', 1 to 32")


def manifest_digest(payload: bytes) -> str:
    """The name of a manifest: `blake3:` and 64 hex digits of its payload."""
    return f"blake3:{blake3(payload).hexdigest()}"


def unverified_payload(envelope: Mapping[str, Any]) -> bytes:
    """The payload of an envelope that somebody else has verified or will verify. Raises InvalidInputError."""
    try:
        return base64.b64decode(envelope["payload"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise InvalidInputError("the envelope has no base64 payload") from error


def seal_manifest(manifest: Manifest, credentials: NodeCredentials) -> tuple[dict[str, Any], str]:
    """Sign the manifest. Returns the DSSE envelope and the manifest's digest."""
    payload = manifest.to_payload()
    return seal(credentials, PAYLOAD_TYPE, payload), manifest_digest(payload)


def open_manifest(
    envelope: dict[str, Any],
    anchor: TrustAnchor,
    at: float,
    name: str | None = None,
    version: str | None = None,
    arch: str | None = None,
) -> tuple[Manifest, str, Identity]:
    """Check the envelope and return the manifest, its digest and its publisher.

    Raises UntrustedError if it is not signed by a publisher of the formation or is about another name, version or arch
    than given, InvalidInputError if it is malformed. A package stays good when its publisher's certificate expires:
    then the certificate must have been valid at the time the manifest says it was made.
    """
    try:
        payload, identity = unseal(envelope, PAYLOAD_TYPE, anchor, at, {Role.PUBLISHER})
    except ExpiredError:
        created = Manifest.from_payload(unverified_payload(envelope)).created
        if created > at:
            raise
        payload, identity = unseal(envelope, PAYLOAD_TYPE, anchor, created, {Role.PUBLISHER})
    manifest = Manifest.from_payload(payload)
    for what, asked, got in (
        ("package", name, manifest.name),
        ("version", version, manifest.version),
        ("arch", arch, manifest.arch),
    ):
        if asked is not None and asked != got:
            raise WrongManifestError(f"asked for {what} {asked!r}, but the signed manifest is about {got!r}")
    return manifest, manifest_digest(payload), identity
