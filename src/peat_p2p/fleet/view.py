"""The fleet as one sidecar's documents show it.

Owns the queries over those documents: who is alive, who holds what, what is ordered and what came of it. Fed with
documents one by one, in any order; the time of each is an argument. Keeps no document's text. What it says of commands
and manifests is not proved: whoever acts on one opens its envelope first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from peat_p2p.fleet import ids
from peat_p2p.fleet.commands import Command, CommandStatus, Receipt
from peat_p2p.fleet.fields import Fields
from peat_p2p.fleet.heartbeat import Heartbeat, Liveness, LivenessRule, Pulse
from peat_p2p.fleet.holdings import Announcement, Deployment, Holding
from peat_p2p.fleet.versions import newest, version_key

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class AgentState:
    """An agent, and how long ago (by our clock) it was alive."""

    heartbeat: Heartbeat
    liveness: Liveness
    age_s: float

    @property
    def agent_id(self) -> str:
        """The agent's id."""
        return self.heartbeat.agent_id


@dataclass(frozen=True, slots=True)
class Holder:
    """An agent that has a package, in part or whole. `agent` is None when it never sent a heartbeat."""

    holding: Holding
    agent: AgentState | None

    @property
    def agent_id(self) -> str:
        """The agent's id."""
        return self.holding.agent_id

    @property
    def reachable(self) -> bool:
        """Whether the agent is there and says where to fetch from it."""
        return self.agent is not None and self.agent.liveness is not Liveness.LOST and bool(self.agent.heartbeat.swarm)


@dataclass(frozen=True, slots=True)
class CommandState:
    """A command and what its addressees said. `counts` is by status; `silent` are those known that said nothing."""

    command: Command
    receipts: tuple[Receipt, ...]
    silent: tuple[str, ...]

    @property
    def counts(self) -> dict[CommandStatus, int]:
        """How many agents reported each status."""
        return dict(Counter(receipt.status for receipt in self.receipts))


