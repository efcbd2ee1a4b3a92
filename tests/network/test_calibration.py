"""The emulator is measured once a boot and code, and every result made on it carries what was found."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import run_bench
from bench.net import calibration as module
from bench.net import state
from bench.net.network import Network
from bench.result import Bench, Run, Scenario


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """How long each measurement was to be; nothing is measured."""
    lengths: list[float] = []

    def selftest(seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
        lengths.append(seconds)
        return {"backend": "tun", "holds": True, "checks": []}

    monkeypatch.setattr(module, "selftest", selftest)
    monkeypatch.setattr(state, "BASE", tmp_path / "networks")
    (tmp_path / "networks").mkdir()
    return lengths


def test_it_is_measured_once(measured: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = module.calibration(print)
    assert module.calibration(print) == first
    assert measured == [3.0]
    assert module.calibration(print, quick=True)["holds"]
    assert measured == [3.0, 1.0]
    boot = tmp_path / "boot"
    boot.write_text("another boot\n")
    monkeypatch.setattr(module, "_BOOT_ID", boot)
    assert module.calibration(print)["key"] != first["key"]
    assert measured == [3.0, 1.0, 3.0]


@pytest.mark.parametrize("harm", ["", "{", "[]", '{"measured": 1}'])
def test_what_was_kept_and_cannot_be_read_is_measured_again(measured: list[float], tmp_path: Path, harm: str) -> None:
    (tmp_path / "networks" / "calibration.json").write_text(harm)
    assert module.calibration(print)["backend"] == "tun"
    assert measured == [3.0]


@pytest.mark.parametrize(
    ("made", "words", "carried"), [(True, [], True), (False, [], False), (True, ["--no-calibration"], False)]
)
def test_results_carry_it_where_a_network_was_made(
    measured: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: bool, words: list[str], carried: bool
) -> None:
    monkeypatch.setattr(Network, "made", False)

    def scenario(run: Run) -> None:
        assert isinstance(run.options, argparse.Namespace)
        monkeypatch.setattr(Network, "made", made)

    bench = Bench("some", "a bench", (Scenario("one", "a scenario", scenario),))
    assert run_bench(bench, ["--json", str(tmp_path / "result.json"), *words]) == 0
    [result] = json.loads((tmp_path / "result.json").read_text())["scenarios"]
    assert ("calibration" in result["results"]) is carried
