"""Files are asked for shortly before they are read, whatever has become of them meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from peat_p2p.content import readahead
from peat_p2p.content.readahead import ReadAhead

WAIT = 20


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    real = readahead._ask_for

    def ask(path: Path) -> None:
        names.append(path.name)
        real(path)

    monkeypatch.setattr(readahead, "_ask_for", ask)
    return names


def ahead_of(folder: Path, size: int, count: int) -> tuple[ReadAhead, threading.Event]:
    """A read-ahead over `count` files of `size` bytes each, and what is set when it came to its end."""
    ended = threading.Event()

    def files() -> Iterator[tuple[int, Path]]:
        for number in range(count):
            path = folder / str(number)
            path.write_bytes(b"x")
            yield number * size, path
        ended.set()

    return ReadAhead(files()), ended


def until(asked: list[str], count: int) -> None:
    waited = threading.Event()
    for _ in range(WAIT * 100):
        if len(asked) >= count:
            return
        waited.wait(0.01)
    raise AssertionError(f"asked for {asked} only")


def test_it_stays_a_little_ahead_of_the_reader_and_skips_what_was_read(tmp_path: Path, asked: list[str]) -> None:
    size = readahead._AHEAD_BYTES // 4
    ahead, ended = ahead_of(tmp_path, size, 30)
    with ahead:
        until(asked, 5)
        assert not ended.wait(0.2)
        assert asked == ["0", "1", "2", "3", "4"]
        ahead.reached(20 * size)
        until(asked, 10)
        ahead.reached(29 * size)
        assert ended.wait(WAIT)
    assert asked[5:10] == ["20", "21", "22", "23", "24"]
    assert asked[-1] == "29"


def test_it_ends_with_a_reader_that_stops_early(tmp_path: Path, asked: list[str]) -> None:
    ahead, ended = ahead_of(tmp_path, readahead._AHEAD_BYTES, 10)
    with ahead:
        until(asked, 2)
    assert len(asked) == 2
    assert not ended.is_set()


def test_what_cannot_be_opened_or_became_a_pipe_holds_nothing_up(tmp_path: Path, asked: list[str]) -> None:
    pipe, last = tmp_path / "pipe", tmp_path / "last"
    os.mkfifo(pipe)
    last.write_bytes(b"x")
    with ReadAhead([(0, tmp_path / "gone"), (0, pipe), (0, last)]):
        until(asked, 3)
    assert asked == ["gone", "pipe", "last"]