class FleetView:
    """Documents in, answers out. Not for several threads."""

    def __init__(self, rule: LivenessRule | None = None) -> None:
        self._rule = rule or LivenessRule()
        self._beats: dict[str, Heartbeat] = {}
        self._pulses: dict[str, Pulse] = {}
        self._holdings: dict[str, dict[str, Holding]] = {}  # package -> doc id -> holding
        self._holding_package: dict[str, str] = {}  # doc id -> package
        self._deployments: dict[str, Deployment] = {}
        self._announced: dict[str, Announcement] = {}
        self._commands: dict[str, Command] = {}
        self._receipts: dict[str, dict[str, Receipt]] = {}  # command -> agent -> receipt

    @classmethod
    def of(cls, documents: Mapping[str, Mapping[str, Fields | str]], now: float) -> FleetView:
        """A view of whole collections: collection -> doc id -> document."""
        view = cls()
        for collection, entries in documents.items():
            for doc_id, document in entries.items():
                view.apply(collection, doc_id, document, now)
        return view

    def emptied(self) -> FleetView:
        """A view with no documents, for a fresh snapshot, that knows what this one learned of the agents' clocks."""
        view = FleetView(self._rule)
        view._pulses = dict(self._pulses)
        return view

    def apply(self, collection: str, doc_id: str, document: Fields | str | None, now: float) -> None:
        """The document is now this, or None for gone. Collections that are not of the fleet are passed over."""
        if collection == ids.PLATFORMS:
            self._apply_heartbeat(doc_id, document, now)
        elif collection == ids.PACKAGES:
            self._apply_holding(doc_id, document)
        elif collection == ids.RECEIPTS:
            self._apply_receipt(doc_id, document)
        elif collection == ids.DEPLOYMENTS:
            _put(self._deployments, doc_id, None if document is None else Deployment.from_document(doc_id, document))
        elif collection == ids.MANIFESTS:
            _put(self._announced, doc_id, None if document is None else Announcement.from_document(doc_id, document))
        elif collection == ids.COMMANDS:
            _put(self._commands, doc_id, None if document is None else Command.from_document(doc_id, document))

    def agents(self, now: float) -> list[AgentState]:
        """Every agent that a heartbeat is there of, by id."""
        return [self._state(beat, now) for _, beat in sorted(self._beats.items())]

    def agent(self, agent_id: str, now: float) -> AgentState | None:
        """One agent."""
        beat = self._beats.get(agent_id)
        return None if beat is None else self._state(beat, now)

    def holdings(self, agent_id: str | None = None) -> list[Holding]:
        """What agents, or one agent, have."""
        found = [h for name in self._holdings for h in self._in_order(name) if agent_id in (None, h.agent_id)]
        return sorted(found, key=lambda h: (h.agent_id, h.package, version_key(h.version), h.arch))

    def holders(
        self,
        package: str,
        now: float,
        *,
        version: str | None = None,
        arch: str | None = None,
        manifest: str | None = None,
    ) -> list[Holder]:
        """Who has the package: complete ones first, then by how much, alive before lost, then by id."""
        found = [
            Holder(holding, self.agent(holding.agent_id, now))
            for holding in self._in_order(package)
            if version in (None, holding.version)
            and arch in (None, holding.arch)
            and manifest in (None, holding.manifest)
        ]
        return sorted(found, key=lambda h: (-h.holding.completeness, not h.reachable, h.agent_id))

    def _in_order(self, package: str) -> list[Holding]:
        """By document, whichever came first: what is sorted further by less than that comes out the same everywhere."""
        return [holding for _, holding in sorted(self._holdings.get(package, {}).items())]

    def packages(self) -> list[str]:
        """The names of all packages that are held or announced."""
        return sorted({*self._holdings, *(a.name for a in self._announced.values() if a.name)})

    def versions(self, package: str, arch: str | None = None) -> list[str]:
        """The versions of a package that are held or announced, old to new."""
        held = {h.version for h in self._holdings.get(package, {}).values() if arch in (None, h.arch)}
        told = {a.version for a in self._announced.values() if a.name == package and arch in (None, a.arch)}
        return sorted((held | told) - {""}, key=version_key)

    def newest(self, package: str, arch: str | None = None) -> str | None:
        """The newest version of a package, or None if there is none."""
        return newest(self.versions(package, arch))

    def announcements(self, package: str, version: str | None = None, arch: str | None = None) -> list[Announcement]:
        """The announced manifests of a package, newest version first. Unproved."""
        found = [
            a
            for a in self._announced.values()
            if a.name == package and version in (None, a.version) and arch in (None, a.arch)
        ]
        return sorted(found, key=lambda a: (version_key(a.version), a.arch, a.manifest), reverse=True)

    def announcement(self, manifest: str) -> Announcement | None:
        """The announced manifest with this digest. Unproved."""
        return self._announced.get(ids.manifest_id(manifest))

    def deployments(self, agent_id: str | None = None, package: str | None = None) -> list[Deployment]:
        """What agents, or one agent, run."""
        found = [
            d for d in self._deployments.values() if agent_id in (None, d.agent_id) and package in (None, d.package)
        ]
        return sorted(found, key=lambda d: (d.agent_id, d.package))

    def command(self, command_id: str) -> CommandState | None:
        """A command and its receipts."""
        command = self._commands.get(command_id)
        return None if command is None else self._command_state(command)

    def commands(self) -> list[CommandState]:
        """Every command and its receipts, oldest first."""
        return [self._command_state(c) for c in sorted(self._commands.values(), key=_age)]

    def pending(self, agent_id: str, site: str, now: float) -> list[Command]:
        """What the agent is still to do, oldest first: addressed to it, not expired, not ended by its own receipt."""
        return pending_commands(self._commands.values(), self._own_receipts(agent_id), agent_id, site, now)

    def _own_receipts(self, agent_id: str) -> dict[str, Receipt]:
        return {c: by_agent[agent_id] for c, by_agent in self._receipts.items() if agent_id in by_agent}

    def _state(self, beat: Heartbeat, now: float) -> AgentState:
        age = self._pulses[beat.agent_id].age(now)
        return AgentState(beat, self._rule.judge(age, beat.heartbeat_interval_s), age)

    def _command_state(self, command: Command) -> CommandState:
        by_agent = self._receipts.get(command.id, {})
        meant = {a for a, beat in self._beats.items() if command.addresses(a, beat.site)}
        if command.single:
            meant.add(command.target_id)
        return CommandState(
            command, tuple(by_agent[a] for a in sorted(by_agent)), tuple(sorted(meant - by_agent.keys()))
        )

    def _apply_heartbeat(self, doc_id: str, document: Fields | str | None, now: float) -> None:
        if document is None:
            self._beats.pop(doc_id, None)
            self._pulses.pop(doc_id, None)
            return
        beat = Heartbeat.from_document(doc_id, document)
        self._beats[doc_id] = beat
        pulse = self._pulses.get(doc_id)
        if pulse is None:
            self._pulses[doc_id] = Pulse(beat.last_seen, now)
        else:
            pulse.beat(beat.last_seen, now)

    def _apply_holding(self, doc_id: str, document: Fields | str | None) -> None:
        before = self._holding_package.pop(doc_id, None)
        if before is not None:
            by_id = self._holdings[before]
            del by_id[doc_id]
            if not by_id:
                del self._holdings[before]
        if document is not None:
            holding = Holding.from_document(doc_id, document)
            self._holding_package[doc_id] = holding.package
            self._holdings.setdefault(holding.package, {})[doc_id] = holding

    def _apply_receipt(self, doc_id: str, document: Fields | str | None) -> None:
        receipt = Receipt.from_document(doc_id, document or {})
        by_agent = self._receipts.setdefault(receipt.command_id, {})
        _put(by_agent, receipt.agent_id, None if document is None else receipt)
        if not by_agent:
            del self._receipts[receipt.command_id]


def pending_commands(
    commands: Iterable[Command], receipts: Mapping[str, Receipt], agent_id: str, site: str, now: float
) -> list[Command]:
    """The commands the agent is still to carry out, oldest first. `receipts` are its own, by command id."""

    def done(command: Command) -> bool:
        receipt = receipts.get(command.id)
        return (receipt is not None and receipt.status.final) or (command.single and command.status.final)

    wanted = [c for c in commands if c.addresses(agent_id, site) and not c.expired(now) and not done(c)]
    return sorted(wanted, key=_age)


def _age(command: Command) -> tuple[int, str]:
    return command.created_at, command.id


def _put(entries: dict[str, V], key: str, value: V | None) -> None:
    if value is None:
        entries.pop(key, None)
    else:
        entries[key] = value
