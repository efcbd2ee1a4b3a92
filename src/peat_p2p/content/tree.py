"""Comparing a directory on disk with an index.

Owns the answer to "is this, byte for byte, what was published?". Reads every byte of the files; needs no store. Must
not change anything.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from peat_p2p.content.entries import FileEntry, Kind
from peat_p2p.content.index import CHECK_BYTES, Index
from peat_p2p.content.xattrs import differing_xattrs

_READ = 4 << 20


def verify_tree(index: Index, path: Path, limit: int = 100) -> list[str]:
    """What differs between the package's directory at `path` and the index; empty if nothing.

    A package of a single file is a directory with that file in it. At most `limit` differences are listed.
    """
    differences: list[str] = []
    for text in _differences(index, path):
        differences.append(text)
        if len(differences) >= limit:
            break
    return differences


def _differences(index: Index, path: Path) -> Iterator[str]:
    if not path.is_dir() or path.is_symlink():
        yield f"{path} is not a directory"
        return
    if index.root_mode and stat.S_IMODE(path.stat().st_mode) != index.root_mode:
        yield f"mode of {path} is {stat.S_IMODE(path.stat().st_mode):04o}, not {index.root_mode:04o}"
    yield from _extra(index, path)
    content = _Content(index)
    for entry in index.files:
        yield from _check(entry, path / entry.path, content)
    if content.bad:
        yield f"content differs in: {', '.join(sorted(content.bad)[:20])}"


def _extra(index: Index, path: Path) -> Iterator[str]:
    known = {entry.path for entry in index.files}
    for folder, folders, files in os.walk(path):
        inside = Path(folder).relative_to(path)
        for name in folders + files:
            here = str(inside / name) if str(inside) != "." else name
            if here not in known:
                yield f"{here} is not in the package"


def _check(entry: FileEntry, path: Path, content: _Content) -> Iterator[str]:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        yield f"{entry.path} is missing"
        content.skip(entry)
        return
    kinds = {Kind.FILE: stat.S_ISREG, Kind.DIRECTORY: stat.S_ISDIR, Kind.SYMLINK: stat.S_ISLNK}
    if not kinds[entry.kind](status.st_mode):
        yield f"{entry.path} is not a {entry.kind.name.lower()}"
        content.skip(entry)
        return
    if entry.kind is Kind.SYMLINK:
        target = os.readlink(path)  # noqa: PTH115  a Path would change how the target is written
        if target != entry.target:
            yield f"{entry.path} points to {target!r}, not {entry.target!r}"
        return
    if stat.S_IMODE(status.st_mode) != entry.mode:
        yield f"mode of {entry.path} is {stat.S_IMODE(status.st_mode):04o}, not {entry.mode:04o}"
    for name in differing_xattrs(path, entry.xattrs):
        yield f"attribute {name} of {entry.path} differs"
    if entry.kind is Kind.FILE:
        if status.st_size != entry.size:
            yield f"{entry.path} has {status.st_size} bytes, not {entry.size}"
            content.skip(entry)
        else:
            content.read(entry, path)


def _is_zero(file: BinaryIO, start: int, end: int) -> bool:
    file.seek(start)
    while start < end:
        data = file.read(min(end - start, _READ))
        if not data or data.count(0) != len(data):
            return False
        start += len(data)
    return True


class _Content:
    """Follows the content stream and compares it with the chunks; `bad` gets the paths of files that differ."""

    def __init__(self, index: Index) -> None:
        self._chunks = iter(index.chunks)
        self._hasher = blake3()
        self._left = 0
        self._digest = b""
        self._in_chunk: list[str] = []
        self._unreadable = False
        self.bad: set[str] = set()

    def read(self, entry: FileEntry, path: Path) -> None:
        """Take a file of the right size."""
        with path.open("rb", buffering=0) as file:
            if entry.recipe:
                # What the file is made from is not at hand, but its own digest is.
                if hashlib.file_digest(file, "sha256").digest() != entry.recipe.sha256:
                    self.bad.add(entry.path)
                self.skip(entry)
                return
            at = 0
            for offset, length in entry.data_extents():
                if entry.runs and not _is_zero(file, at, offset):
                    self.bad.add(entry.path)
                at = offset + length
                file.seek(offset)
                while length:
                    data = file.read(min(length, _READ))
                    if not data:
                        self.bad.add(entry.path)
                        self._feed(bytes(length), entry.path)
                        break
                    self._feed(data, entry.path)
                    length -= len(data)
            if not _is_zero(file, at, entry.size):
                self.bad.add(entry.path)

    def skip(self, entry: FileEntry) -> None:
        """Pass over a file that is not there; chunks it is part of cannot be judged."""
        left = entry.content_bytes
        while left:
            self._unreadable = True
            count = min(left, self._left) if self._left else 0
            if count:
                self._left -= count
                left -= count
                self._end_if_complete()
            elif not self._next():
                return

    def _next(self) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._hasher, self._left, self._digest, self._in_chunk = blake3(), chunk.content_size, chunk.content_check, []
        return True

    def _feed(self, data: bytes, path: str) -> None:
        view = memoryview(data)
        while view:
            if not self._left and not self._next():
                self.bad.add(path)
                return
            if not self._in_chunk or self._in_chunk[-1] != path:
                self._in_chunk.append(path)
            part = view[: self._left]
            self._hasher.update(part)
            self._left -= len(part)
            view = view[len(part) :]
            self._end_if_complete()

    def _end_if_complete(self) -> None:
        if self._left:
            return
        if not self._unreadable and self._hasher.digest(CHECK_BYTES) != self._digest:
            self.bad.update(self._in_chunk)
        self._unreadable = False
