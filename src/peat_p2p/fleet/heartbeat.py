"""The heartbeat: what an agent says of itself in `platforms/{agent_id}`.

Owns the document's keys and whether the agent behind it is alive. Must not know who reads it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from peat_p2p.fleet.fields import NOTHING, Fields, number, parse, table, text, texts, texts_by_name, whole

PLATFORM_TYPE = "uds-remote-agent"
DEFAULT_INTERVAL_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """An agent as it last described itself. `swarm` and `metadata` are where others fetch from it, as `HOST:PORT`.

    `suspects` are agents that sent it bytes which did not verify.
    """

    agent_id: str
    last_seen: int = 0
    name: str = ""
    site: str = ""
    endpoint_id: str = ""
    platform_type: str = PLATFORM_TYPE
    version: str = ""
    architecture: str = ""
    classification: str = ""
    k8s_version: str = ""
    k8s_node_status: str = ""
    zarf_version: str = ""
    run_mode: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    swarm: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    heartbeat_interval_s: float = DEFAULT_INTERVAL_S
    workloads: tuple[Mapping[str, object], ...] = ()
    suspects: tuple[str, ...] = ()

    @classmethod
    def from_document(cls, doc_id: str, document: Fields | str) -> Heartbeat:
        """Read `platforms/{doc_id}`. Never fails: what is missing or malformed is its default."""
        fields = parse(document)
        places = table(fields, "swarm")
        workloads = fields.get("workloads")
        interval = number(fields, "heartbeat_interval_s", DEFAULT_INTERVAL_S)
        return cls(
            agent_id=doc_id,
            last_seen=whole(fields, "last_seen"),
            name=text(fields, "name"),
            site=text(fields, "site"),
            endpoint_id=text(fields, "endpoint_id"),
            platform_type=text(fields, "platform_type"),
            version=text(fields, "version"),
            architecture=text(fields, "architecture"),
            classification=text(fields, "classification"),
            k8s_version=text(fields, "k8s_version"),
            k8s_node_status=text(fields, "k8s_node_status"),
            zarf_version=text(fields, "zarf_version"),
            run_mode=text(fields, "run_mode"),
            labels=texts_by_name(fields, "labels"),
            swarm=texts(places, "swarm"),
            metadata=texts(places, "metadata"),
            heartbeat_interval_s=interval if interval > 0 else DEFAULT_INTERVAL_S,
            workloads=tuple(w for w in workloads if isinstance(w, Mapping)) if isinstance(workloads, list) else (),
            suspects=texts(fields, "suspects"),
        )

    def to_fields(self) -> dict[str, object]:
        """The document's fields. Empty ones are among them: a value that went away must overwrite the old one.

        But for the suspects, which hardly any agent ever has.
        """
        return {
            "agent_id": self.agent_id,
            "last_seen": self.last_seen,
            "name": self.name,
            "site": self.site,
            "endpoint_id": self.endpoint_id,
            "platform_type": self.platform_type,
            "version": self.version,
            "architecture": self.architecture,
            "classification": self.classification,
            "k8s_version": self.k8s_version,
            "k8s_node_status": self.k8s_node_status,
            "zarf_version": self.zarf_version,
            "run_mode": self.run_mode,
            "labels": dict(self.labels),
            "swarm": {"swarm": list(self.swarm), "metadata": list(self.metadata)},
            "heartbeat_interval_s": self.heartbeat_interval_s,
            "workloads": [dict(workload) for workload in self.workloads],
            **({"suspects": list(self.suspects)} if self.suspects else {}),
        }


class Liveness(StrEnum):
    """Whether an agent is there."""

    ALIVE = "alive"
    LATE = "late"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class LivenessRule:
    """When an agent counts as late and as lost: after so many of its own intervals, and a grace for slow links."""

    late_after: float = 2.0
    lost_after: float = 5.0
    grace_s: float = 5.0

    def judge(self, age_s: float, interval_s: float) -> Liveness:
        """The verdict on a heartbeat `age_s` old of an agent that beats every `interval_s`."""
        if age_s <= self.late_after * interval_s + self.grace_s:
            return Liveness.ALIVE
        return Liveness.LATE if age_s <= self.lost_after * interval_s + self.grace_s else Liveness.LOST


class Pulse:
    """How old an agent's heartbeat is, whatever the agent's clock says.

    `last_seen` is the agent's clock, and that may be wrong. Heartbeats that arrive while we watch tell how far it is
    off: the smallest of the last few differences, since a beat may arrive late but never early. One late arrival (after
    a partition) proves nothing, so the agent's clock is believed until there are a few; a time ahead of ours is never
    believed.
    """

    _ENOUGH = 3
    _KEPT = 8
    __slots__ = ("_last_seen", "_offsets", "_seen_at")

    def __init__(self, last_seen: int, now: float) -> None:
        self._last_seen = last_seen
        self._seen_at = now
        self._offsets: deque[float] = deque(maxlen=self._KEPT)

    def beat(self, last_seen: int, now: float) -> None:
        """A heartbeat document was seen at our time `now`; the same `last_seen` again says nothing."""
        if last_seen != self._last_seen:
            self._last_seen = last_seen
            self._seen_at = now
            self._offsets.append(now - last_seen)

    def age(self, now: float) -> float:
        """Seconds since the agent was alive, by our clock; never negative."""
        offset = min(self._offsets) if len(self._offsets) >= self._ENOUGH else 0.0
        by_clock = now - (self._last_seen + offset)
        return max(0.0, by_clock if by_clock >= 0 else now - self._seen_at)
