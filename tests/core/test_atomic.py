from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peat_p2p.core.atomic import write_atomic


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    write_atomic(target, b"one")
    write_atomic(target, b"two", mode=0o600)
    assert target.read_bytes() == b"two"
    assert target.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in target.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_atomic(target, b"old")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


_WRITER = """
import sys
from pathlib import Path
from peat_p2p.core.atomic import write_atomic
target = Path(sys.argv[1])
n = 0
while True:
    n += 1
    write_atomic(target, (b"%d " % (n % 10)) * 50_000)
"""


def test_kill_9_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomic(target, b"0 " * 50_000)
    for delay in (0.15, 0.18, 0.21):
        process = subprocess.Popen([sys.executable, "-c", _WRITER, str(target)])
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        words = target.read_bytes().split()
        assert len(words) == 50_000
        assert len(set(words)) == 1
