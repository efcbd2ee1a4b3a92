"""Which commands this agent carries out, and what it says about each.

Owns the rules: a command is acted on once, whatever restarts; it is started only before it expires; of several deploys
of one package the one ordered last wins; whatever was not done is said with its reason. Synchronous: what happened goes
in as events, what to do comes out as effects, and the journal's records are among them, so that a restart goes on where
the last life ended. It must not verify signatures (events carry the verdict) nor touch disk, network or clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from peat_p2p.fleet.commands import CommandStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A command that this agent may act on: signature, role and target are checked. Times are unix seconds.

    `expires_at` 0 stands for never. `single`: addressed to this agent alone, so its status is the command's.
    """

    id: str
    type: str
    created_at: int
    expires_at: int
    payload: str
    single: bool
    package: str = ""
    version: str = ""
    arch: str = ""
    manifest: str = ""
    path: str = ""

    @property
    def what(self) -> str:
        """The package as people write it."""
        return f"{self.package}:{self.version}" if self.version else self.package


@dataclass(frozen=True, slots=True)
class Record:
    """What the journal keeps of a command."""

    order: Order
    status: CommandStatus
    message: str
    updated_at: int


# Events


@dataclass(frozen=True, slots=True)
class Ordered:
    """A command is there and may be acted on. `told`: a life of this agent before the journal has said how it ended."""

    order: Order
    told: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """A command for this agent is there and must not be acted on."""

    command_id: str
    reason: str
    single: bool
    told: bool = False


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The command's document is gone."""

    command_id: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """The work of a command says what it is doing or waiting for."""

    command_id: str
    message: str
    waiting: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """The work of a command has ended; `error` is empty when it did what was ordered."""

    command_id: str
    message: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


Event: TypeAlias = Ordered | Refused | Withdrawn | Progressed | Finished | Ticked

# Effects


@dataclass(frozen=True, slots=True)
class Start:
    """Begin the work of a command, or begin it again after a restart."""

    order: Order


@dataclass(frozen=True, slots=True)
class Stop:
    """End the work of a command that has begun."""

    command_id: str


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep this in the journal, durably, before any later effect."""

    record: Record


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop the command from the journal and withdraw its receipt."""

    command_id: str


@dataclass(frozen=True, slots=True)
class Report:
    """Say how the command stands."""

    command_id: str
    status: CommandStatus
    message: str
    updated_at: int
    single: bool


Effect: TypeAlias = Start | Stop | Remember | Forget | Report

_TYPES = ("pull", "deploy")


