"""Durable small files.

Owns the one way a file of ours comes to be: written under a temporary name in the same folder, synced, renamed into
place, the folder synced. A reader sees the old content or the new, never half, whatever the moment of a crash.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put `data` at `path` durably. Raises OSError; on failure nothing at `path` has changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_dir(path.parent)


def sync_file(path: Path) -> None:
    """Make the content of the file `path` durable. Raises OSError."""
    _sync(path, os.O_RDONLY)


def sync_dir(path: Path) -> None:
    """Make renames and removals inside the folder `path` durable. Raises OSError."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
