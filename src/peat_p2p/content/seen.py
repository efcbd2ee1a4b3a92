"""What an earlier publish of a source saw, so that the next one reads only what changed.

Owns one small file for each source in the store's folder `seen/`: the manifest that was made of it and the state each
file was in. Rule: it is a memory and never the truth. One that is damaged, or whose package is gone, counts as none;
a file whose times are too young to show a further change is not remembered.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import zstandard
from blake3 import blake3

from peat_p2p.content.entries import Kind
from peat_p2p.content.index import Index
from peat_p2p.content.scan import FileState, KnownFile, Source
from peat_p2p.content.store import ChunkStore
from peat_p2p.core.atomic import write_atomic

_FORM = b"peat-seen-1" + sys.byteorder.encode()
_COLUMNS = "QQQqqII"
_COUNT = struct.Struct("<I")
_MANIFEST_BYTES = 71  # blake3: and 64 hex digits
_SOURCES = 32
_LEAST_BYTES = 1 << 20  # less is read again sooner than remembered
# File systems keep times in steps, some as coarse as this: what changed in the step of the look may change unseen.
_YOUNG_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Seen:
    """An earlier publish: its index and the files it saw, by their paths in the package."""

    manifest_digest: str
    index: Index
    annotations: Mapping[str, str]
    files: Mapping[str, KnownFile]


def recall(store: ChunkStore, source: Path) -> Seen | None:
    """What was remembered about a source, if its package is still here."""
    try:
        data = _file(store, source).read_bytes()
    except OSError:
        return None
    body = data[32:]
    if blake3(body).digest() != data[:32] or not body.startswith(_FORM):
        return None
    at = len(_FORM)
    package = store.package(body[at : at + _MANIFEST_BYTES].decode("ascii", "replace"))
    if package is None:
        return None
    at += _MANIFEST_BYTES
    (count,) = _COUNT.unpack_from(body, at)
    packed = zstandard.decompress(body[at + _COUNT.size :])
    columns = []
    start = 0
    for kind in _COLUMNS:
        column = array(kind)
        size = column.itemsize * count
        column.frombytes(packed[start : start + size])
        columns.append(column)
        start += size
    files: dict[str, KnownFile] = {}
    offset, rows = 0, zip(*columns, strict=True)
    for entry in package.index.files:
        if entry.kind is not Kind.FILE:
            continue
        device, inode, size, mtime, ctime, opened, kept = next(rows)
        if inode:
            state = FileState(device, inode, size, mtime, ctime)
            files[entry.path] = KnownFile(state, entry, offset, opened, kept)
        offset += entry.content_bytes
    return Seen(package.manifest_digest, package.index, package.manifest.annotations, files)


def remember(store: ChunkStore, path: Path, source: Source, manifest_digest: str, looked_at: float) -> None:
    """Keep what a publish saw; `looked_at` is the Unix time at which its look began."""
    if source.content_bytes < _LEAST_BYTES:
        return
    columns = [array(kind) for kind in _COLUMNS]
    old = int(looked_at * 1e9) - _YOUNG_NS
    count = 0
    for item in source.entries:
        state = item.state
        if state is None:
            continue
        count += 1
        row: tuple[int, ...] = (0,) * len(columns)
        if max(state.mtime_ns, state.ctime_ns) < old:
            row = (state.device, state.inode, state.size, state.mtime_ns, state.ctime_ns, item.opened, item.kept)
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    packed = zstandard.compress(b"".join(column.tobytes() for column in columns))
    body = _FORM + manifest_digest.encode() + _COUNT.pack(count) + packed
    file = _file(store, path)
    # Without it the next publish only reads more.
    with contextlib.suppress(OSError):
        write_atomic(file, blake3(body).digest() + body)
        remembered = sorted(file.parent.iterdir(), key=lambda one: one.stat().st_mtime_ns)
        for stale in remembered[:-_SOURCES]:
            stale.unlink()


def _file(store: ChunkStore, source: Path) -> Path:
    return store.root / "seen" / blake3(os.fsencode(source.resolve())).hexdigest()[:32]
