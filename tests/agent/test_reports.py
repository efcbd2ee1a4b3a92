"""The comparison between what the sidecar should hold and what it holds."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from peat_p2p.agent import documents
from peat_p2p.agent.reports import Delete, Key, Put, ReportBook, Write, next_beat
from peat_p2p.content.manifest import Manifest
from peat_p2p.fleet.holdings import PullStatus

BEAT = Key("platforms", "a1")
HOLDING = Key("packages", "a1:app:1-any")


def drain(book: ReportBook) -> list[Write]:
    writes = book.take(100)
    for write in writes:
        book.wrote(write)
    return writes


def test_heartbeat_goes_out_whole_before_the_snapshot_and_the_rest_waits() -> None:
    book = ReportBook("a1")
    book.want(BEAT, {"agent_id": "a1", "last_seen": 1})
    book.want(HOLDING, {"held_bytes": 3})
    assert drain(book) == [Put(BEAT, {"agent_id": "a1", "last_seen": 1})]
    book.snapshot_complete()
    assert Put(HOLDING, {"held_bytes": 3}) in drain(book)


def test_only_the_changed_field_is_sent() -> None:
    book = ReportBook("a1")
    book.snapshot_complete()
    book.want(BEAT, {"agent_id": "a1", "last_seen": 1})
    drain(book)
    book.want(BEAT, {"agent_id": "a1", "last_seen": 2})
    assert drain(book) == [Put(BEAT, {"last_seen": 2})]
    assert drain(book) == []


def test_nothing_queues_while_the_sidecar_is_away() -> None:
    book = ReportBook("a1")
    for second in range(1000):
        book.want(BEAT, {"last_seen": second})
        [write] = book.take(10)
        book.failed(write)
    assert drain(book) == [Put(BEAT, {"last_seen": 999})]


def test_what_the_sidecar_lost_is_written_again_whole() -> None:
    book = ReportBook("a1")
    book.snapshot_complete()
    book.want(HOLDING, {"version": "1", "held_bytes": 3})
    drain(book)
    book.lost()
    assert drain(book) == []
    book.snapshot_complete()  # an empty sidecar
    assert drain(book) == [Put(HOLDING, {"version": "1", "held_bytes": 3})]


def test_what_the_sidecar_kept_is_not_written_again() -> None:
    book = ReportBook("a1")
    book.snapshot_complete()
    book.want(HOLDING, {"version": "1", "held_bytes": 3})
    drain(book)
    book.lost()
    book.saw(HOLDING, {"version": "1", "held_bytes": 2, "note": "by another"})
    book.snapshot_complete()
    assert drain(book) == [Put(HOLDING, {"held_bytes": 3})]


def test_own_documents_that_nothing_stands_behind_are_deleted_and_others_are_left() -> None:
    book = ReportBook("a1")
    for doc_id in ("a1:old:1-any", "a2:old:1-any", "a11:old:1-any"):
        book.saw(Key("packages", doc_id), {"version": "1"})
    book.saw(Key("receipts", "c1:a1"), {"status": 3})
    book.saw(Key("receipts", "c1:a11"), {"status": 3})
    book.saw(Key("commands", "c1"), {"status": 1})
    book.snapshot_complete()
    assert drain(book) == [Delete(Key("packages", "a1:old:1-any"))]
    book.unwant(Key("receipts", "c1:a1"))  # receipts outlive what this agent remembers: they go only when told to
    book.unwant(Key("receipts", "c1:a11"))
    assert drain(book) == [Delete(Key("receipts", "c1:a1"))]


def test_a_status_is_written_only_into_a_command_that_is_there() -> None:
    book = ReportBook("a1")
    book.snapshot_complete()
    book.want(Key("commands", "c1"), {"status": 3}, only_if_exists=True)
    assert drain(book) == []
    book.saw(Key("commands", "c1"), {"id": "c1", "status": 1})
    assert drain(book) == [Put(Key("commands", "c1"), {"status": 3})]


def test_a_write_answered_after_the_sidecar_was_lost_proves_nothing() -> None:
    book = ReportBook("a1")
    book.snapshot_complete()
    book.want(HOLDING, {"held_bytes": 3})
    [write] = book.take(1)
    book.lost()
    book.wrote(write)
    book.snapshot_complete()
    assert drain(book) == [Put(HOLDING, {"held_bytes": 3})]


def test_what_another_changed_after_us_is_left_until_we_want_something_new() -> None:
    book = ReportBook("a1")
    book.snapshot_complete()
    book.want(BEAT, {"labels": {"tier": "edge"}, "last_seen": 1})
    drain(book)
    book.saw(BEAT, {"labels": {"tier": "core"}, "last_seen": 1})  # an operator's word
    assert drain(book) == []
    book.want(BEAT, {"labels": {"tier": "edge"}, "last_seen": 2})
    assert drain(book) == [Put(BEAT, {"last_seen": 2})]
    book.lost()
    book.saw(BEAT, {"labels": {"tier": "core"}, "last_seen": 2})
    book.snapshot_complete()
    assert drain(book) == []
    book.want(BEAT, {"labels": {"tier": "mobile"}, "last_seen": 2})
    assert drain(book) == [Put(BEAT, {"labels": {"tier": "mobile"}})]
    book.lost()
    book.snapshot_complete()  # the sidecar lost it all, the operator's word too
    assert drain(book) == [Put(BEAT, {"labels": {"tier": "mobile"}, "last_seen": 2})]


def test_what_is_this_agents_alone_is_put_right() -> None:
    book = ReportBook("a1")
    book.snapshot_complete()
    book.want(HOLDING, {"held_bytes": 3})
    drain(book)
    book.saw(HOLDING, {"held_bytes": 9})
    assert drain(book) == [Put(HOLDING, {"held_bytes": 3})]


def test_a_refused_write_waits_for_a_change() -> None:
    book = ReportBook("a1")
    book.snapshot_complete()
    book.want(HOLDING, {"note": "x" * 10})
    [write] = book.take(1)
    book.refused(write)
    assert book.take(1) == []
    book.want(HOLDING, {"note": "x"})
    assert drain(book) == [Put(HOLDING, {"note": "x"})]


def test_beats_spread() -> None:
    assert next_beat(100.0, 10.0, 0.1, 0.0) == 109.0
    assert next_beat(100.0, 10.0, 0.1, 0.5) == 110.0
    assert next_beat(100.0, 10.0, 0.0, 0.99) == 110.0


KEYS = st.sampled_from([Key("packages", f"a1:p{n}") for n in range(3)] + [Key("receipts", "c1:a1"), BEAT])
FIELDS = st.dictionaries(st.sampled_from("xyz"), st.integers(0, 2), min_size=1)


class Reporting(RuleBasedStateMachine):
    """A sidecar that comes, goes, and loses data; whatever happened, it ends up holding what is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.book = ReportBook("a1")
        self.wanted: dict[Key, dict[str, int]] = {}
        self.sidecar: dict[Key, dict[str, Any]] = {}
        self.flying: list[Write] = []
        self.up = False

    @rule(key=KEYS, fields=FIELDS)
    def want(self, key: Key, fields: dict[str, int]) -> None:
        self.wanted[key] = fields
        self.book.want(key, fields)

    @rule(key=KEYS)
    def unwant(self, key: Key) -> None:
        self.wanted.pop(key, None)
        self.book.unwant(key)

    @precondition(lambda self: not self.up)
    @rule(wiped=st.booleans())
    def connect(self, wiped: bool) -> None:
        if wiped:
            self.sidecar.clear()
        self.up = True
        for key, fields in self.sidecar.items():
            self.book.saw(key, dict(fields))
        self.book.snapshot_complete()

    @precondition(lambda self: self.up)
    @rule(kept=st.booleans())
    def disconnect(self, kept: bool) -> None:
        self.up = False
        if kept:
            for write in self.flying:
                self.store(write)
        self.flying.clear()
        self.book.lost()

    @rule(limit=st.integers(1, 4))
    def take(self, limit: int) -> None:
        self.flying += self.book.take(limit)

    @precondition(lambda self: self.flying)
    @rule()
    def answer(self) -> None:
        write = self.flying.pop(0)
        if self.up:
            self.store(write)
            self.book.wrote(write)
        else:
            self.book.failed(write)

    def store(self, write: Write) -> None:
        if isinstance(write, Delete):
            self.sidecar.pop(write.key, None)
        else:
            self.sidecar.setdefault(write.key, {}).update(write.fields)

    @invariant()
    def no_key_is_written_twice_at_once(self) -> None:
        keys = [write.key for write in self.flying]
        assert len(keys) == len(set(keys))

    def teardown(self) -> None:
        if not self.up:
            self.flying.clear()
            self.book.lost()
            self.connect(False)
        for _ in range(50):
            while self.flying:
                self.answer()
            self.take(4)
            if not self.flying:
                break
        for key, fields in self.wanted.items():
            assert fields.items() <= self.sidecar[key].items()
        gone = [key for key in self.sidecar if key not in self.wanted and key != BEAT]
        assert gone == []


TestReporting = Reporting.TestCase
TestReporting.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_what_a_fleet_is_told_of_a_package_of_30_gb_is_less_than_a_kilobyte() -> None:
    manifest = Manifest(
        name="navigation-charts-north-atlantic",
        version="2026.11.25-rc1",
        arch="aarch64",
        digest=f"blake3:{'d' * 64}",
        total_bytes=30 * 10**9,
        files=400_000,
        chunks=30_000,
        infohash="e" * 64,
        created=1_790_000_000,
    )
    held = documents.HeldPackage(
        manifest=manifest,
        digest=f"blake3:{'f' * 64}",
        status=PullStatus.PULLING,
        held_bytes=29 * 10**9,
        waiting="w" * 200,
    )
    key, fields = documents.holding("vessel-7-rack-2-node-11", held, 1_790_000_123.0)
    assert len(json.dumps(fields)) + len(key.doc_id) < 1000
