"""Signed envelopes (DSSE): content that proves who said it, whoever relayed it.

Owns the envelope's JSON shape: the standard one, and in each signature entry the signer's certificate beside its key
id, so that an envelope is checked with the formation's CA alone. Keeps the rule that a payload is handed out only after
certificate, signature, type and role were checked. Must not know what payloads mean.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, Signature, SSlibKey  # type: ignore[attr-defined]

from peat_p2p.trust.anchor import TrustAnchor
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.errors import BadSignatureError, MalformedError, MissingRoleError, UnsignedError
from peat_p2p.trust.identity import Identity, Role, public_key_of

MAX_SIGNATURES = 4
_SCHEME = "ecdsa-sha2-nistp256"


def seal(credentials: NodeCredentials, payload_type: str, payload: bytes) -> dict[str, Any]:
    """Sign `payload` as `payload_type`; the result is a JSON object."""
    key = credentials.private_key
    endpoint_id = credentials.identity.endpoint_id
    signer = CryptoSigner(key, SSlibKey.from_crypto(key.public_key(), keyid=endpoint_id, scheme=_SCHEME))
    envelope = Envelope(payload, payload_type, {})
    certificate = base64.b64encode(credentials.identity.certificate).decode("ascii")
    envelope.sign(signer).unrecognized_fields["certificate"] = certificate
    sealed: dict[str, Any] = envelope.to_dict()
    return sealed


def unseal(
    envelope: object, payload_type: str, anchor: TrustAnchor, at: float, roles: Collection[Role] | None = None
) -> tuple[bytes, Identity]:
    """The payload and who signed it. With `roles`, the signer must have any of them.

    With several signatures one good one suffices. Raises a subclass of UntrustedError; of several failures, the first.
    """
    parsed = _parse(envelope)
    if parsed.payload_type != payload_type:
        raise MalformedError(f"envelope holds {parsed.payload_type[:80]!r}, not {payload_type!r}")
    failure: Exception | None = None
    for signature in parsed.signatures.values():
        try:
            return parsed.payload, _verify(parsed, signature, anchor, at, roles)
        except (MalformedError, UnsignedError, BadSignatureError, MissingRoleError) as error:
            failure = failure or error
        except Exception as error:
            if len(parsed.signatures) == 1:
                raise
            failure = failure or error
    if failure is None:
        raise UnsignedError("envelope has no signature")
    raise failure


def read_unproved(envelope: object, payload_type: str) -> bytes:
    """The payload of an envelope whose signatures were not looked at: only to find out how to check them.

    Raises a subclass of UntrustedError.
    """
    parsed = _parse(envelope)
    if parsed.payload_type != payload_type:
        raise MalformedError(f"envelope holds {parsed.payload_type[:80]!r}, not {payload_type!r}")
    payload: bytes = parsed.payload
    return payload


def _verify(
    envelope: Envelope, signature: Signature, anchor: TrustAnchor, at: float, roles: Collection[Role] | None
) -> Identity:
    encoded = signature.unrecognized_fields.get("certificate")
    if not isinstance(encoded, str):
        raise UnsignedError("signature comes without its certificate")
    try:
        certificate = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedError("certificate in the envelope is not base64") from error
    identity = anchor.verify(certificate, at)
    if signature.keyid != identity.endpoint_id:
        raise BadSignatureError(f"signature's key id is not that of {identity.node_id}")
    key = SSlibKey.from_crypto(public_key_of(identity.certificate), keyid=identity.endpoint_id, scheme=_SCHEME)
    try:
        envelope.verify([key], 1)
    except VerificationError:
        raise BadSignatureError(
            f"signature does not match: not made by {identity.node_id}, or the content was changed"
        ) from None
    if roles is not None and not identity.has(*roles):
        wanted = " or ".join(sorted(roles))
        raise MissingRoleError(f"{identity} signed this, but the role {wanted} is needed")
    return identity


def _parse(envelope: object) -> Envelope:
    if not isinstance(envelope, Mapping):
        raise UnsignedError("there is no signed envelope")
    payload, payload_type, signatures = (envelope.get(k) for k in ("payload", "payloadType", "signatures"))
    if not isinstance(payload, str) or not isinstance(payload_type, str) or not isinstance(signatures, list):
        raise MalformedError("envelope is not {payload, payloadType, signatures}")
    if not signatures:
        raise UnsignedError("envelope has no signature")
    if len(signatures) > MAX_SIGNATURES:
        raise MalformedError(f"envelope has {len(signatures)} signatures, the limit is {MAX_SIGNATURES}")
    entries = []
    for entry in signatures:
        if not isinstance(entry, Mapping) or not all(isinstance(entry.get(k), str) for k in ("keyid", "sig")):
            raise MalformedError("a signature in the envelope is not {keyid, sig, certificate}")
        entries.append(dict(entry))  # the library takes the entries apart: not the caller's
    try:
        payload_type.encode("utf-8")
        return Envelope.from_dict({"payload": payload, "payloadType": payload_type, "signatures": entries})
    except Exception as error:  # a decoder of hostile input: whatever it raises, the envelope is bad
        raise MalformedError(f"envelope cannot be read: {error}") from error
