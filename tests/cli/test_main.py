from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from peat_p2p.cli import main as main_module
from peat_p2p.cli.main import COMMANDS, exit_status
from peat_p2p.core import errors


def peat(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "peat_p2p.cli.main", *arguments], capture_output=True, text=True, check=False
    )


def test_every_command_teaches() -> None:
    top = peat("--help")
    assert top.returncode == 0
    for name in COMMANDS:
        assert name in top.stdout
        shown = peat(name, "--help")
        assert shown.returncode == 0, shown.stderr
        assert "Usage: " in shown.stdout


def test_errors_are_one_line_and_a_status(tmp_path: Path) -> None:
    missing = peat("formation", "show", "--dir", str(tmp_path / "none"))
    assert missing.returncode == 2
    assert missing.stderr.startswith("peat: ")
    assert "peat formation init" in missing.stderr
    assert "Traceback" not in missing.stderr
    wrong = peat("formation", "issue", "e1", "--role", "king", "--dir", str(tmp_path), "--out", str(tmp_path / "o"))
    assert wrong.returncode == 2
    assert "publisher" in wrong.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ConfigError("x"), 2),
        (errors.NotFoundError("x"), 3),
        (errors.UnavailableError("x"), 4),
        (errors.UntrustedError("x"), 5),
        (errors.ExhaustedError("x"), 6),
        (errors.ConflictError("x"), 1),
        (OSError(98, "x"), 1),
    ],
)
def test_exit_statuses(error: Exception, status: int) -> None:
    assert exit_status(error) == status


def test_formation_from_the_command_line(tmp_path: Path) -> None:
    ca, node = tmp_path / "ca", tmp_path / "e1"
    assert peat("formation", "init", "--name", "f1", "--dir", str(ca)).returncode == 0
    issued = peat(
        "formation", "issue", "e1", "--role", "agent", "--role", "publisher", "--dir", str(ca), "--out", str(node)
    )
    assert issued.returncode == 0, issued.stderr
    shown = peat("formation", "show", "--dir", str(ca))
    endpoint_id = issued.stdout.rsplit(maxsplit=1)[-1]
    assert endpoint_id in shown.stdout
    again = peat("formation", "init", "--name", "f1", "--dir", str(ca))
    assert again.returncode == 1
    assert "already holds a formation" in again.stderr


@pytest.mark.parametrize(("command", "status"), [("agent", 0), ("pull", 143)])
def test_a_stop_before_anything_runs_is_no_death_by_signal(
    monkeypatch: pytest.MonkeyPatch, command: str, status: int
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["peat", command])
    monkeypatch.setattr(main_module.peat, "main", lambda **_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(SystemExit) as stopped:
            main_module.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == status
