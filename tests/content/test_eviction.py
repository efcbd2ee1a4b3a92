from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peat_p2p.content.eviction import Candidate, Kept, Watermarks, decide_eviction

A, B, C, D = (bytes([number]) * 32 for number in range(4))


def one(name: str, *chunks: bytes, used: float = 0, size: int = 100, **more: object) -> Candidate:
    return Candidate(name, dict.fromkeys(chunks, size), used, **more)  # type: ignore[arg-type]


def keeper_of(digest: str, agents: list[str]) -> str:
    """Who of the holders stays, found by asking each."""
    stay = [
        agent
        for agent in agents
        if decide_eviction([one(digest, A)], 1, agent, {digest: agents}).kept.get(digest) is Kept.KEEPER
    ]
    assert len(stay) == 1
    return stay[0]


def everywhere(*digests: str) -> dict[str, list[str]]:
    """Holders so that the agent `me` is the keeper of nothing."""
    return {
        digest: [other := next(f"x{n}" for n in range(99) if keeper_of(digest, ["me", f"x{n}"]) != "me"), other + "+"]
        for digest in digests
    }


def test_longest_unused_goes_first_and_no_more_than_needed() -> None:
    packages = [one("new", A, used=30), one("old", B, used=10), one("middle", C, used=20)]
    holders = everywhere("new", "old", "middle")
    assert decide_eviction(packages, 100, "me", holders).remove == ("old",)
    decision = decide_eviction(packages, 150, "me", holders)
    assert decision.remove == ("old", "middle") and decision.freed == 200
    assert decision.kept == {"new": Kept.NOT_NEEDED}
    assert decision.enough(150) and not decision.enough(300)
    assert decide_eviction(packages, 0, "me", holders).remove == ()


def test_importance_comes_before_age() -> None:
    packages = [one("vital", A, used=0, priority=2), one("background", B, used=99, priority=0)]
    assert decide_eviction(packages, 100, "me", everywhere("vital", "background")).remove == ("background",)


def test_pinned_used_and_last_copies_stay() -> None:
    packages = [one("pinned", A, pinned=True), one("used", B, in_use=True), one("last", C), one("mine", D)]
    holders = {**everywhere("pinned", "used"), "mine": ["me"]}
    decision = decide_eviction(packages, 1000, "me", holders)
    assert decision.remove == ()
    assert decision.kept == {
        "pinned": Kept.PINNED,
        "used": Kept.IN_USE,
        "last": Kept.LAST_COPY,
        "mine": Kept.LAST_COPY,
    }


def test_shared_chunks_go_only_with_their_last_package() -> None:
    packages = [one("first", A, B, used=1), one("second", B, C, used=2), one("third", A, B, C, used=3, pinned=True)]
    holders = everywhere("first", "second", "third")
    decision = decide_eviction(packages, 50, "me", holders)
    assert decision.remove == () and decision.freed == 0
    assert decision.kept["first"] is Kept.NO_GAIN
    packages[2] = one("third", D, used=3, pinned=True)
    decision = decide_eviction(packages, 300, "me", holders)
    assert decision.remove == ("first", "second") and decision.freed == 300


def test_small_one_is_spared_when_a_larger_frees_enough() -> None:
    packages = [one("small", A, used=1, size=10), one("large", B, used=2, size=1000)]
    decision = decide_eviction(packages, 500, "me", everywhere("small", "large"))
    assert decision.remove == ("large",)
    assert decision.kept["small"] is Kept.NOT_NEEDED


def test_packages_held_by_too_few_are_told() -> None:
    packages = [one("lonely", A), one("pair", B), one("many", C)]
    holders = {"pair": ["b"], "many": ["b", "c", "d"]}
    assert decide_eviction(packages, 0, "me", holders).under_replicated == ("lonely",)
    assert decide_eviction(packages, 0, "me", holders, copies_wanted=3).under_replicated == ("lonely", "pair")


@settings(max_examples=300)
@given(st.data())
def test_agents_that_evict_at_once_never_drop_all_copies(data: st.DataObject) -> None:
    """Whatever part of the holders each one knows of, one true holder stays."""
    holders = data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True))
    digest = data.draw(st.sampled_from(["p1", "p2", "p3"]))
    left = []
    for agent in holders:
        view = data.draw(st.lists(st.sampled_from(holders), unique=True))
        decision = decide_eviction([one(digest, A)], 10**9, agent, {digest: view})
        if digest not in decision.remove:
            left.append(agent)
    assert left


_package = st.builds(
    Candidate,
    st.uuids().map(str),
    st.dictionaries(st.sampled_from([A, B, C, D]), st.just(100), max_size=4),
    st.floats(0, 100),
    pinned=st.booleans(),
    in_use=st.booleans(),
    priority=st.integers(0, 2),
)


@settings(max_examples=200)
@given(st.lists(_package, max_size=8), st.integers(0, 500))
def test_what_is_freed_is_what_is_said(packages: list[Candidate], need: int) -> None:
    holders = {package.manifest_digest: ["other", "third"] for package in packages}
    decision = decide_eviction(packages, need, "me", holders)
    gone = set(decision.remove)
    assert gone.isdisjoint(decision.kept) and gone | set(decision.kept) == {p.manifest_digest for p in packages}
    staying = {chunk for p in packages if p.manifest_digest not in gone for chunk in p.chunks}
    going = {chunk for p in packages if p.manifest_digest in gone for chunk in p.chunks} - staying
    assert decision.freed == 100 * len(going)
    assert not any(p.pinned or p.in_use for p in packages if p.manifest_digest in gone)
    if need == 0:
        assert not gone


def test_watermarks() -> None:
    marks = Watermarks(high=0.9, low=0.8)
    assert marks.excess(1000, 100) == 0
    assert marks.excess(1000, 99) == 101
    assert marks.excess(1000, 0) == 200
    for high, low in ((0.5, 0.6), (1.1, 0.5), (0.5, 0)):
        with pytest.raises(ValueError, match="watermarks"):
            Watermarks(high, low)
