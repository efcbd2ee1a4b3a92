"""What the store asks of a file system.

Owns writing a file, durable syncing of many files at once, cloning of file extents, and the translation of "disk full"
into an error that names the place and the need. Must not know about packages.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from peat_p2p.core.errors import ExhaustedError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FICLONE = 0x40049409
# What a file system answers when it cannot clone or the two files cannot share extents.
_NO_CLONE = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM})
_NO_COPY = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS})
# What a file system or a seccomp filter answers that knows no such writes.
_NO_DIRECT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})
_DIRECT_BYTES = 64 << 10
_BLOCK = 4096
_local = threading.local()
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


def write_new(path: Path, data: memoryview | bytes) -> os.stat_result:
    """Make a file with this content and tell its state; it is not yet durable. Raises OSError.

    A large one goes past the page cache where the file system lets it: copying into the cache costs more than writing,
    and what is written once need not push out what is read often.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    if len(data) >= _DIRECT_BYTES:
        try:
            return _write_direct(path, flags, memoryview(data))
        except FileExistsError:
            raise
        except OSError as error:
            path.unlink(missing_ok=True)  # it may have been made before the flag was refused
            if error.errno not in _NO_DIRECT:
                raise
    fd = os.open(path, flags, 0o644)
    try:
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
        return os.fstat(fd)
    finally:
        os.close(fd)


def _write_direct(path: Path, flags: int, data: memoryview) -> os.stat_result:
    size = len(data)
    padded = -(-size // _BLOCK) * _BLOCK
    aligned: mmap.mmap | None = getattr(_local, "aligned", None)
    if aligned is None or len(aligned) < padded:
        # A mapping starts on a page, as such writes demand; it is made anew only for a larger file.
        aligned = _local.aligned = mmap.mmap(-1, max(padded, 1 << 20))
    with memoryview(aligned) as buffer:
        buffer[:size] = data
        fd = os.open(path, flags | os.O_DIRECT, 0o644)
        try:
            written = 0
            while written < padded:
                count = os.write(fd, buffer[written:padded])
                if count % _BLOCK:  # cut short where the disk is full; the rest would not be aligned
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                written += count
            os.ftruncate(fd, size)
            return os.fstat(fd)
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
