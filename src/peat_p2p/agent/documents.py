"""What this agent writes about itself.

Owns the turning of facts (heartbeat, holdings, deployments, receipts) into the documents others read, whose form is
`fleet/`'s. Pure. Their `last_seen` is when the fact last changed, but in the heartbeat, where it is when the agent last
spoke: a fleet of ten thousand holdings must not be rewritten to say that nothing happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peat_p2p.agent.commands import Report
from peat_p2p.agent.config import AgentConfig
from peat_p2p.agent.deploy import Deployment
from peat_p2p.agent.reports import Fields, Key
from peat_p2p.content.manifest import Manifest
from peat_p2p.fleet import holdings as fleet
from peat_p2p.fleet.commands import Receipt
from peat_p2p.fleet.heartbeat import Heartbeat
from peat_p2p.fleet.holdings import Announcement, Holding, PullStatus
from peat_p2p.fleet.ids import DEPLOYMENTS, MANIFESTS, PACKAGES, RECEIPTS, holding_id

REGISTRY = "peat"
# Of the heartbeat: empty is news here.
_ALWAYS = frozenset({"agent_id", "workloads", "last_seen"})
DEPLOYED = "deployed"
REVOKED = "revoked"  # in force here, but the formation took back its trust in the package


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldPackage:
    """One package version this agent holds or is fetching. `digest` is the manifest's."""

    manifest: Manifest
    digest: str
    status: PullStatus
    held_bytes: int
    waiting: str = ""


def heartbeat(
    config: AgentConfig,
    *,
    agent_id: str,
    endpoint_id: str,
    swarm: Sequence[str],
    metadata: Sequence[str],
    workloads: Sequence[Mapping[str, object]],
    now: float,
) -> Fields:
    """The document `platforms/{agent_id}`: what the agent knows of itself, and nothing about the rest.

    Fields it was told nothing about are left out, so that others may fill them (a name, by who calls PutPlatform).
    """
    fields = Heartbeat(
        agent_id=agent_id,
        version=config.agent_version,
        architecture=config.arch,
        classification=config.classification,
        run_mode=config.run_mode,
        labels=config.node.labels,
        site=config.node.site,
        endpoint_id=endpoint_id,
        swarm=tuple(swarm),
        metadata=tuple(metadata),
        heartbeat_interval_s=config.heartbeat_interval_s,
        workloads=tuple(workloads),
        last_seen=int(now),
    ).to_fields()
    return {name: value for name, value in fields.items() if value or name in _ALWAYS}


def holding(agent_id: str, held: HeldPackage, changed_at: float) -> tuple[Key, Fields]:
    """The document `packages/{agent_id}:{name}:{version}-{arch}`."""
    manifest = held.manifest
    document = Holding(
        agent_id=agent_id,
        registry=REGISTRY,
        package=manifest.name,
        reference=manifest.reference,
        arch=manifest.arch,
        version=manifest.version,
        total_bytes=manifest.total_bytes,
        pull_status=held.status,
        manifest=held.digest,
        held_bytes=held.held_bytes,
        waiting=held.waiting,
        last_seen=int(changed_at),
    )
    return Key(PACKAGES, document.doc_id), document.to_fields()


def holding_key(agent_id: str, manifest: Manifest) -> Key:
    """The name of the document about what this agent has of a package."""
    return Key(PACKAGES, holding_id(agent_id, manifest.reference, manifest.arch))


def deployed(agent_id: str, deployment: Deployment, status: str = DEPLOYED) -> tuple[Key, Fields]:
    """The document `deployments/{agent_id}:{package}`."""
    document = fleet.Deployment(
        agent_id=agent_id,
        package=deployment.package,
        version=deployment.version,
        status=status,
        annotations={"arch": deployment.arch, "manifest": deployment.manifest},
        digest=deployment.digest,
        path=deployment.path,
        last_seen=deployment.deployed_at,
    )
    return Key(DEPLOYMENTS, document.doc_id), document.to_fields()


def receipt(agent_id: str, report: Report) -> tuple[Key, Fields]:
    """The document `receipts/{command_id}:{agent_id}`."""
    document = Receipt(
        command_id=report.command_id,
        agent_id=agent_id,
        status=report.status,
        message=report.message,
        updated_at=report.updated_at,
    )
    return Key(RECEIPTS, document.doc_id), document.to_fields()


def announcement(manifest: Manifest, digest: str, envelope: dict[str, Any]) -> tuple[Key, Fields]:
    """The document `manifests/{hex digest}`. Any holder may write it again: the envelope speaks for itself."""
    document = Announcement(
        manifest=digest,
        name=manifest.name,
        version=manifest.version,
        arch=manifest.arch,
        digest=manifest.digest,
        envelope=envelope,
    )
    return Key(MANIFESTS, document.doc_id), document.to_fields()
