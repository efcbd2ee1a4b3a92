import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.fleet.commands import Command, CommandStatus, Receipt
from peat_p2p.fleet.heartbeat import Heartbeat, Liveness, LivenessRule, Pulse
from peat_p2p.fleet.holdings import Announcement, Holding, PullStatus
from peat_p2p.fleet.view import FleetView

NOW = 1_800_000_000


def beat(agent: str, last_seen: int = NOW, **more: Any) -> dict[str, object]:
    return Heartbeat(agent_id=agent, last_seen=last_seen, heartbeat_interval_s=30, **more).to_fields()


def hold(agent: str, version: str = "1.0", held: int = 100, **more: Any) -> Holding:
    status = PullStatus.COMPLETE if held == 100 else PullStatus.PULLING
    return Holding(agent_id=agent, package="app", version=version, arch="amd64", total_bytes=100, held_bytes=held,
                   pull_status=status, **more)  # fmt: skip


@pytest.mark.parametrize(
    ("age", "verdict"),
    [(0, "alive"), (65, "alive"), (66, "late"), (155, "late"), (156, "lost"), (10**9, "lost")],
)
def test_liveness_by_the_agents_own_interval(age: float, verdict: str) -> None:
    assert LivenessRule().judge(age, 30) == verdict


def test_a_view_judges_by_the_heartbeat() -> None:
    view = FleetView()
    for agent, age in (("a", 10), ("b", 100), ("c", 1000)):
        view.apply("platforms", agent, beat(agent, NOW - age), NOW)
    assert {s.agent_id: s.liveness for s in view.agents(NOW)} == {
        "a": Liveness.ALIVE, "b": Liveness.LATE, "c": Liveness.LOST,
    }  # fmt: skip
    assert view.agent("a", NOW + 10_000).liveness is Liveness.LOST  # type: ignore[union-attr]
    assert view.agent("nobody", NOW) is None


@pytest.mark.parametrize("skew", [-86400, -600, 0, 600, 86400])
def test_an_agent_with_a_wrong_clock_is_judged_by_its_beats(skew: int) -> None:
    pulse = Pulse(NOW + skew, NOW)
    for n in range(1, 6):
        pulse.beat(NOW + 30 * n + skew, NOW + 30 * n + 1)
    end = NOW + 151
    assert pulse.age(end) <= 2
    assert 99 <= pulse.age(end + 100) <= 102, "and when it falls silent it ages"


def test_an_old_beat_that_arrives_after_a_partition_is_old() -> None:
    pulse = Pulse(NOW - 7200, NOW - 7200)
    pulse.beat(NOW - 3600, NOW)
    assert pulse.age(NOW) == 3600


def test_a_time_ahead_of_ours_is_not_believed_for_ever() -> None:
    pulse = Pulse(NOW + 10**8, NOW)
    assert pulse.age(NOW + 500) == 500


def test_the_same_heartbeat_again_is_no_sign_of_life() -> None:
    pulse = Pulse(NOW, NOW)
    for n in range(20):
        pulse.beat(NOW, NOW + n)
    assert pulse.age(NOW + 100) == 100


def test_holders_come_best_first() -> None:
    view = FleetView()
    for agent, held, age, where in (
        ("far", 100, 9999, ("h:1",)),
        ("part", 50, 0, ("h:1",)),
        ("full", 100, 0, ("h:1",)),
        ("mute", 100, 0, ()),
    ):
        view.apply("platforms", agent, beat(agent, NOW - age, swarm=where), NOW)
        holding = hold(agent, held=held)
        view.apply("packages", holding.doc_id, holding.to_fields(), NOW)
    stranger = hold("stranger")
    view.apply("packages", stranger.doc_id, stranger.to_fields(), NOW)
    holders = view.holders("app", NOW)
    assert [h.agent_id for h in holders] == ["full", "far", "mute", "stranger", "part"]
    assert [h.agent_id for h in holders if h.reachable] == ["full", "part"]
    assert view.holders("app", NOW, version="2.0") == view.holders("other", NOW) == []
    assert len(view.holders("app", NOW, arch="amd64", version="1.0")) == 5


def test_a_holding_that_changes_package_or_goes_leaves_nothing() -> None:
    view = FleetView()
    view.apply("packages", "a:x", {"package": "one"}, NOW)
    view.apply("packages", "a:x", {"package": "two"}, NOW)
    assert view.packages() == ["two"]
    view.apply("packages", "a:x", None, NOW)
    view.apply("packages", "a:x", None, NOW)
    assert view.packages() == [] and view.holdings() == []


def test_versions_and_announcements() -> None:
    view = FleetView()
    for version in ("1.9.0", "1.10.0"):
        holding = hold("a", version)
        view.apply("packages", holding.doc_id, holding.to_fields(), NOW)
    told = Announcement(manifest="blake3:ff", name="app", version="2.0.0-rc.1", arch="amd64", envelope={"payload": "x"})
    view.apply("manifests", told.doc_id, told.to_fields(), NOW)
    assert view.versions("app") == ["1.9.0", "1.10.0", "2.0.0-rc.1"]
    assert view.newest("app") == "2.0.0-rc.1" and view.newest("app", "arm64") is None
    assert view.announcement("blake3:ff") == view.announcements("app")[0] == told
    assert view.announcements("app", arch="arm64") == []


