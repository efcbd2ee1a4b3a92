"""`peat fleet`: who is there."""

from __future__ import annotations

from collections.abc import Mapping

import click

from peat_p2p.cli.connect import Place, json_option, place_options, run
from peat_p2p.cli.output import duration, plain, print_json, print_table
from peat_p2p.fleet.holdings import Deployment, Holding
from peat_p2p.fleet.view import AgentState


@click.command()
@json_option
@place_options
def fleet(as_json: bool, place: Place) -> None:
    """List the agents of the fleet as this node's sidecar knows them, with what they hold and run.

    Below the table stand those who are said to have sent bytes that did not verify; they are asked last.

    \b
    peat fleet
    peat fleet --json
    """
    agents, holdings, deployments = run(_fleet(place))
    held: dict[str, list[Holding]] = {}
    for holding in holdings:
        held.setdefault(holding.agent_id, []).append(holding)
    runs: dict[str, list[Deployment]] = {}
    for deployment in deployments:
        runs.setdefault(deployment.agent_id, []).append(deployment)
    accused = accusers(agents)
    if as_json:
        print_json([agent_json(a, held.get(a.agent_id, []), runs.get(a.agent_id, []), accused) for a in agents])
        return
    print_table(
        ("AGENT", "SITE", "STATE", "SEEN", "ARCH", "VERSION", "HOLDS", "RUNS"),
        (
            (
                agent.agent_id,
                agent.heartbeat.site or "-",
                agent.liveness.value,
                f"{duration(agent.age_s)} ago",
                agent.heartbeat.architecture or "-",
                agent.heartbeat.version or "-",
                _holds(held.get(agent.agent_id, [])),
                ", ".join(f"{d.package}:{d.version}" for d in runs.get(agent.agent_id, [])) or "-",
            )
            for agent in agents
        ),
        empty="no agent has sent a heartbeat yet",
    )
    for suspect, by in sorted(accused.items()):
        click.echo(plain(f"suspect: {suspect} sent bytes that did not verify, says {', '.join(by)}"))


def accusers(agents: list[AgentState]) -> dict[str, list[str]]:
    """Who is said to have sent bytes that did not verify, and by whom."""
    found: dict[str, list[str]] = {}
    for agent in agents:
        for suspect in agent.heartbeat.suspects:
            found.setdefault(suspect, []).append(agent.agent_id)
    return found


def _holds(holdings: list[Holding]) -> str:
    whole = sum(1 for holding in holdings if holding.complete)
    coming = [f"{h.reference} {100 * h.completeness:.0f}%" for h in holdings if not h.complete]
    return ", ".join([f"{whole} packages" if whole != 1 else "1 package", *coming])


async def _fleet(place: Place) -> tuple[list[AgentState], list[Holding], list[Deployment]]:
    async with place.sidecar() as sidecar:
        return await sidecar.fleet(), await sidecar.holdings(), await sidecar.deployments()


def agent_json(
    agent: AgentState, holdings: list[Holding], deployments: list[Deployment], accused: Mapping[str, list[str]]
) -> dict[str, object]:
    """An agent for programs."""
    beat = agent.heartbeat
    return {
        "agent_id": beat.agent_id,
        "site": beat.site,
        "state": agent.liveness.value,
        "age_s": round(agent.age_s, 1),
        "last_seen": beat.last_seen,
        "architecture": beat.architecture,
        "version": beat.version,
        "endpoint_id": beat.endpoint_id,
        "labels": dict(beat.labels),
        "suspects": list(beat.suspects),
        "suspected_by": accused.get(beat.agent_id, []),
        "swarm": list(beat.swarm),
        "metadata": list(beat.metadata),
        "holdings": [
            {
                "package": holding.package,
                "version": holding.version,
                "arch": holding.arch,
                "manifest": holding.manifest,
                "pull_status": int(holding.pull_status),
                "held_bytes": holding.held_bytes,
                "total_bytes": holding.total_bytes,
            }
            for holding in holdings
        ],
        "deployments": [
            {"package": d.package, "version": d.version, "status": d.status, "path": d.path} for d in deployments
        ],
    }
