"""Which links there is no need of: judged on facts alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from peat_p2p.mesh.spare import PROVEN_AFTER, PRUNE_AFTER, beside, preferred, surplus
from peat_p2p.mesh.topology import Plan

NOW = 1000.0


def link(peer: str, site: str, age: float = 100.0, *, optional: bool = True, dialled: bool = True) -> Any:
    return SimpleNamespace(
        peer=peer, hello=SimpleNamespace(site=site), began=NOW - age, optional=optional, dialled=dialled
    )


def found(plan: Plan, *links: Any) -> list[str]:
    return [one.peer for one in surplus({one.peer: one for one in links}, plan, "here", NOW)]


def test_a_link_is_ended_only_when_what_replaces_it_has_stood_for_a_while() -> None:
    plan = Plan(frozenset(), frozenset({"wanted"}))
    spare = link("spare", "there", 1.0)
    assert found(plan, spare) == []
    assert found(plan, spare, link("wanted", "there", PROVEN_AFTER - 1)) == []
    assert found(plan, spare, link("wanted", "there", PROVEN_AFTER + 1)) == ["spare"]


def test_what_was_configured_accepted_or_is_in_the_plan_stays() -> None:
    plan = Plan(frozenset(), frozenset({"wanted"}))
    wanted = link("wanted", "there")
    assert found(plan, wanted, link("a", "there", optional=False), link("b", "there", dialled=False)) == []


def test_who_has_no_link_across_to_keep_gives_his_up_late() -> None:
    plan = Plan(frozenset(), frozenset())
    assert found(plan, link("old gateway", "there", PRUNE_AFTER - 1)) == []
    assert found(plan, link("old gateway", "there", PRUNE_AFTER + 1)) == ["old gateway"]


def test_a_spare_link_within_the_site_is_ended_only_above_the_limit() -> None:
    plan = Plan(frozenset(), frozenset())
    assert found(plan, link("mate", "here")) == []
    assert len(found(plan, *(link(f"mate {n}", "here") for n in range(9)))) == 9


def test_links_beside_lead_to_the_same_site_and_another_peer() -> None:
    same, other = link("same", "there"), link("other", "elsewhere")
    session = link("me", "there")
    assert beside(session, {"same": same, "other": other, "me": session}) == [same]


def test_both_sides_keep_the_same_of_two_links() -> None:
    assert preferred(link("bb", "x", dialled=True), "aa")
    assert preferred(link("aa", "x", dialled=False), "bb")
    assert not preferred(link("bb", "x", dialled=False), "aa")
