"""The plan every node makes by itself: connected, thin, and healing."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict, deque

import pytest

from peat_p2p.mesh.topology import MAX_LINKS, TIE, Member, Topology


def fleet(count: int, sites: int) -> list[Member]:
    return [
        Member(hashlib.sha256(f"node {number}".encode()).hexdigest(), f"site-{number % sites}")
        for number in range(count)
    ]


def edges(members: list[Member], dead: frozenset[str] = frozenset()) -> dict[str, set[str]]:
    topology = Topology(members)
    graph: dict[str, set[str]] = defaultdict(set)
    for member in members:
        if member.endpoint_id not in dead:
            plan = topology.plan(member, alive=lambda peer: peer not in dead, unreachable=dead)
            for peer in plan.wanted:
                graph[member.endpoint_id].add(peer)
                graph[peer].add(member.endpoint_id)
    return graph


def steps(graph: dict[str, set[str]], start: str) -> dict[str, int]:
    distance = {start: 0}
    queue = deque([start])
    while queue:
        at = queue.popleft()
        for peer in graph[at] - distance.keys():
            distance[peer] = distance[at] + 1
            queue.append(peer)
    return distance


@pytest.mark.parametrize(
    ("count", "sites"), [(2, 1), (2, 2), (5, 1), (12, 4), (100, 10), (600, 1), (1000, 50), (1000, 500)]
)
@pytest.mark.parametrize("dead_share", [0.0, 0.3])
def test_the_survivors_are_connected_with_a_handful_of_links(count: int, sites: int, dead_share: float) -> None:
    members = fleet(count, sites)
    gone = random.Random(count).sample(members, int(count * dead_share))
    dead = frozenset(member.endpoint_id for member in gone)
    graph = edges(members, dead)
    alive = [member.endpoint_id for member in members if member.endpoint_id not in dead]
    reached = steps(graph, alive[0])
    assert len(reached) == len(alive) or len(alive) == 1
    assert max(len(graph[member]) for member in alive) <= MAX_LINKS
    assert not any(peer in dead for member in alive for peer in graph[member])


def test_a_whole_dead_site_is_passed_over() -> None:
    members = fleet(60, 6)
    dead = frozenset(member.endpoint_id for member in members if member.site == "site-3")
    graph = edges(members, dead)
    assert len(steps(graph, members[0].endpoint_id)) == 50


def test_few_links_leave_a_site_and_one_node_keeps_each() -> None:
    members = fleet(200, 4)
    graph = edges(members)
    site = {member.endpoint_id: member.site for member in members}
    crossing = {tuple(sorted((a, b))) for a in graph for b in graph[a] if site[a] != site[b]}
    assert len(crossing) == 4


def test_a_gateway_that_dies_is_replaced_by_the_next_of_its_site() -> None:
    members = fleet(40, 2)
    topology = Topology(members)

    def gateways(dead: frozenset[str]) -> set[str]:
        return {
            member.endpoint_id
            for member in members
            if member.endpoint_id not in dead
            and topology.plan(member, alive=lambda peer: peer not in dead, unreachable=dead).outward
        }

    first = gateways(frozenset())
    second = gateways(frozenset(first))
    assert len(first) == len(second) == 2
    assert not first & second


def test_a_link_across_stays_when_members_come() -> None:
    before, after = Topology(fleet(100, 1)), Topology(fleet(110, 1))
    moved = 0
    for member in fleet(100, 1):
        old = before.plan(member, alive=lambda peer: True).within
        linked = dict.fromkeys(old, "site-0")
        new = after.plan(member, alive=lambda peer: True, linked_sites=linked, dialled=list(old)).within
        moved += len(new - old)
    assert moved <= 12, "only the ring's neighbours of the new members change"


def test_existing_links_to_a_site_are_used_instead_of_new_ones() -> None:
    members = fleet(20, 2)
    topology = Topology(members)
    there = [member for member in members if member.site == "site-1"]
    for member in members:
        if member.site != "site-0":
            continue
        plain = topology.plan(member, alive=lambda peer: True)
        if plain.outward:
            other = next(m.endpoint_id for m in there if m.endpoint_id not in plain.outward)
            kept = topology.plan(member, alive=lambda peer: True, linked_sites={other: "site-1"})
            assert kept.outward == {other}
            return
    raise AssertionError("no gateway found")


def test_a_configured_link_between_sites_is_the_only_one_between_them() -> None:
    members = [Member(m.endpoint_id, m.site) for m in fleet(24, 4)]
    firsts = {site: next(m for m in members if m.site == site) for site in ("site-0", "site-1", "site-2", "site-3")}
    ring = [*firsts.values(), firsts["site-0"]]
    ties = {ring[n].endpoint_id: frozenset({ring[n + 1].endpoint_id[:TIE]}) for n in range(4)}
    tied = [Member(m.endpoint_id, m.site, ties.get(m.endpoint_id, frozenset())) for m in members]
    site = {member.endpoint_id: member.site for member in tied}
    graph = edges(tied)
    crossing = {frozenset((a, b)) for a in graph for b in graph[a] if site[a] != site[b]}
    assert crossing == {frozenset((ring[n].endpoint_id, ring[n + 1].endpoint_id)) for n in range(4)}
    # If the one with the tie dies, another of its site takes over.
    dead = frozenset({ring[0].endpoint_id})
    graph = edges(tied, dead)
    assert len(steps(graph, ring[1].endpoint_id)) == 23


def test_sites_stand_in_the_order_of_their_names() -> None:
    members = fleet(50, 5)
    graph = edges(members)
    site = {member.endpoint_id: member.site for member in members}
    joined = {frozenset((site[a], site[b])) for a in graph for b in graph[a] if site[a] != site[b]}
    assert joined == {frozenset((f"site-{n}", f"site-{(n + 1) % 5}")) for n in range(5)}
