"""What the store asks of a file system.

Owns durable syncing of many files at once, cloning of file extents, and the translation of "disk full" into an error
that names the place and the need. Must not know about packages.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from peat_p2p.core.errors import ExhaustedError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FICLONE = 0x40049409
# What a file system answers when it cannot clone or the two files cannot share extents.
_NO_CLONE = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM})
_NO_COPY = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS})
_libc = ctypes.CDLL(None, use_errno=True)


def sync_file_system(path: Path) -> None:
    """Make everything written so far to the file system of `path` durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        # One syncfs costs about as much as one fsync; a thousand small files cost a thousand fsyncs.
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(fd)


def free_bytes(path: Path) -> int:
    """Bytes an unprivileged writer can still put on the file system of `path`."""
    return shutil.disk_usage(path).free


@contextlib.contextmanager
def disk_full(path: Path, need: int, what: str) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT into ExhaustedError naming `path` and the bytes needed."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise exhausted(path, need, what) from error


def exhausted(path: Path, need: int, what: str) -> ExhaustedError:
    """The error for: `need` bytes for `what` do not fit at `path`."""
    try:
        have = f"{human(free_bytes(path))} are free"
    except OSError:
        have = "it is full"
    return ExhaustedError(f"{path}: {what} needs {human(need)}, {have}; free some space or use another data directory")


def human(count: int) -> str:
    """Bytes for people: `12.3 MB`."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def clone(source_fd: int, target_fd: int) -> bool:
    """Let `target` share all of `source`'s extents. False if the file system cannot."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True


def copy_range(source_fd: int, source_offset: int, target_fd: int, target_offset: int, length: int) -> None:
    """Copy bytes between files inside the kernel where it can. Raises OSError; EOFError if `source` is too short."""
    while length:
        try:
            done = os.copy_file_range(source_fd, target_fd, length, source_offset, target_offset)
        except OSError as error:
            if error.errno not in _NO_COPY:
                raise
            done = os.pwrite(target_fd, os.pread(source_fd, min(length, 1 << 20), source_offset), target_offset)
        if done == 0:
            raise EOFError
        source_offset += done
        target_offset += done
        length -= done
