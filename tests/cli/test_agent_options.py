"""The flags of an agent and the settings they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from peat_p2p.cli.agent import agent_config, agent_options
from peat_p2p.cli.options import node_options
from peat_p2p.core.errors import ConfigError


def configure(tmp_path: Path, *arguments: str, env: dict[str, str] | None = None) -> tuple[Any, Result]:
    made: list[Any] = []

    @click.command()
    @node_options
    @agent_options
    def probe(**values: Any) -> None:
        made.append(agent_config(values, "http://127.0.0.1:1"))

    result = CliRunner().invoke(probe, ["--dev", "--data-dir", str(tmp_path), *arguments], env=env)
    return (made[0] if made else None), result


def test_nothing_is_limited_and_a_full_disk_is_relieved_by_default(tmp_path: Path) -> None:
    config, _ = configure(tmp_path)
    assert (config.watermarks.high, config.watermarks.low) == (0.95, 0.85)
    assert configure(tmp_path, "--evict-above", "0")[0].watermarks is None
    assert not config.budget.limits
    assert (config.download_limit, config.upload_limit, config.copies) == (0, 0, 2)
    assert config.arch


def test_budgets_windows_and_eviction(tmp_path: Path) -> None:
    config, _ = configure(
        tmp_path,
        *("--budget-hour", "500M", "--budget-day", "2g", "--budget-month", "7"),
        *("--transfer-window", "22:00-04:00", "--transfer-window", "12:00-13:00"),
        *("--evict-above", "90", "--copies", "3", "--arch", "arm64", "--run-mode", "edge"),
    )
    budget = config.budget
    assert (budget.hour, budget.day, budget.month) == (500_000_000, 2_000_000_000, 7)
    assert [str(window) for window in budget.windows] == ["22:00-04:00", "12:00-13:00"]
    assert (config.watermarks.high, config.watermarks.low) == (0.9, 0.8)
    assert (config.copies, config.arch, config.run_mode) == (3, "arm64", "edge")


def test_the_environment_and_a_file_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "peat.toml"
    file.write_text("budget_day = '1G'\ncopies = 4\n")
    config, result = configure(tmp_path, "--config", str(file), env={"PEAT_EVICT_ABOVE": "95", "PEAT_COPIES": "5"})
    assert config is not None, result.output
    assert (config.budget.day, config.copies, config.watermarks.high) == (10**9, 5, 0.95)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--evict-to", "96"),
        ("--evict-above", "0", "--evict-to", "50"),
        ("--evict-above", "50", "--evict-to", "60"),
        ("--transfer-window", "22:00"),
        ("--transfer-window", "25:00-26:00"),
    ],
)
def test_settings_that_contradict(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    _, result = configure(tmp_path, *arguments)
    assert isinstance(result.exception, ConfigError)


@pytest.mark.parametrize("arguments", [("--budget-day", "much"), ("--copies", "0"), ("--evict-above", "101")])
def test_values_that_make_no_sense(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert configure(tmp_path, *arguments)[1].exit_code == 2


def test_limits_are_sizes_and_all_are_listed(tmp_path: Path) -> None:
    flags = (
        "--site-download-limit",
        "500K",
        "--site-upload-limit",
        "2m",
        "--bearer-limit",
        "7",
        "--upload-limit",
        "1M",
    )
    config, _ = configure(tmp_path, *flags)
    assert config.limits == {
        "download-limit": 0,
        "upload-limit": 10**6,
        "site-download-limit": 500_000,
        "site-upload-limit": 2 * 10**6,
        "bearer-limit": 7,
    }
    assert "Traceback" not in configure(tmp_path, "--bearer-limit", "-1")[1].output
    assert configure(tmp_path, "--bearer-limit", "-1")[0] is None
