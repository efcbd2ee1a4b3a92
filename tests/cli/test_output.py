"""Progress for people: drawn on a terminal, lines elsewhere, nothing when a program reads."""

from __future__ import annotations

import sys

import pytest

from peat_p2p.cli.output import TransferBar


def _show(*, quiet: bool = False) -> None:
    with TransferBar("app:\x1b[31m1.0", quiet=quiet) as bar:
        bar.update(0, 0, "", "waiting: nobody is here")
        bar.update(1, 4, "1 B of 4 B", "fetching: from ann")
        bar.update(2, 4, "2 B of 4 B", "fetching: from ann")


def test_elsewhere_each_change_of_words_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    _show()
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == (
        "",
        ["app:�[31m1.0: waiting: nobody is here", "app:�[31m1.0: fetching: from ann"],
    )


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _show()
    out, err = capsys.readouterr()
    assert out == ""
    assert "2 B of 4 B" in err
    assert "━" in err
    assert "app:�[31m1.0" in err


def test_nothing_when_a_program_reads(capsys: pytest.CaptureFixture[str]) -> None:
    _show(quiet=True)
    assert capsys.readouterr() == ("", "")
