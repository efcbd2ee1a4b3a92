"""The rules by which commands are carried out."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from peat_p2p.agent.commands import (
    CommandDesk,
    Effect,
    Finished,
    Forget,
    Order,
    Ordered,
    Progressed,
    Record,
    Refused,
    Remember,
    Report,
    Start,
    Stop,
    Ticked,
    Withdrawn,
    order_fields,
)
from peat_p2p.fleet.commands import CommandStatus as Status

NOW = 1_700_000_000.0
PULL = Order(
    id="c1", type="pull", created_at=int(NOW) - 5, expires_at=int(NOW) + 100, payload="p1", single=True, package="app"
)


def reports(effects: list[Effect]) -> list[tuple[str, Status, str]]:
    return [(e.command_id, e.status, e.message) for e in effects if isinstance(e, Report)]


def deploy(command_id: str, created_at: int, **more: object) -> Order:
    return replace(PULL, id=command_id, type="deploy", created_at=created_at, payload=command_id, **more)  # type: ignore[arg-type]


def test_a_command_is_remembered_reported_and_started_once() -> None:
    desk = CommandDesk()
    effects = desk.handle(Ordered(PULL), NOW)
    assert [type(e) for e in effects] == [Remember, Report, Start]
    assert desk.handle(Ordered(PULL), NOW) == []
    done = desk.handle(Finished("c1", "complete"), NOW + 1)
    assert reports(done) == [("c1", Status.COMPLETED, "complete")]
    assert desk.handle(Ordered(PULL), NOW + 2) == []


def test_failure_carries_its_reason() -> None:
    desk = CommandDesk()
    desk.handle(Ordered(PULL), NOW)
    assert reports(desk.handle(Finished("c1", "", error="the disk is full"), NOW)) == [
        ("c1", Status.FAILED, "the disk is full")
    ]


def test_unknown_type_expired_and_missing_package_fail_with_a_reason() -> None:
    for order, word in (
        (replace(PULL, type="reboot"), "'reboot'"),
        (replace(PULL, expires_at=int(NOW)), "expired"),
        (replace(PULL, package=""), "names no package"),
    ):
        [(_, status, message)] = reports(CommandDesk().handle(Ordered(order), NOW))
        assert status is Status.FAILED
        assert word in message


def test_a_broadcast_that_was_over_before_this_agent_saw_it_is_nothing_to_report() -> None:
    order = replace(PULL, single=False, expires_at=int(NOW) - 1)
    assert CommandDesk().handle(Ordered(order), NOW) == []


def test_an_expired_command_whose_end_was_told_is_left_alone() -> None:
    order = replace(PULL, expires_at=int(NOW) - 1)
    assert CommandDesk().handle(Ordered(order, told=True), NOW) == []


def test_waiting_ends_at_expiry_but_flowing_bytes_are_let_finish() -> None:
    desk = CommandDesk()
    desk.handle(Ordered(PULL), NOW)
    desk.handle(Progressed("c1", "no holder is reachable", waiting=True), NOW)
    effects = desk.handle(Ticked(), NOW + 101)
    assert effects[0] == Stop("c1")
    assert reports(effects) == [("c1", Status.FAILED, "expired while waiting: no holder is reachable")]

    desk = CommandDesk()
    desk.handle(Ordered(PULL), NOW)
    desk.handle(Progressed("c1", "fetching", waiting=False), NOW)
    assert desk.handle(Ticked(), NOW + 101) == []


def test_refusal_is_said_and_a_good_copy_still_counts() -> None:
    desk = CommandDesk()
    assert reports(desk.handle(Refused("c1", "no signature", single=True), NOW)) == [
        ("c1", Status.FAILED, "no signature")
    ]
    assert Start(PULL) in desk.handle(Ordered(PULL), NOW)
    assert desk.handle(Refused("c1", "no signature", single=True), NOW) == []
    assert CommandDesk().handle(Refused("c2", "no signature", single=True, told=True), NOW) == []


def test_progress_is_reported_when_it_changes() -> None:
    desk = CommandDesk()
    desk.handle(Ordered(PULL), NOW)
    assert len(desk.handle(Progressed("c1", "waiting for a holder", waiting=True), NOW)) == 1
    assert desk.handle(Progressed("c1", "waiting for a holder", waiting=True), NOW) == []


def test_a_withdrawn_command_stops() -> None:
    desk = CommandDesk()
    desk.handle(Ordered(PULL), NOW)
    assert desk.handle(Withdrawn("c1"), NOW) == [Stop("c1"), Forget("c1")]
    assert desk.handle(Finished("c1", "late"), NOW) == []


def test_the_later_deploy_wins_in_either_order_of_arrival() -> None:
    old, new = deploy("c1", 10, version="1", expires_at=0), deploy("c2", 20, version="2", expires_at=0)
    desk = CommandDesk()
    desk.handle(Ordered(old), NOW)
    effects = desk.handle(Ordered(new), NOW)
    assert Stop("c1") in effects
    assert ("c1", Status.CANCELLED, "a later command has replaced it: deploy app:2 (c2)") in reports(effects)
    assert Start(new) in effects

    desk = CommandDesk()
    desk.handle(Ordered(new), NOW)
    desk.handle(Finished("c2", "deployed"), NOW)
    [(_, status, _)] = reports(desk.handle(Ordered(old), NOW))
    assert status is Status.CANCELLED


def test_a_deploy_that_failed_does_not_stand_in_the_way_of_an_earlier_one() -> None:
    desk = CommandDesk()
    desk.handle(Ordered(deploy("c2", 20)), NOW)
    desk.handle(Finished("c2", "", error="bad"), NOW)
    assert Start(deploy("c1", 10)) in desk.handle(Ordered(deploy("c1", 10)), NOW)


def test_a_restart_goes_on_and_reports_again() -> None:
    done = Record(replace(PULL, id="c0"), Status.COMPLETED, "complete", 5)
    running = Record(PULL, Status.EXECUTING, "fetching", 6)
    desk = CommandDesk()
    effects = desk.restore([done, running])
    assert Start(PULL) in effects
    assert [e for e in effects if isinstance(e, Start)] == [Start(PULL)]
    assert {r[0] for r in reports(effects)} == {"c0", "c1"}
    assert desk.handle(Ordered(done.order), NOW) == []


def test_an_id_used_again_for_something_newer_counts_as_new_and_older_does_not() -> None:
    desk = CommandDesk()
    desk.handle(Ordered(PULL), NOW)
    again = replace(PULL, payload="p2", created_at=PULL.created_at + 1)
    assert desk.handle(Ordered(again), NOW)[0] == Stop("c1")
    assert desk.handle(Ordered(replace(PULL, payload="p3", created_at=1)), NOW) == []


def test_payload_fields_that_are_not_text_count_as_absent() -> None:
    assert order_fields({"package": "app", "version": 3, "arch": None, "other": "x"}) == {"package": "app"}


class Commands(RuleBasedStateMachine):
    """Commands come in any order, repeat, restart in between: each is started at most once per life until it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = CommandDesk()
        self.journal: dict[str, Record] = {}
        self.running: set[str] = set()
        self.ended: set[str] = set()
        self.now = NOW

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Start(order):
                    assert order.id not in self.running
                    assert order.id not in self.ended
                    assert self.journal[order.id].status is Status.EXECUTING  # remembered first
                    self.running.add(order.id)
                case Stop(command_id):
                    self.running.remove(command_id)
                case Remember(record):
                    self.journal[record.order.id] = record
                case Forget(command_id):
                    self.journal.pop(command_id, None)
                    self.ended.discard(command_id)
                case Report(command_id, status):
                    if status.final and command_id in self.journal:
                        assert command_id not in self.running or self.journal[command_id].status.final
                        self.ended.add(command_id)

    @rule(n=st.integers(0, 3), kind=st.sampled_from(["pull", "deploy", "x"]), expires=st.sampled_from([0, 50]))
    def order(self, n: int, kind: str, expires: int) -> None:
        expires_at = int(NOW) + expires if expires else 0
        order = replace(PULL, id=f"c{n}", type=kind, created_at=n, expires_at=expires_at, payload="same")
        self.do(self.desk.handle(Ordered(order), self.now))

    @rule(n=st.integers(0, 3), error=st.sampled_from(["", "no"]))
    def finish(self, n: int, error: str) -> None:
        if f"c{n}" in self.running:
            self.running.remove(f"c{n}")
            self.do(self.desk.handle(Finished(f"c{n}", "done", error), self.now))

    @rule(n=st.integers(0, 3), waiting=st.booleans())
    def progress(self, n: int, waiting: bool) -> None:
        self.do(self.desk.handle(Progressed(f"c{n}", str(self.now), waiting), self.now))

    @rule(n=st.integers(0, 3))
    def withdraw(self, n: int) -> None:
        self.do(self.desk.handle(Withdrawn(f"c{n}"), self.now))

    @rule(seconds=st.integers(0, 30))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.do(self.desk.handle(Ticked(), self.now))

    @rule()
    def restart(self) -> None:
        self.desk, self.running = CommandDesk(), set()
        self.do(self.desk.restore(self.journal.values()))

    @invariant()
    def at_most_one_deploy_of_a_package_runs(self) -> None:
        running = [r for r in self.running if self.journal[r].order.type == "deploy"]
        assert len(running) <= 1

    @invariant()
    def journal_and_work_agree(self) -> None:
        assert self.running == {i for i, r in self.journal.items() if r.status is Status.EXECUTING}


TestCommands = Commands.TestCase
TestCommands.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
