"""What the documents tell the mesh: who the members are, where, and who is no longer trusted.

Owns the documents `_sidecars/ENDPOINT_ID` (node_id, site, addresses, and peers: the beginnings of the endpoint ids of
those it is configured to link with; each written by its own sidecar), the reading of
`revocations`, and turning the topology's plan into wishes for the dialler. Keeps the rule that documents are hints
where to dial and never grounds for trust, and that a node called in vain is left alone for a while, longer each time.
Must not open connections.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from peat_p2p.core.address import HostPort, check_endpoint_id
from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import ConfigError, PeatError
from peat_p2p.documents.replica import Replica
from peat_p2p.documents.types import Change, Document, Lagged, SnapshotComplete
from peat_p2p.mesh.dial import Dialer, Source, longest_pause
from peat_p2p.mesh.topology import Member, Plan, Topology, ties_with
from peat_p2p.trust.anchor import TrustAnchor
from peat_p2p.trust.revocation import RevocationSet

SIDECARS = "_sidecars"
REVOCATIONS = "revocations"
_PLATFORMS = "platforms"
_LOG = logging.getLogger(__name__)
_HEARTBEAT = 30.0
_MISSED = 3.5
_AVOID_FIRST = 2.0
_AVOID_SHORTEST = 3.0


@dataclass(frozen=True, slots=True)
class Known:
    """A member and where it takes links."""

    member: Member
    node_id: str
    addresses: tuple[HostPort, ...]
    source: Source


class Neighbours:
    """The members known, and the plan made of them."""

    def __init__(
        self,
        replica: Replica,
        anchor: TrustAnchor,
        own: Member,
        clock: Clock,
        randomness: random.Random,
        changed: Callable[[], None],
    ) -> None:
        self._replica = replica
        self._anchor = anchor
        self._own = own
        self._clock = clock
        self._random = randomness
        self._changed = changed
        self._documented: dict[str, Known] = {}
        self._found: dict[str, Known] = {}
        self._revoking: dict[str, Mapping[str, object]] = {}
        self._avoid: dict[str, tuple[float, float]] = {}
        self._linked: set[str] = set()
        self._lost: dict[str, float] = {}
        self._topology: Topology | None = None
        self._wished: dict[str, Source] = {}
        self._settled = False
        self._seq = 0
        self.revoked = RevocationSet.of()

    async def announce(self, node_id: str, addresses: Sequence[HostPort]) -> None:
        """Tell the formation where this node takes links."""
        fields = {
            "node_id": node_id,
            "site": self._own.site,
            "addresses": [str(address) for address in addresses],
            "peers": sorted(self._own.ties),
        }
        texts = {name: json.dumps(value) for name, value in fields.items()}
        await self._replica.put_reserved(SIDECARS, texts)

    async def follow(self) -> None:
        """Take in revocations as they come, for ever."""
        with self._replica.subscribe([REVOCATIONS]) as events:
            async for event in events:
                match event:
                    case Lagged():
                        self._revoking.clear()
                    case Change():
                        self._take_revocation(event.doc_id, event.document)
                    case SnapshotComplete():
                        self._settled = True
                if self._settled and not isinstance(event, Lagged):
                    self.revoked = RevocationSet.read(self._revoking, self._anchor)
                    self._changed()

    def _read_members(self) -> None:
        """Take in the documents of members that changed since the last time."""
        klass = self._replica.rules.of(SIDECARS).klass
        fresh = False
        while changed := self._replica.changed_since(klass, self._seq, 4096):
            self._seq = changed[-1][0]
            fresh = fresh or any(key.collection == SIDECARS for _, key in changed)
        if not fresh:
            return
        members: dict[str, Known] = {}
        for document in self._replica.read_reserved(SIDECARS):
            known = _read(document.doc_id, document.json)
            if known is None or document.doc_id == self._own.endpoint_id:
                continue
            members[document.doc_id] = known
            old = self._documented.get(document.doc_id)
            if old is None or old.addresses != known.addresses:
                self._avoid.pop(document.doc_id, None)
        self._documented = members
        self._topology = None

    def found(self, endpoint_id: str, addresses: tuple[HostPort, ...], site: str) -> None:
        """A node was seen on the local network, or (no addresses) went away."""
        if addresses:
            self._found[endpoint_id] = Known(Member(endpoint_id, site), "", addresses, Source.MDNS)
            self._avoid.pop(endpoint_id, None)
        else:
            self._found.pop(endpoint_id, None)
        self._topology = None

    def failed(self, endpoint_id: str) -> None:
        """A node of the plan was called in vain: leave it alone for a while."""
        if endpoint_id in self._wished:
            _, last = self._avoid.get(endpoint_id, (0.0, _AVOID_FIRST / 2))
            now = self._clock.monotonic()
            if endpoint_id in self._linked:
                self._linked.discard(endpoint_id)
                self._lost[endpoint_id] = now
            longest = max(_AVOID_SHORTEST, longest_pause(now, self._lost.get(endpoint_id)))
            pause = min(longest, 2.0 * last)
            until = now + pause * self._random.uniform(0.7, 1.3)
            self._avoid[endpoint_id] = (until, pause)

    def linked(self, endpoint_id: str) -> None:
        """A link is up: the node is not to be avoided."""
        self._linked.add(endpoint_id)
        self._avoid.pop(endpoint_id, None)

    def network_changed(self) -> None:
        """What could not be reached may be reachable now."""
        self._avoid.clear()

    def site_of(self, endpoint_id: str) -> str | None:
        """The site of a member, if it is known."""
        known = self._known(endpoint_id)
        return None if known is None else known.member.site

    def plan(
        self, dialer: Dialer, linked_sites: Mapping[str, str], dialled: Collection[str], blocked: Collection[str]
    ) -> Plan:
        """Make the plan and have the dialler follow it."""
        now = self._clock.monotonic()
        self._read_members()
        unreachable = {peer for peer, (until, _) in self._avoid.items() if until > now and peer not in linked_sites}
        unreachable |= self.revoked.endpoints() | set(blocked)
        if self._topology is None:
            members = {peer: known.member for peer, known in (self._found | self._documented).items()}
            members[self._own.endpoint_id] = self._own
            self._topology = Topology(members.values())
        plan = self._topology.plan(
            self._own,
            alive=lambda peer: peer in linked_sites or self._alive(peer),
            unreachable=unreachable,
            linked_sites=linked_sites,
            dialled=dialled,
        )
        for peer in plan.wanted:
            known = self._known(peer)
            if known is None:
                continue
            if self._wished.get(peer, known.source) is not known.source:
                dialer.unwish(peer, self._wished[peer])
            self._wished[peer] = known.source
            dialer.wish(peer, list(known.addresses), known.source, now)
        for peer in self._wished.keys() - plan.wanted:
            dialer.unwish(peer, self._wished.pop(peer))
        return plan

    def _known(self, endpoint_id: str) -> Known | None:
        return self._found.get(endpoint_id) or self._documented.get(endpoint_id)

    def _alive(self, endpoint_id: str) -> bool:
        """Whether the node's agent gives heartbeats, if it ever gave any."""
        known = self._documented.get(endpoint_id)
        if known is None or not known.node_id:
            return True
        try:
            document = self._replica.get(_PLATFORMS, known.node_id)
            fields = json.loads(document.json) if document is not None else {}
            last_seen = float(fields["last_seen"])
            interval = float(fields.get("heartbeat_interval_s", _HEARTBEAT))
        except (PeatError, ValueError, TypeError, KeyError):
            return True
        return self._clock.wall() - last_seen <= _MISSED * max(interval, 1.0)

    def _take_revocation(self, doc_id: str, document: Document | None) -> None:
        self._revoking.pop(doc_id, None)
        if document is not None:
            with contextlib.suppress(ValueError):
                fields = json.loads(document.json)
                if isinstance(fields, dict):
                    self._revoking[doc_id] = fields


def _read(doc_id: str, text: str) -> Known | None:
    """A member as its document describes it; None if the document makes no sense."""
    try:
        check_endpoint_id(doc_id)
        fields = json.loads(text)
        addresses = tuple(HostPort.parse(str(address)) for address in fields.get("addresses", [])[:8])
        site, node_id = fields.get("site", ""), fields.get("node_id", "")
        ties = ties_with(map(str, fields.get("peers", [])))
    except (ConfigError, ValueError, AttributeError, TypeError):
        return None
    if not addresses or not isinstance(site, str) or not isinstance(node_id, str):
        return None
    return Known(Member(doc_id, site, ties), node_id, addresses, Source.TOPOLOGY)


def read_addresses(texts: Sequence[str]) -> list[HostPort]:
    """Those of the addresses that make sense."""
    found = []
    for text in texts:
        with contextlib.suppress(ConfigError):
            found.append(HostPort.parse(text))
    return found
