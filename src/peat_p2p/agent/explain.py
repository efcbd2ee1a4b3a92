"""Why a package is here or not.

Owns the gathering of everything this agent knows that bears on one package, and the sentence that sums it up. Reads
only; must not change anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from peat_p2p.agent.history import EndedTransfer
from peat_p2p.agent.service import Agent
from peat_p2p.agent.transfers import Ticket
from peat_p2p.agent.view import KnownManifest
from peat_p2p.core.errors import NotFoundError, PeatError
from peat_p2p.fleet.heartbeat import Heartbeat, Liveness
from peat_p2p.fleet.holdings import Holding
from peat_p2p.fleet.ids import PLATFORMS
from peat_p2p.swarm.status import TransferState


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing known: `about` what kind of thing, `subject` which one, `state` in a word, `text` the rest."""

    about: str
    subject: str
    state: str
    text: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The facts, and one sentence."""

    verdict: str
    facts: tuple[Fact, ...]


def explain(agent: Agent, name: str, version: str, arch: str) -> Explanation:
    """Say why the package is here, on its way, or not to be had."""
    asked = f"{name}:{version}" if version else name
    facts = list(_sidecar(agent))
    known: KnownManifest | None = None
    try:
        known = agent.resolve(name, version, arch)
    except NotFoundError as error:
        verdict = str(error)
        facts.append(Fact("package", asked, "unknown", str(error)))
    except PeatError as error:
        verdict = str(error)
        facts.append(Fact("package", asked, "refused", str(error)))
    if known is None:
        return Explanation(verdict, (*facts, *_commands(agent, name)))
    manifest = known.manifest
    text = f"{manifest.total_bytes} bytes in {manifest.chunks} chunks for {manifest.arch}, signed by {known.publisher}"
    facts.append(Fact("package", manifest.reference, "announced", f"{text}, manifest {known.digest}"))
    ticket = next((t for t in agent.transfers.active() if t.digest == known.digest), None)
    ended = next((e for e in agent.transfers.history.all() if e.digest == known.digest), None)
    facts += _here(agent, known)
    facts += _limits(agent)
    facts += _transfer(ticket, ended)
    holders = list(_holders(agent, known))
    facts += holders
    facts += _suspicions(agent, holders)
    facts += _commands(agent, name)
    return Explanation(_verdict(agent, known, ticket, ended, holders), tuple(facts))


def _verdict(
    agent: Agent, known: KnownManifest, ticket: Ticket | None, ended: EndedTransfer | None, holders: list[Fact]
) -> str:
    what = known.manifest.reference
    if agent.facts.summary(known.digest) is not None:
        return f"{what} is here, whole and verified"
    if ticket is not None:
        status = ticket.transfer.status()
        return f"{what} is on its way: {status.state}{f', {status.reason}' if status.reason else ''}"
    if ended is not None and ended.status.state is TransferState.FAILED:
        return f"{what} is not here: the last try failed: {ended.status.reason}"
    if not any(fact.state.startswith("complete") for fact in holders):
        return f"{what} is announced, but no agent known here holds it whole"
    return f"{what} is not here because nothing has asked this agent for it: peat pull {what}"


def _sidecar(agent: Agent) -> Iterator[Fact]:
    if agent.view.synced:
        yield Fact("sidecar", "", "in reach", "what is said here is what the mesh says now")
    else:
        reason = agent.link.reason or "its documents have not been read yet"
        yield Fact("sidecar", "", "out of reach", f"what is said here is what was last known: {reason}")


def _here(agent: Agent, known: KnownManifest) -> Iterator[Fact]:
    summary = agent.facts.summary(known.digest)
    if summary is not None:
        pinned = ", pinned" if summary.pinned else ""
        yield Fact("here", agent.agent_id, "complete", f"verified and offered to others{pinned}")
    else:
        yield Fact("here", agent.agent_id, "absent", "this agent does not hold it whole")
    for deployment in agent.facts.in_force():
        if deployment.package == known.manifest.name:
            yield Fact("deployment", deployment.version, agent.facts.state_of(deployment), f"at {deployment.path}")


def _limits(agent: Agent) -> Iterator[Fact]:
    """What bounds every transfer of this agent: someone may wonder why it is slow, or stands."""
    for name, limit in agent.config.limits.items():
        if limit:
            yield Fact("limit", name, f"{limit} B/s", "this agent was started with it")
    if agent.engine.stopped:
        yield Fact("limit", "budget", "used up", agent.engine.stopped)


def _transfer(ticket: Ticket | None, ended: EndedTransfer | None) -> Iterator[Fact]:
    source = ticket or ended
    if source is None:
        return
    status = ticket.transfer.status() if ticket is not None else source.status
    gave = ", ".join(f"{s.bytes} from {s.agent_id or 'unknown'}" for s in status.sources)
    text = f"{status.verified} of {status.total} bytes, {status.reused} had already, {status.wasted} wasted"
    reason = f"{status.reason}; " if status.reason else ""
    yield Fact("transfer", source.manifest.reference, str(status.state), f"{reason}{text}{f'; {gave}' if gave else ''}")
    for peer in status.bad_peers:
        yield Fact("holder", peer, "bad", "it sent bytes that did not verify, and is asked last")


def _holders(agent: Agent, known: KnownManifest) -> Iterator[Fact]:
    direct = agent.view.holders(known.digest)
    seen = {holding.agent_id for holding in direct}
    for holding in direct:
        part = "complete" if holding.complete else f"{100 * holding.completeness:.0f}%"
        yield _holder(agent, holding, part)
    for holding in agent.view.holders_of_name(known.manifest.name):
        if holding.agent_id not in seen and holding.arch == known.manifest.arch and holding.complete:
            yield _holder(agent, holding, f"has {holding.version}")


def _holder(agent: Agent, holding: Holding, part: str) -> Fact:
    liveness = agent.view.liveness(holding.agent_id)
    state = part if liveness is Liveness.ALIVE else f"{part}, {liveness.value}"
    platform = agent.view.get(PLATFORMS, holding.agent_id)
    if platform is None:
        return Fact("holder", holding.agent_id, state, "it never said where it is")
    beat = Heartbeat.from_document(holding.agent_id, platform)
    waits = f"it waits: {holding.waiting}; " if holding.waiting else ""
    text = f"at {', '.join(beat.swarm)}" if beat.swarm else "it does not say where to fetch from it"
    health = agent.engine.health(beat.endpoint_id)
    if health is not None and health.failures:
        text += f"; {health.failures} tries failed, the last: {health.last_error or 'no answer'}"
    elif health is not None and health.rate:
        text += f"; it gave {health.rate / 1000:.0f} kB/s"
    return Fact("holder", holding.agent_id, state, waits + text)


def _suspicions(agent: Agent, holders: list[Fact]) -> Iterator[Fact]:
    """What other agents say of the holders."""
    named = {fact.subject for fact in holders}
    for agent_id, platform in sorted(agent.view.all(PLATFORMS).items()):
        suspects = platform.get("suspects")
        for peer in suspects if isinstance(suspects, list) else []:
            if peer in named and agent_id != agent.agent_id:
                yield Fact("holder", peer, "suspected", f"{agent_id} says it sent bad bytes or held back")


def _commands(agent: Agent, name: str) -> Iterator[Fact]:
    for record in agent.runner.records():
        if record.order.package == name:
            text = f"{record.order.type} {record.order.what}: {record.message}"
            yield Fact("command", record.order.id, record.status.name.lower(), text)
