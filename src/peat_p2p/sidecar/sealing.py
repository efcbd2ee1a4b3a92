"""Signing what is accepted: commands and revocations.

Owns the rule when a write gets an envelope: whoever writes the content of a command or revocation here has this
sidecar's signature put on it, and a write that leaves the content as it was signed, such as an agent's word on a
command's status, leaves the signature alone. A caller that brings an envelope of its own is taken at its word, since
whoever acts checks the signature anyway. Must not know who may order whom: that is for those who act.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from peat_p2p.fleet.commands import Command, is_sealed, seal_command
from peat_p2p.fleet.fields import parse
from peat_p2p.fleet.ids import COMMANDS, REVOCATIONS
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.revocation import Revocation, seal_revocation

ENVELOPE = "envelope"
SIGNED = frozenset({COMMANDS, REVOCATIONS})
_CONTENT = frozenset({"target_id", "command_type", "created_at", "expires_at", "payload_json"})


def signature_fields(
    credentials: NodeCredentials,
    collection: str,
    doc_id: str,
    present: str | None,
    written: Mapping[str, object],
    now: float,
) -> dict[str, str]:
    """The fields (JSON text by key) to write along with `written`; empty if no signature is due.

    `present` is the document as it is, `written` the keys that are about to be merged into it. Raises InvalidInputError
    for a revocation of nothing, MissingRoleError if this node may not revoke.
    """
    if ENVELOPE in written:
        return {}
    if collection == COMMANDS:
        return _for_command(credentials, doc_id, present, written)
    if collection == REVOCATIONS:
        sealed = seal_revocation(credentials, Revocation.asked_for(doc_id, written, now))
        return {key: json.dumps(value) for key, value in sealed.items()}
    return {}


def _for_command(
    credentials: NodeCredentials, command_id: str, present: str | None, written: Mapping[str, object]
) -> dict[str, str]:
    if not _CONTENT & written.keys():
        return {}
    before = parse(present) if present is not None else {}
    command = Command.from_document(command_id, {**before, **written})
    return {} if is_sealed(command) else {ENVELOPE: json.dumps(seal_command(credentials, command))}
