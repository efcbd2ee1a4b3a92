"""Signing commands as they are accepted.

Owns the rule when a write to `commands` gets an envelope: whoever writes the content of a command here has this
sidecar's signature put on it, and a write that leaves the content as it was signed, such as an agent's word on the
status, leaves the signature alone. Must not know who may order whom: that is for those who act.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from peat_p2p.fleet.commands import Command, seal_command
from peat_p2p.fleet.fields import parse
from peat_p2p.trust.credentials import NodeCredentials

ENVELOPE = "envelope"
_CONTENT = frozenset({"target_id", "command_type", "created_at", "expires_at", "payload_json"})


def envelope_for(
    credentials: NodeCredentials, command_id: str, present: str | None, written: Mapping[str, object]
) -> str | None:
    """The JSON text of the envelope to write along with `written`, or None if none is due.

    `present` is the document as it is, `written` the keys that are about to be merged into it.
    """
    if ENVELOPE in written or not _CONTENT & written.keys():
        # A caller that signs for itself is taken at its word: whoever acts checks the signature anyway.
        return None
    before = parse(present) if present is not None else {}
    command = Command.from_document(command_id, {**before, **written})
    if signed_content(before.get(ENVELOPE)) == command.sealed_fields():
        return None
    return json.dumps(seal_command(credentials, command))


def signed_content(envelope: object) -> object:
    """What the envelope says was signed, unchecked; None if that cannot be told."""
    payload = envelope.get("payload") if isinstance(envelope, Mapping) else None
    if not isinstance(payload, str):
        return None
    try:
        return json.loads(base64.b64decode(payload, validate=True))
    except (ValueError, RecursionError):
        return None
