"""Extended attributes of files.

Owns which attributes a package carries, and what happens where a file system or user may not have them: they are left
out. Attributes of the system (SELinux labels, ACLs) belong to the machine and are never carried.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

_CARRIED = ("user.", "security.capability")
_NOT_HERE = frozenset({errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENODATA, errno.ENOSPC, errno.E2BIG})


def read_xattrs(path: Path) -> tuple[tuple[str, bytes], ...]:
    """The attributes of a file or directory that are carried, ordered by name."""
    try:
        names = sorted(name for name in os.listxattr(path, follow_symlinks=False) if name.startswith(_CARRIED))
        return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
    except OSError as error:
        if error.errno in _NOT_HERE:
            return ()
        raise


def set_xattrs(target: Path | int, xattrs: tuple[tuple[str, bytes], ...]) -> None:
    """Give a file those of the attributes that it may have here."""
    for name, value in xattrs:
        try:
            os.setxattr(target, name, value)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise


def differing_xattrs(path: Path, xattrs: tuple[tuple[str, bytes], ...]) -> list[str]:
    """Names of attributes whose value is not the one given, or that are there and were not given.

    One that is not there is no difference, for not every place can have it.
    """
    wanted = dict(xattrs)
    return [name for name, value in read_xattrs(path) if wanted.get(name) != value]
