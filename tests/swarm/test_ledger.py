"""The account of a transfer."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.swarm.ledger import Connection, Ledger


def test_bytes_belong_to_the_connection_that_brought_them() -> None:
    ledger = Ledger()
    ledger.observe(100, [Connection("a", "1", 60), Connection("b", "2", 40)])
    ledger.observe(180, [Connection("a", "1", 90), Connection("b", "2", 90)])
    assert (ledger.received, ledger.by_peer) == (180, {"a": 90, "b": 90})


def test_the_last_bytes_of_a_closed_connection_are_its_own() -> None:
    ledger = Ledger()
    ledger.observe(100, [Connection("a", "1", 60), Connection("b", "2", 40)])
    ledger.observe(150, [Connection("b", "2", 60)])
    assert ledger.by_peer == {"a": 90, "b": 60}
    ledger.observe(150, [])
    assert ledger.by_peer == {"a": 90, "b": 60}


def test_a_connection_that_is_missing_from_a_reading_is_not_counted_twice() -> None:
    ledger = Ledger()
    ledger.observe(100, [Connection("a", "1", 100)])
    ledger.observe(100, [])
    ledger.observe(150, [Connection("a", "1", 150)])
    assert (ledger.received, ledger.by_peer) == (150, {"a": 150})
    ledger.observe(170, [Connection("a", "1", 20)])
    assert ledger.by_peer == {"a": 170}


def test_readings_apart_in_time_even_out() -> None:
    ledger = Ledger()
    ledger.observe(100, [Connection("a", "1", 130)])
    ledger.observe(130, [Connection("a", "1", 130)])
    ledger.observe(130, [])
    assert (ledger.received, ledger.by_peer) == (130, {"a": 130})


def test_two_that_went_at_once_leave_bytes_of_nobody() -> None:
    ledger = Ledger()
    ledger.observe(20, [Connection("a", "1", 10), Connection("b", "2", 10)])
    ledger.observe(50, [])
    assert ledger.by_peer == {"a": 10, "b": 10, "": 30}


def test_it_survives_a_restart(tmp_path: Path) -> None:
    ledger = Ledger(reused=5, fetched=50)
    ledger.observe(80, [Connection("a", "1", 80)])
    ledger.bad_peers["z"] = 2
    ledger.save(tmp_path / "sub" / "ledger.json")
    again = Ledger.load(tmp_path / "sub" / "ledger.json")
    assert again is not None
    assert (again.reused, again.received, again.fetched, again.wasted) == (5, 80, 50, 30)
    again.observe(20, [Connection("b", "1", 20)])
    assert (again.received, again.by_peer, again.bad_peers) == (100, {"a": 80, "b": 20}, {"z": 2})


def test_a_damaged_account_begins_anew(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"reused": 1}', '{"by_peer": []}'):
        (tmp_path / "ledger.json").write_text(text)
        assert Ledger.load(tmp_path / "ledger.json") is None
    assert Ledger.load(tmp_path / "none.json") is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1000)), max_size=30))
def test_every_byte_is_somebodys_when_readings_are_exact(steps: list[tuple[str, int]]) -> None:
    ledger, totals, total = Ledger(), {"a": 0, "b": 0, "c": 0}, 0
    for who, count in steps:
        totals[who] += count
        total += count
        ledger.observe(total, [Connection(peer, peer, bytes_) for peer, bytes_ in totals.items()])
    assert ledger.received == total == sum(ledger.by_peer.values())
    assert {peer: count for peer, count in totals.items() if count} == ledger.by_peer
