"""The JSON that the hub answers with.

Owns the shape of each answer. Pure: view in, JSON values out.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from peat_p2p.fleet.commands import Command
from peat_p2p.fleet.view import AgentState, CommandState, FleetView
from peat_p2p.hub.history import PastEvent


def fleet(view: FleetView, now: float) -> dict[str, Any]:
    """Every agent, with what it runs."""
    agents = view.agents(now)
    deployed: dict[str, list[dict[str, Any]]] = {}
    for it in view.deployments():
        deployed.setdefault(it.agent_id, []).append(
            {"package": it.package, "version": it.version, "status": it.status, "digest": it.digest}
        )
    held = Counter(it.agent_id for it in view.holdings() if it.complete)
    return {
        "agents": [_agent(it, deployed.get(it.agent_id, []), held[it.agent_id]) for it in agents],
        "counts": dict(Counter(str(it.liveness) for it in agents)),
    }


def packages(view: FleetView, now: float) -> dict[str, Any]:
    """Every package with its versions, newest first, and their holders, best first."""
    return {"packages": [_package(view, name, now) for name in view.packages()]}


def command(state: CommandState | None, it: Command, now: float) -> dict[str, Any]:
    """A command and what its addressees said, as far as the view knows."""
    receipts = state.receipts if state else ()
    return {
        "id": it.id,
        "target_id": it.target_id,
        "command_type": it.command_type,
        "status": it.status.name.lower(),
        "created_at": it.created_at,
        "expires_at": it.expires_at,
        "expired": it.expired(now),
        "payload": it.payload,
        "receipts": [
            {"agent_id": r.agent_id, "status": r.status.name.lower(), "message": r.message, "updated_at": r.updated_at}
            for r in receipts
        ],
        "counts": {status.name.lower(): count for status, count in sorted(state.counts.items())} if state else {},
        "silent": list(state.silent) if state else [],
    }


def event(it: PastEvent) -> dict[str, Any]:
    """An event of the history."""
    return {
        "id": it.id,
        "at": it.at,
        "kind": it.kind,
        "collection": it.collection,
        "doc_id": it.doc_id,
        "detail": it.detail,
    }


def _agent(it: AgentState, deployments: list[dict[str, Any]], complete: int) -> dict[str, Any]:
    beat = it.heartbeat
    return {
        "agent_id": beat.agent_id,
        "name": beat.name,
        "site": beat.site,
        "liveness": str(it.liveness),
        "age_s": round(it.age_s, 1),
        "last_seen": beat.last_seen,
        "version": beat.version,
        "architecture": beat.architecture,
        "classification": beat.classification,
        "run_mode": beat.run_mode,
        "endpoint_id": beat.endpoint_id,
        "labels": dict(beat.labels),
        "workloads": [dict(w) for w in beat.workloads],
        "deployments": deployments,
        "complete_packages": complete,
    }


def _package(view: FleetView, name: str, now: float) -> dict[str, Any]:
    versions: dict[tuple[str, str], dict[str, Any]] = {}

    def entry(version: str, arch: str) -> dict[str, Any]:
        empty: dict[str, Any] = {"version": version, "arch": arch, "manifests": [], "holders": []}
        return versions.setdefault((version, arch), empty)

    for told in view.announcements(name):
        entry(told.version, told.arch)["manifests"].append(told.manifest)
    for holder in view.holders(name, now):
        entry(holder.holding.version, holder.holding.arch)["holders"].append(
            {
                "agent_id": holder.agent_id,
                "completeness": round(holder.holding.completeness, 4),
                "manifest": holder.holding.manifest,
                "liveness": str(holder.agent.liveness) if holder.agent else "unknown",
                "reachable": holder.reachable,
            }
        )
    order = {version: n for n, version in enumerate(view.versions(name))}
    listed = sorted(versions.values(), key=lambda v: (-order.get(v["version"], -1), v["arch"]))
    return {"name": name, "newest": view.newest(name), "versions": listed}