def order(name: str, target: str, **more: Any) -> dict[str, object]:
    return Command(id=name, target_id=target, command_type="pull", created_at=int(name[1:]), **more).to_fields()


def test_what_an_agent_is_still_to_do() -> None:
    view = FleetView()
    for name, target, more in (
        ("c9", "edge-1", {}),
        ("c1", "*", {}),
        ("c2", "site:north", {}),
        ("c3", "site:south", {}),
        ("c4", "edge-2", {}),
        ("c5", "edge-1", {"expires_at": NOW}),
        ("c6", "edge-1", {"status": CommandStatus.COMPLETED}),
        ("c7", "*", {"status": CommandStatus.COMPLETED}),  # not ours to believe: many are addressed
        ("c8", "*", {"expires_at": NOW + 1}),
    ):
        view.apply("commands", name, order(name, target, **more), NOW)
    assert [c.id for c in view.pending("edge-1", "north", NOW)] == ["c1", "c2", "c7", "c8", "c9"]
    for status, left in ((CommandStatus.EXECUTING, True), (CommandStatus.FAILED, False)):
        receipt = Receipt(command_id="c1", agent_id="edge-1", status=status)
        view.apply("receipts", receipt.doc_id, receipt.to_fields(), NOW)
        assert ("c1" in [c.id for c in view.pending("edge-1", "north", NOW)]) is left
    view.apply("receipts", "c1:edge-1", None, NOW)
    view.apply("commands", "c9", None, NOW)
    assert [c.id for c in view.pending("edge-1", "north", NOW)] == ["c1", "c2", "c7", "c8"]


def test_the_state_of_a_command() -> None:
    view = FleetView()
    for agent, site in (("a", "north"), ("b", "north"), ("c", "south")):
        view.apply("platforms", agent, beat(agent, site=site), NOW)
    view.apply("commands", "c1", order("c1", "site:north"), NOW)
    view.apply("receipts", "c1:a", {"status": 3, "message": "done"}, NOW)
    state = view.command("c1")
    assert state is not None
    assert state.counts == {CommandStatus.COMPLETED: 1}
    assert state.silent == ("b",) and state.receipts[0].message == "done"
    view.apply("commands", "c2", order("c2", "unheard-of"), NOW)
    assert [(s.command.id, s.silent) for s in view.commands()] == [("c1", ("b",)), ("c2", ("unheard-of",))]
    assert view.command("c3") is None


def test_an_emptied_view_knows_the_clocks_alone() -> None:
    view = FleetView()
    for n in range(5):
        view.apply("platforms", "a", beat("a", NOW + 30 * n - 600), NOW + 30 * n)
    view = view.emptied()
    assert view.agents(NOW) == [] and view.commands() == [] and view.deployments() == []
    view.apply("platforms", "a", beat("a", NOW + 120 - 600), NOW + 130)
    assert view.agents(NOW + 130)[0].age_s == 10


def test_a_view_of_whole_collections() -> None:
    view = FleetView.of(
        {"platforms": {"a": beat("a")}, "deployments": {"a:app": '{"version":"1"}'}, "tracks": {"t": {}}}, NOW
    )
    assert [d.version for d in view.deployments("a", "app")] == ["1"]
    assert view.deployments("b") == []


DOCS = st.lists(
    st.tuples(
        st.sampled_from(["platforms", "packages", "deployments", "manifests", "commands", "receipts", "cells"]),
        st.sampled_from(["a", "a:p", "a:p:1-x", "b", "b:p", "c1:a", "c1", "c2"]),
        st.none() | st.fixed_dictionaries({}, optional={
            "package": st.sampled_from("pq"), "version": st.sampled_from("12"), "name": st.sampled_from("pq"),
            "target_id": st.sampled_from(["a", "*", "site:"]), "status": st.integers(-1, 9),
        }),
    ),
    max_size=30,
)  # fmt: skip


@given(DOCS, st.randoms())
def test_only_the_last_of_each_document_counts_in_any_order(docs: list[Any], chance: random.Random) -> None:
    """Feeding every change gives the same answers as feeding the final documents alone, shuffled."""
    fed = FleetView()
    final: dict[tuple[str, str], Any] = {}
    for collection, doc_id, document in docs:
        fed.apply(collection, doc_id, document, NOW)
        final[collection, doc_id] = document
    entries = [(c, d, doc) for (c, d), doc in final.items() if doc is not None]
    chance.shuffle(entries)
    fresh = FleetView()
    for collection, doc_id, document in entries:
        fresh.apply(collection, doc_id, document, NOW)
    for ask in (
        lambda v: v.agents(NOW), lambda v: v.holdings(), lambda v: v.packages(), lambda v: v.commands(),
        lambda v: v.deployments(), lambda v: v.announcements("p"), lambda v: v.holders("p", NOW),
        lambda v: v.versions("q"), lambda v: v.pending("a", "s", NOW),
    ):  # fmt: skip
        assert ask(fed) == ask(fresh)
