"""Having files in memory by the time they are read.

Owns a thread that opens the files to come and asks the kernel for their bytes. The kernel itself reads ahead within a
file, never into the next one, so a reader of many small files would wait for the disk once for each. Must not read
anything itself or judge what it finds: whoever reads a file says what is wrong with it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path

# How far before the reader: enough for any disk's queue, little beside the memory of a small machine.
_AHEAD_BYTES = 32 << 20
# Of a large file; the kernel goes on from there.
_HEAD_BYTES = 1 << 20


class ReadAhead:
    """Goes before the reader of `files`, each the position (bytes) where it begins in what is read, and its path.

    Use it as a context manager; call `reached` with the position that is read next.
    """

    def __init__(self, files: Iterable[tuple[int, Path]]) -> None:
        self._files = files
        self._reached = 0
        self._ended = False
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="read ahead")

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._moved:
            self._ended = True
            self._moved.notify()
        self._thread.join()

    def reached(self, position: int) -> None:
        """Say where the reader is."""
        with self._moved:
            self._reached = position
            self._moved.notify()

    def _run(self) -> None:
        for at, path in self._files:
            if not self._is_near(at):
                return
            if at >= self._reached:
                with contextlib.suppress(OSError):
                    _ask_for(path)

    def _is_near(self, at: int) -> bool:
        """Wait until the reader is near `at`; False if it will read no more."""
        with self._moved:
            self._moved.wait_for(lambda: self._ended or at - self._reached <= _AHEAD_BYTES)
            return not self._ended


def _ask_for(path: Path) -> None:
    # What has become a pipe since it was looked at must not hold up this thread.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.posix_fadvise(fd, 0, _HEAD_BYTES, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(fd)
