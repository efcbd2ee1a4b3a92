"""What a caller may order by HTTP.

Owns reading the bodies of `POST /api/commands` and `POST /api/revocations`: everything that can be known to be wrong is
said before anything is written. Pure. Must not know of requests nor of the sidecar.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.fleet.commands import EVERYONE, SITE_PREFIX, Command, CommandStatus
from peat_p2p.trust.identity import check_node_id
from peat_p2p.trust.revocation import Kind, Revocation

_KEYS = {"id", "target_id", "command_type", "payload", "payload_json", "expires_at", "expires_in_s"}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_TYPE = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_NEED_PACKAGE = ("pull", "deploy")
DEFAULT_EXPIRY_S = 7 * 86400
_LATEST = 1 << 53


def read_order(body: bytes, *, now: int, fresh_id: str) -> Command:
    """The command a body asks for: a JSON object of `target_id`, `command_type`, `payload` (an object) and optionally
    `expires_in_s` or `expires_at` (0: never; a week if not given) and `id`. Raises InvalidInputError.
    """
    asked = _object(body)
    if unknown := sorted(asked.keys() - _KEYS):
        raise InvalidInputError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    target = _target(asked.get("target_id"))
    kind = asked.get("command_type")
    if not isinstance(kind, str) or not _TYPE.fullmatch(kind):
        raise InvalidInputError('\'command_type\' must be a word of lower-case letters, such as "pull" or "deploy"')
    payload = _payload(asked)
    if kind in _NEED_PACKAGE and not (isinstance(payload.get("package"), str) and payload["package"]):
        raise InvalidInputError(f'a {kind} needs "package" in its payload, the package\'s name')
    command_id = asked.get("id", fresh_id)
    if not isinstance(command_id, str) or not _ID.fullmatch(command_id):
        raise InvalidInputError("'id' must be 1 to 128 letters, digits, '.', '_', ':' or '-'")
    return Command(
        id=command_id,
        target_id=target,
        command_type=kind,
        status=CommandStatus.PENDING,
        created_at=now,
        expires_at=_expiry(asked, now),
        payload_json=json.dumps(payload, sort_keys=True, separators=(",", ":")),
    )


@dataclass(frozen=True, slots=True)
class NodeName:
    """A node that is named, not given by its endpoint id."""

    node_id: str


def read_revocation(body: bytes) -> tuple[str | NodeName, str]:
    """What to revoke (a revocation's document id, or a node by its name) and why, from a JSON object of one of
    `node_id`, `endpoint_id` and `manifest`, and optionally `reason`. Raises InvalidInputError.
    """
    asked = _object(body)
    reason = asked.pop("reason", "")
    if not isinstance(reason, str):
        raise InvalidInputError("'reason' must be a text")
    ((key, value),) = asked.items() if len(asked) == 1 else (("", ""),)
    if key not in ("node_id", "endpoint_id", "manifest") or not isinstance(value, str):
        raise InvalidInputError("say what to revoke by one of 'node_id', 'endpoint_id' and 'manifest' (a digest)")
    if key == "node_id":
        return NodeName(check_node_id(value)), reason
    kind = Kind.ENDPOINT if key == "endpoint_id" else Kind.PACKAGE
    return Revocation.asked_for(f"{kind}:{value.removeprefix('blake3:')}", {"reason": reason}, 0).doc_id, reason


def _object(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"the body is not JSON: {error}") from None
    if not isinstance(asked, dict):
        raise InvalidInputError("the body is not a JSON object")
    return asked


def _target(target: object) -> str:
    if not isinstance(target, str) or not target:
        raise InvalidInputError('\'target_id\' must be an agent\'s id, "*" for every agent or "site:NAME"')
    if target != EVERYONE:
        check_node_id(target.removeprefix(SITE_PREFIX))
    return target


def _payload(asked: dict[str, Any]) -> dict[str, Any]:
    if "payload" in asked and "payload_json" in asked:
        raise InvalidInputError("give 'payload' or 'payload_json', not both")
    payload = asked.get("payload", {})
    if "payload_json" in asked:
        text = asked["payload_json"]
        try:
            payload = json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            payload = None
    if not isinstance(payload, dict):
        raise InvalidInputError("the payload is not a JSON object")
    return payload


def _expiry(asked: dict[str, Any], now: int) -> int:
    if "expires_at" in asked and "expires_in_s" in asked:
        raise InvalidInputError("give 'expires_at' or 'expires_in_s', not both")
    if "expires_at" in asked:
        at = asked["expires_at"]
        if type(at) is not int or not (at == 0 or now < at < _LATEST):
            raise InvalidInputError("'expires_at' must be a time to come, in Unix seconds, or 0 for never")
        return at
    seconds = asked.get("expires_in_s", DEFAULT_EXPIRY_S)
    if type(seconds) not in (int, float) or not 0 < seconds < _LATEST - now:
        raise InvalidInputError("'expires_in_s' must be a number of seconds over 0")
    return now + max(1, int(seconds))
