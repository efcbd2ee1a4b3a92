"""What is the case with this agent, and the documents that say so.

Owns the lists of packages held and deployments in force, and bringing the ReportBook up to date with them and with the
transfers under way. Synchronous. Must not change anything but what is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from peat_p2p.agent import documents
from peat_p2p.agent.config import AgentConfig
from peat_p2p.agent.deploy import Deployment
from peat_p2p.agent.documents import HeldPackage
from peat_p2p.agent.peers import advertised
from peat_p2p.agent.reports import Fields, Key, ReportBook
from peat_p2p.agent.transfers import Ticket
from peat_p2p.agent.view import FleetView
from peat_p2p.content.store import PackageSummary
from peat_p2p.core.address import HostPort
from peat_p2p.core.clock import Clock
from peat_p2p.fleet.holdings import PullStatus
from peat_p2p.fleet.ids import PACKAGES, PLATFORMS
from peat_p2p.swarm.status import TransferState

_MOST_WORDS = 200  # characters of a reason that the whole fleet is told


class Facts:
    """The facts of one agent. `addresses()` gives where its swarm and its metadata face listen.

    `stopped()` says why and until when all its traffic is stopped, in words that stay the same meanwhile.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        agent_id: str,
        endpoint_id: str,
        addresses: Callable[[], tuple[HostPort, HostPort]],
        book: ReportBook,
        view: FleetView,
        clock: Clock,
        stopped: Callable[[], str] = lambda: "",
    ) -> None:
        self._config = config
        self._agent_id = agent_id
        self._endpoint_id = endpoint_id
        self._addresses = addresses
        self._book = book
        self._view = view
        self._clock = clock
        self._stopped = stopped
        self._held: dict[str, PackageSummary] = {}
        self._holdings: dict[Key, Fields] = {}  # the documents of what is held whole, made once
        self._in_force: tuple[Deployment, ...] = ()
        self._suspects: set[str] = set()
        self._holdings_told = False
        self._told: dict[Key, Fields] = {}

    def hold(self, summary: PackageSummary) -> None:
        """Count a package as held whole. Of two with one name the later is told: one document is there for both."""
        self._held.pop(summary.manifest_digest, None)  # it goes to the end
        self._held[summary.manifest_digest] = summary
        held = HeldPackage(
            manifest=summary.manifest,
            digest=summary.manifest_digest,
            status=PullStatus.COMPLETE,
            held_bytes=summary.manifest.total_bytes,
        )
        key, fields = documents.holding(self._agent_id, held, summary.added)
        # What was said of it while it was fetched must not stay: documents are merged.
        self._holdings[key] = {**fields, "waiting": ""} if key in self._told else fields
        self._holdings_told = False

    def unhold(self, digest: str) -> None:
        """Count a package as held no more."""
        if self._held.pop(digest, None) is not None:
            self._holdings.clear()
            self._holdings_told = False
            for summary in list(self._held.values()):
                self.hold(summary)

    def held(self) -> list[PackageSummary]:
        """The packages held whole, the latest to come first."""
        return sorted(self._held.values(), key=lambda summary: summary.added, reverse=True)

    def summary(self, digest: str) -> PackageSummary | None:
        """The package of this manifest, if it is held whole."""
        return self._held.get(digest)

    def set_in_force(self, deployments: Iterable[Deployment]) -> None:
        """These are the deployments in force."""
        self._in_force = tuple(deployments)

    def in_force(self) -> tuple[Deployment, ...]:
        """The deployments in force."""
        return self._in_force

    def state_of(self, deployment: Deployment) -> str:
        """What is said of a deployment in force."""
        revoked = self._view.revoked.package(deployment.manifest)
        return documents.DEPLOYED if revoked is None else documents.REVOKED

    def heartbeat(self) -> Fields:
        """The agent as it describes itself now."""
        swarm, metadata = self._addresses()
        beat = documents.heartbeat(
            self._config,
            agent_id=self._agent_id,
            endpoint_id=self._endpoint_id,
            swarm=[str(address) for address in advertised(swarm)],
            metadata=[str(address) for address in advertised(metadata)],
            workloads=[{"name": d.package, "version": d.version, "status": self.state_of(d)} for d in self._in_force],
            now=self._clock.wall(),
        )
        # Who sent this agent bad bytes or held back what it promised: others may want to know before they ask there.
        return {**beat, "suspects": sorted(self._suspects)} if self._suspects else beat

    def tell(self, tickets: Sequence[Ticket]) -> None:
        """Bring the book up to date. `tickets` are the transfers under way."""
        now = self._clock.wall()
        if not self._holdings_told:
            # Many, and seldom different: they are gone through only when one came or went.
            self._holdings_told = True
            for key, fields in self._holdings.items():
                self._book.want(key, fields)
            for doc_id in self._book.wanted(PACKAGES):
                if Key(PACKAGES, doc_id) not in self._holdings:
                    self._book.unwant(Key(PACKAGES, doc_id))
        told: dict[Key, Fields] = {}
        for ticket in tickets:
            if ticket.digest not in self._held:
                key, fields = documents.holding(self._agent_id, _progress(ticket, self._stopped()), now)
                told[key] = self._unless_same(key, fields)
        for deployment in self._in_force:
            key, fields = documents.deployed(self._agent_id, deployment, self.state_of(deployment))
            told[key] = fields
        for key in self._told.keys() - told.keys() - self._holdings.keys():
            self._book.unwant(key)
        for key, fields in told.items():
            self._book.want(key, fields)
        self._told = told
        for ticket in tickets:
            self._suspects.update(ticket.status.bad_peers, dict(ticket.status.suspects))
        self._book.want(Key(PLATFORMS, self._agent_id), self.heartbeat())

    def _unless_same(self, key: Key, fields: Fields) -> Fields:
        """What was told before, when nothing but its time differs."""
        before = self._told.get(key)
        if before is not None and {**before, "last_seen": 0} == {**fields, "last_seen": 0}:
            return before
        return fields


def _progress(ticket: Ticket, stopped: str) -> HeldPackage:
    status, manifest = ticket.transfer.status(), ticket.manifest
    # The status counts distinct chunks, the document what is delivered.
    held = manifest.total_bytes * status.verified // status.total if status.total else 0
    waiting = (stopped or status.reason)[:_MOST_WORDS] if status.state is TransferState.WAITING else ""
    return HeldPackage(
        manifest=manifest, digest=ticket.digest, status=PullStatus.PULLING, held_bytes=held, waiting=waiting
    )