class CommandDesk:
    """Every command this agent knows of, and how it stands."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._waiting: set[str] = set()

    def record(self, command_id: str) -> Record | None:
        """How a command stands, or None when the agent has not dealt with it."""
        return self._records.get(command_id)

    def records(self) -> list[Record]:
        """How every command stands, in the order they came."""
        return list(self._records.values())

    def restore(self, records: Iterable[Record]) -> list[Effect]:
        """Take over the journal of the last life. What was under way begins again; what ended is reported again."""
        effects: list[Effect] = []
        for record in records:
            self._records[record.order.id] = record
            effects.append(_report(record))
            if not record.status.final:
                self._waiting.add(record.order.id)
                effects.append(Start(record.order))
        return effects

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event at unix time `now` and say what to do."""
        match event:
            case Ordered(order, told):
                return self._ordered(order, told, int(now))
            case Refused(command_id, reason, single, told):
                return [] if told else self._refused(command_id, reason, single, int(now))
            case Withdrawn(command_id):
                return self._withdrawn(command_id)
            case Progressed(command_id, message, waiting):
                return self._progressed(command_id, message, waiting, int(now))
            case Finished(command_id, message, error):
                return self._finished(command_id, message, error, int(now))
            case Ticked():
                return self._ticked(now)

    def _ordered(self, order: Order, told: bool, now: int) -> list[Effect]:
        known = self._records.get(order.id)
        if known is not None and (known.order.payload == order.payload or order.created_at <= known.order.created_at):
            return []
        effects: list[Effect] = []
        if known is not None and not known.status.final:
            effects.append(Stop(order.id))
        if _expired(order, now):
            if known is None and (not order.single or told):
                return []  # over before this agent saw it, or told long ago
            reason = f"expired before this agent saw it ({now - order.expires_at} s ago)"
            return effects + self._end(order, CommandStatus.FAILED, reason, now)
        if order.type not in _TYPES:
            reason = f"this agent does not know commands of type {order.type!r} (it knows {', '.join(_TYPES)})"
            return effects + self._end(order, CommandStatus.FAILED, reason, now)
        if not order.package:
            return effects + self._end(order, CommandStatus.FAILED, "the command names no package", now)
        if order.type == "deploy":
            later = self._latest_deploy(order)
            if later is not None:
                reason = f"a later command has replaced it: deploy {later.what} ({later.id})"
                return effects + self._end(order, CommandStatus.CANCELLED, reason, now)
            effects += self._replace_deploys(order, now)
        record = Record(order, CommandStatus.EXECUTING, f"{order.type} {order.what}: starting", now)
        self._records[order.id] = record
        self._waiting.add(order.id)
        return [*effects, Remember(record), _report(record), Start(order)]

    def _refused(self, command_id: str, reason: str, single: bool, now: int) -> list[Effect]:
        if command_id in self._records:
            return []  # a good copy came first: a bad one changes nothing
        # Not remembered: a good copy may still come, and then it counts.
        return [Report(command_id, CommandStatus.FAILED, reason, now, single)]

    def _withdrawn(self, command_id: str) -> list[Effect]:
        record = self._records.pop(command_id, None)
        effects: list[Effect] = []
        if record is not None and not record.status.final:
            self._waiting.discard(command_id)
            effects.append(Stop(command_id))
        return [*effects, Forget(command_id)]

    def _progressed(self, command_id: str, message: str, waiting: bool, now: int) -> list[Effect]:
        record = self._records.get(command_id)
        if record is None or record.status.final:
            return []
        (self._waiting.add if waiting else self._waiting.discard)(command_id)
        if message == record.message:
            return []
        record = replace(record, message=message, updated_at=now)
        self._records[command_id] = record
        return [_report(record)]  # not worth the journal: the next life finds out for itself

    def _finished(self, command_id: str, message: str, error: str, now: int) -> list[Effect]:
        record = self._records.get(command_id)
        if record is None or record.status.final:
            return []
        return self._end(
            record.order, CommandStatus.FAILED if error else CommandStatus.COMPLETED, error or message, now
        )

    def _ticked(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for command_id in sorted(self._waiting):
            record = self._records[command_id]
            if _expired(record.order, int(now)):
                # Bytes that are flowing are let finish; a command that still waits has had its time.
                effects.append(Stop(command_id))
                effects += self._end(
                    record.order, CommandStatus.FAILED, f"expired while waiting: {record.message}", int(now)
                )
        return effects

    def _end(self, order: Order, status: CommandStatus, message: str, now: int) -> list[Effect]:
        record = Record(order, status, message, now)
        self._records[order.id] = record
        self._waiting.discard(order.id)
        return [Remember(record), _report(record)]

    def _deploys(self, package: str) -> list[Record]:
        return [r for r in self._records.values() if r.order.type == "deploy" and r.order.package == package]

    def _latest_deploy(self, order: Order) -> Order | None:
        """A deploy of the same package ordered after `order` that was not in vain."""
        for record in self._deploys(order.package):
            other = record.order
            in_force = record.status in (CommandStatus.EXECUTING, CommandStatus.COMPLETED)
            if in_force and other.id != order.id and (other.created_at, other.id) > (order.created_at, order.id):
                return other
        return None

    def _replace_deploys(self, order: Order, now: int) -> list[Effect]:
        effects: list[Effect] = []
        for record in self._deploys(order.package):
            if not record.status.final and record.order.id != order.id:
                effects.append(Stop(record.order.id))
                reason = f"a later command has replaced it: deploy {order.what} ({order.id})"
                effects += self._end(record.order, CommandStatus.CANCELLED, reason, now)
        return effects


def order_fields(payload: Mapping[str, object]) -> dict[str, str]:
    """The fields of a pull or deploy payload that are text; anything else counts as absent."""
    names = ("package", "version", "arch", "manifest", "path")
    return {name: value for name in names if isinstance(value := payload.get(name), str)}


def _expired(order: Order, now: int) -> bool:
    return 0 < order.expires_at <= now


def _report(record: Record) -> Report:
    return Report(record.order.id, record.status, record.message, record.updated_at, record.order.single)
