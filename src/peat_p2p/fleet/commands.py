"""Commands: what is ordered, by whom, for whom, and what came of it.

Owns the keys of `commands/…` and `receipts/…`, who is addressed, the signed envelope of a command and the rule who may
order an agent. Keeps the rule that what is acted on comes out of the envelope: of the document around it only the
status counts. Must not know how commands are carried out.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from peat_p2p.fleet.fields import Fields, parse, table, text, whole
from peat_p2p.fleet.ids import receipt_id, split_receipt_id
from peat_p2p.trust.anchor import TrustAnchor
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.dsse import seal, unseal
from peat_p2p.trust.errors import BadSignatureError, MalformedError, MissingRoleError
from peat_p2p.trust.identity import Identity, Role

PAYLOAD_TYPE = "application/vnd.peat.command+json"
EVERYONE = "*"
SITE_PREFIX = "site:"
ORDERING_ROLES = frozenset({Role.OPERATOR, Role.HUB})


class CommandStatus(IntEnum):
    """The state of a command, as the wire numbers it."""

    UNSPECIFIED = 0
    PENDING = 1
    EXECUTING = 2
    COMPLETED = 3
    FAILED = 4
    CANCELLED = 5

    @classmethod
    def of(cls, number: int) -> CommandStatus:
        """The status with this number; a number we do not know is unspecified."""
        return cls(number) if 0 <= number <= cls.CANCELLED else cls.UNSPECIFIED

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self >= CommandStatus.COMPLETED


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """An order. Times are Unix seconds; `expires_at` 0 stands for never. Unproved unless `open_command` made it."""

    id: str
    target_id: str = ""
    command_type: str = ""
    status: CommandStatus = CommandStatus.UNSPECIFIED
    created_at: int = 0
    expires_at: int = 0
    payload_json: str = ""
    envelope: Fields = field(default_factory=dict, repr=False)

    @classmethod
    def from_document(cls, doc_id: str, document: Fields | str) -> Command:
        """Read `commands/{doc_id}`. Never fails, and proves nothing."""
        fields = parse(document)
        return cls(
            id=doc_id,
            target_id=text(fields, "target_id"),
            command_type=text(fields, "command_type"),
            status=CommandStatus.of(whole(fields, "status")),
            created_at=whole(fields, "created_at"),
            expires_at=whole(fields, "expires_at"),
            payload_json=text(fields, "payload_json"),
            envelope=table(fields, "envelope"),
        )

    def to_fields(self) -> dict[str, object]:
        """The document's fields."""
        fields: dict[str, object] = {**self.sealed_fields(), "status": int(self.status)}
        return {**fields, "envelope": dict(self.envelope)} if self.envelope else fields

    def sealed_fields(self) -> dict[str, object]:
        """The fields that the signature covers: all but the status, which changes."""
        return {
            "id": self.id,
            "target_id": self.target_id,
            "command_type": self.command_type,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "payload_json": self.payload_json,
        }

    @property
    def payload(self) -> dict[str, Any]:
        """The payload as JSON; anything but an object counts as empty."""
        return dict(parse(self.payload_json))

    @property
    def single(self) -> bool:
        """Whether one agent alone is addressed, so that its status is the command's."""
        return bool(self.target_id) and self.target_id != EVERYONE and not self.target_id.startswith(SITE_PREFIX)

    def addresses(self, agent_id: str, site: str = "") -> bool:
        """Whether the agent `agent_id` of the site `site` is meant."""
        if self.target_id.startswith(SITE_PREFIX):
            return bool(site) and self.target_id.removeprefix(SITE_PREFIX) == site
        return self.target_id in (agent_id, EVERYONE)

    def expired(self, now: float) -> bool:
        """Whether the command's time is over."""
        return 0 < self.expires_at <= now


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What one agent says about one command."""

    command_id: str
    agent_id: str
    status: CommandStatus = CommandStatus.UNSPECIFIED
    message: str = ""
    updated_at: int = 0

    @property
    def doc_id(self) -> str:
        """The document's id in `receipts`."""
        return receipt_id(self.command_id, self.agent_id)

    @classmethod
    def from_document(cls, doc_id: str, document: Fields | str) -> Receipt:
        """Read `receipts/{doc_id}`. Never fails; command and agent are those the id names."""
        fields = parse(document)
        command_id, agent_id = split_receipt_id(doc_id)
        return cls(
            command_id=command_id,
            agent_id=agent_id,
            status=CommandStatus.of(whole(fields, "status")),
            message=text(fields, "message"),
            updated_at=whole(fields, "updated_at"),
        )

    def to_fields(self) -> dict[str, object]:
        """The document's fields."""
        return {
            "command_id": self.command_id,
            "agent_id": self.agent_id,
            "status": int(self.status),
            "message": self.message,
            "updated_at": self.updated_at,
        }


def fresh_command_id(now: float, *rest: str) -> str:
    """An id for a command given at `now`, in Unix seconds; `rest` makes it unique and may name what is ordered.

    `created_at` counts whole seconds, and of commands of one second the greater id is the later one: so the id begins
    with the time in milliseconds, and two orders given one after the other are never taken in the wrong order.
    """
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
    return "-".join((stamp, *rest))


def command_payload(command: Command) -> bytes:
    """The canonical bytes that are signed."""
    return json.dumps(command.sealed_fields(), sort_keys=True, separators=(",", ":")).encode()


def seal_command(credentials: NodeCredentials, command: Command | Mapping[str, object]) -> dict[str, Any]:
    """The envelope that proves who accepted the command. A mapping is read like a document and must hold its `id`."""
    if not isinstance(command, Command):
        command = Command.from_document(text(command, "id"), command)
    return seal(credentials, PAYLOAD_TYPE, command_payload(command))


def is_sealed(command: Command) -> bool:
    """Whether the command carries an envelope of exactly its own content, so that it need not be sealed anew.

    Says nothing about whether the envelope's signature holds.
    """
    try:
        return b64decode(text(command.envelope, "payload"), validate=True) == command_payload(command)
    except ValueError:
        return False


def open_command(doc_id: str, document: Fields | str, anchor: TrustAnchor, at: float) -> tuple[Command, Identity]:
    """The command as it was signed, with the status its document says now, and who signed it.

    Whether the signer may order is another question: `may_act`. Raises a subclass of UntrustedError.
    """
    outer = Command.from_document(doc_id, document)
    payload, signer = unseal(outer.envelope or None, PAYLOAD_TYPE, anchor, at)
    try:
        sealed = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"command {doc_id}: the signed content is not JSON") from error
    if not isinstance(sealed, dict):
        raise MalformedError(f"command {doc_id}: the signed content is not a JSON object")
    if sealed.get("id") != doc_id:
        raise BadSignatureError(f"command {doc_id}: what was signed is the command {sealed.get('id')!r}")
    return replace(Command.from_document(doc_id, sealed), status=outer.status, envelope=outer.envelope), signer


def may_act(signer: Identity, agent_id: str) -> bool:
    """Whether the agent may carry out what `signer` ordered: an operator, a hub, or the agent's own sidecar."""
    return signer.has(*ORDERING_ROLES) or signer.speaks_for(agent_id)


def require_may_act(command: Command, signer: Identity, agent_id: str) -> None:
    """Raise MissingRoleError unless `may_act`."""
    if not may_act(signer, agent_id):
        raise MissingRoleError(
            f"command {command.id} was signed by {signer}, who may not order {agent_id}:"
            " the role operator or hub is needed"
        )
