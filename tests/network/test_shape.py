"""What a link's words mean, without a network."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.net.profiles import PROFILES
from bench.net.shape import Burst, Episode, Outage, Pipe, Shape, ShapeError, Wire, parse_rate
from bench.net.topology import TopologyError, as_table, from_table, pair, parse


def test_packets_leave_one_after_the_other_at_the_rate() -> None:
    pipe = Pipe(Shape(rate=1e6, delay=0.1, queue=10.0), "seed")
    arrivals = [pipe.accept(5.0, 1250) for _ in range(3)]
    assert arrivals == pytest.approx([5.11, 5.12, 5.13])


def test_a_packet_that_would_wait_longer_than_the_queue_is_dropped() -> None:
    pipe = Pipe(Shape(rate=1e6, queue=0.2), "seed")  # 20 packets of 10 ms
    kept = [pipe.accept(0.0, 1250) for _ in range(100)]
    assert sum(one is not None for one in kept) in (20, 21)
    assert pipe.counters.dropped_queue == 100 - sum(one is not None for one in kept)
    assert pipe.accept(0.2, 1250) is not None


def test_a_lost_packet_has_used_its_time_on_the_link() -> None:
    pipe = Pipe(Shape(rate=1e6, loss=1.0, queue=10.0), "seed")
    pipe.accept(0.0, 1250)
    assert pipe.wire.free_at == pytest.approx(0.01)
    assert pipe.counters.dropped_loss == 1


def test_two_directions_on_one_wire_share_its_rate() -> None:
    wire = Wire()
    there, back = (Pipe(Shape(rate=1e6, queue=10.0), seed, wire) for seed in "ab")
    assert there.accept(0.0, 1250) == pytest.approx(0.01)
    assert back.accept(0.0, 1250) == pytest.approx(0.02)


def test_burst_loss_has_its_mean_and_its_length() -> None:
    pipe = Pipe(Shape(burst=Burst(enter=0.01, leave=0.2)), "seed")
    lost = [pipe.accept(0.0, 100) is None for _ in range(200_000)]
    rows = sum(now and not before for before, now in itertools.pairwise(lost))
    assert sum(lost) / len(lost) == pytest.approx(0.01 / 0.21, rel=0.05)
    assert sum(lost) / rows == pytest.approx(5.0, rel=0.05)


def test_episodes_come_by_the_clock() -> None:
    pipe = Pipe(Shape(episodes=(Episode(loss=1.0, seconds=0.5, every=15.0),)), "seed", epoch=100.0)
    lost = [at for at in range(0, 60_000, 100) if pipe.accept(100.0 + at / 1000, 100) is None]
    assert lost == [start + at for start in (15_000, 30_000, 45_000) for at in range(0, 500, 100)]


def test_an_outage_takes_what_waits_and_spares_what_is_under_way() -> None:
    shape = Shape(rate=1e6, delay=1.0, queue=10.0, outage=Outage(up=0.015, down=1.0))
    pipe = Pipe(shape, "seed", epoch=10.0)
    assert pipe.accept(10.0, 1250) == pytest.approx(11.01)
    assert pipe.accept(10.0, 1250) is None  # its turn would have ended at 10.02, in the outage
    assert pipe.accept(10.5, 1250) is None
    assert pipe.accept(11.02, 1250) is not None
    assert pipe.counters.dropped_outage == 2


@given(
    st.floats(0.0, 0.1),
    st.lists(st.floats(0.0, 0.05), min_size=2, max_size=100),
    st.integers(0, 1000),
)
def test_jitter_stays_within_its_bounds_and_keeps_the_order(jitter: float, gaps: list[float], seed: int) -> None:
    pipe = Pipe(Shape(delay=0.1, jitter=jitter), str(seed))
    sent = list(itertools.accumulate(gaps))
    arrived = [pipe.accept(at, 100) for at in sent]
    assert all(there is not None for there in arrived)
    delays = [there - at for there, at in zip(arrived, sent, strict=True) if there is not None]
    assert min(delays) >= 0.1 - jitter - 1e-9
    assert max(delays) <= 0.1 + jitter + 1e-9
    assert arrived == sorted(one for one in arrived if one is not None)


def test_reordering_happens_only_when_asked_for() -> None:
    pipe = Pipe(Shape(delay=0.1, jitter=0.05, reorder=True), "seed")
    arrived = [pipe.accept(number * 0.001, 100) or 0.0 for number in range(100)]
    assert arrived != sorted(arrived)


@pytest.mark.parametrize(
    ("text", "rate"), [("512k", 512e3), ("20M", 20e6), ("1G", 1e9), (9600, 9600.0), ("1.5M", 1.5e6)]
)
def test_rates_are_written_as_people_write_them(text: object, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("wrong", ["fast", "10Mbit", "", None])
def test_a_rate_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(ShapeError, match="is not a rate"):
        parse_rate(wrong)


@pytest.mark.parametrize("wrong", [{"loss": 1.5}, {"delay": -1}, {"jitter": 1, "delay": 0.5}, {"speed": 3}])
def test_a_shape_that_means_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ShapeError):
        Shape().changed(wrong)


def test_every_profile_survives_the_way_to_the_relay() -> None:
    for name in PROFILES:
        topology = pair(name, far=("b", "c"))
        assert from_table(as_table(topology)) == topology
    lan = parse({"lan": "1G", "sites": {"rack": ["a", "b"]}})
    assert lan.lan == 1e9
    assert from_table(as_table(lan)) == lan


def test_the_time_scale_shrinks_schedules_alone() -> None:
    link = pair("ship", time_scale=0.01).link("link")
    assert link.down.outage == Outage(12.0, 60.0)
    assert (link.down.rate, link.down.delay) == (2e6, 0.3)


def test_routes_lead_over_the_fewest_links() -> None:
    topology = parse(
        {
            "sites": {"a": ["a1"], "b": ["b1"], "c": ["c1", "c2"], "d": ["d1"]},
            "links": [
                {"between": ["a", "b"], "profile": "lan"},
                {"between": ["b", "c"], "profile": "geo"},
                {"between": ["c", "d"], "profile": "lan"},
            ],
        }
    )
    assert topology.next_hops("a") == {"b": ("a-b", "b"), "c": ("a-b", "b"), "d": ("a-b", "b")}
    assert topology.next_hops("d")["a"] == ("c-d", "c")
    assert topology.router("c") == "gw-c"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"sites": {"a": ["x"]}, "links": [{"between": ["a", "b"]}]}, "no hosts"),
        ({"sites": {"a": ["x"], "b": ["x"]}}, "same name"),
        ({"sites": {"a": ["X Y"]}}, "is no name"),
        ({"sites": {"a": ["x"]}, "cuts": [{"link": "l", "at": 1, "seconds": 1}]}, "no link"),
        ({"sites": {"a": ["x"], "b": ["y"]}, "links": [{"between": ["a", "b"], "speed": 1}]}, "no property"),
        ({"sites": {"a": ["x"]}, "routers": 3}, "has no routers"),
        ({"sites": {}}, "between 1 and 250"),
    ],
)
def test_a_topology_that_cannot_be_built_says_why(table: dict[str, object], said: str) -> None:
    with pytest.raises(TopologyError, match=said):
        parse(table)
