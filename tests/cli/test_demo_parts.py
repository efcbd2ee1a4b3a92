from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from peat_p2p.cli.demo.compare import differences
from peat_p2p.cli.demo.report import AgentResult, KillResult, Report


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    for side in ("a", "b"):
        root = tmp_path / side
        (root / "deep" / "empty").mkdir(parents=True)
        (root / "file").write_bytes(b"x" * 3_000_000)
        (root / "deep" / "run").write_bytes(b"#!/bin/sh\n")
        (root / "deep" / "run").chmod(0o755)
        (root / "link").symlink_to("file")
    return tmp_path / "a", tmp_path / "b"


def test_equal_trees_do_not_differ(trees: tuple[Path, Path]) -> None:
    assert differences(*trees) == []


def _flip(b: Path) -> None:
    with (b / "file").open("r+b") as f:
        f.seek(2_500_000)
        f.write(b"y")


def _relink(b: Path) -> None:
    (b / "link").unlink()
    (b / "link").symlink_to("deep/run")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_flip, "file differs in its bytes"),
        (_relink, "link points elsewhere"),
        (lambda b: (b / "file").write_bytes(b"x"), "file has 1 bytes"),
        (lambda b: (b / "deep" / "run").unlink(), "deep/run is missing"),
        (lambda b: (b / "new").touch(), "new was not published"),
        (lambda b: (b / "deep" / "run").chmod(0o644), "executable on one side"),
        (lambda b: (b / "deep" / "empty").rmdir(), "deep/empty is missing"),
    ],
)
def test_every_difference_is_found(trees: tuple[Path, Path], change: Callable[[Path], object], says: str) -> None:
    change(trees[1])
    found = differences(*trees)
    assert len(found) == 1
    assert says in found[0]


def test_a_single_file_is_found_in_its_folder(trees: tuple[Path, Path]) -> None:
    a, b = trees
    assert differences(a / "file", b) == []
    _flip(b)
    assert differences(a / "file", b) == ["file differs in its bytes"]


def _report() -> Report:
    def agent(name: str, phase: str, source: str) -> AgentResult:
        return AgentResult(name, phase, name.split("-")[0], "blake3:aa", True, 1.0, 100, bytes_by_source={source: 100})

    agents = [agent("alpha-1", "hub alive", "depot"), agent("alpha-2", "hub alive", "alpha-1")]
    agents += [agent(f"bravo-{n}", "hub dead", "alpha-1") for n in (1, 2, 3)]
    kill = KillResult("bravo-2", 50, 60, 50, 60, 100, in_flight_bytes=12, received_after_restart=50)
    return Report("p 1", 3, 100, "blake3:aa", agents, kill, 10.0, [])


def test_a_run_in_which_all_held() -> None:
    report = _report()
    assert report.kill is not None
    assert report.kill.fetched_twice == 10
    assert report.holds
    assert report.to_json()["holds"] is True
    assert report.entered() == {"alpha": 100, "bravo": 300}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: setattr(r.agents[4], "verified", False),
        lambda r: setattr(r.agents[4], "digest", "blake3:bb"),
        lambda r: r.agents[0].differences.append("file differs"),
        lambda r: r.agents[3].bytes_by_source.update(depot=1),
        lambda r: r.agents[3].bytes_by_source.update(hub=1),
        lambda r: r.agents[3].bytes_by_source.clear(),
        lambda r: r.agents.pop(),
        lambda r: setattr(r, "kill", None),
        lambda r: setattr(r, "kill", replace(r.kill, verified_after_restart=40)),
        lambda r: setattr(r, "kill", replace(r.kill, received_after_restart=55)),
        lambda r: r.problems.append("bravo-1-agent had died"),
    ],
)
def test_any_broken_promise_fails_the_run(spoil: Callable[[Report], object]) -> None:
    report = _report()
    spoil(report)
    assert not report.holds
