"""Comparing two trees byte for byte, without any of the code that moved them.

Owns the demo's last word: it reads both trees from disk and trusts no digest, store or manifest.
"""

from __future__ import annotations

import stat
from pathlib import Path

_BLOCK = 1 << 20


def differences(expected: Path, actual: Path) -> list[str]:
    """Return how `actual` differs from `expected` (files or folders): names, kinds, contents, modes; empty if equal."""
    if expected.is_file():
        actual_file = actual / expected.name if actual.is_dir() else actual
        return _file_differences(expected, actual_file, expected.name)
    if not actual.is_dir():
        return [f"{actual} is not a folder"]
    left = {p.relative_to(expected).as_posix(): p for p in expected.rglob("*")}
    right = {p.relative_to(actual).as_posix(): p for p in actual.rglob("*")}
    found = [f"{name} is missing" for name in sorted(left.keys() - right.keys())]
    found += [f"{name} was not published" for name in sorted(right.keys() - left.keys())]
    for name in sorted(left.keys() & right.keys()):
        found += _file_differences(left[name], right[name], name)
    return found


def _file_differences(left: Path, right: Path, name: str) -> list[str]:
    try:
        a, b = left.lstat(), right.lstat()
    except FileNotFoundError:
        return [f"{name} is missing"]
    if stat.S_IFMT(a.st_mode) != stat.S_IFMT(b.st_mode):
        return [f"{name} is of another kind"]
    if stat.S_ISLNK(a.st_mode):
        return [] if left.readlink() == right.readlink() else [f"{name} points elsewhere"]
    if not stat.S_ISREG(a.st_mode):
        return []
    if a.st_size != b.st_size:
        return [f"{name} has {b.st_size} bytes, not {a.st_size}"]
    if (a.st_mode ^ b.st_mode) & 0o111:
        return [f"{name} is executable on one side only"]
    with left.open("rb") as one, right.open("rb") as other:
        while block := one.read(_BLOCK):
            if block != other.read(_BLOCK):
                return [f"{name} differs in its bytes"]
    return []
