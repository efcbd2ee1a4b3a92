from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from peat_p2p.content import scan as scan_module
from peat_p2p.content import xattrs as xattrs_module
from peat_p2p.content.index import Index
from peat_p2p.content.materialize import materialize
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.content.tree import verify_tree

Publish = Callable[..., StoredPackage]
DATA = random.Random(6).randbytes(100_000)


def sparse(path: Path, *extents: int, size: int) -> Path:
    with path.open("wb") as file:
        for offset in extents:
            file.seek(offset)
            file.write(DATA)
        file.truncate(size)
    return path


LAYOUTS = {
    "hole first": ((8 << 20,), (8 << 20) + 100_000),
    "hole last": ((0,), 10 << 20),
    "holes between": ((0, 3 << 20, 7 << 20), 12 << 20),
    "nothing but a hole": ((), 5_000_001),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_sparse_file_stays_sparse(tmp_path: Path, store: ChunkStore, publish_tree: Publish, name: str) -> None:
    extents, size = LAYOUTS[name]
    source = sparse(tmp_path / "disk.img", *extents, size=size)
    package = publish_tree(source)
    entry = package.index.files[0]
    assert entry.runs and entry.size == size
    assert package.index.content_bytes < 500_000
    assert Index.decode(package.index.encode()) == package.index
    materialize(store, package.index, tmp_path / "out")
    made = tmp_path / "out/disk.img"
    assert made.read_bytes() == source.read_bytes()
    assert made.stat().st_blocks <= source.stat().st_blocks + 16
    assert verify_tree(package.index, tmp_path / "out") == []
    with made.open("r+b") as file:  # a byte that is not zero, in a hole
        file.seek(2 << 20)
        file.write(b"x")
    assert verify_tree(package.index, tmp_path / "out") == ["content differs in: disk.img"]


def test_file_system_that_tells_no_holes_gives_a_plain_file(
    tmp_path: Path, publish_tree: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sparse(tmp_path / "disk.img", 0, size=4 << 20)
    monkeypatch.setattr(
        scan_module.os, "lseek", lambda fd, at, how: at if how == os.SEEK_DATA else 4 << 20
    )  # what the kernel answers when a file system does not know
    package = publish_tree(source)
    assert package.index.files[0].is_plain
    assert package.index.content_bytes == 4 << 20


def test_attributes_come_along(tmp_path: Path, store: ChunkStore, publish_tree: Publish) -> None:
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "file").write_bytes(b"x" * 100)
    os.setxattr(source / "file", "user.origin", b"depot \x00\xff")
    os.setxattr(source / "file", "user.a", b"")
    os.setxattr(source / "folder", "user.kind", b"spares")
    package = publish_tree(source)
    assert dict(package.index.files[0].xattrs) == {"user.a": b"", "user.origin": b"depot \x00\xff"}
    materialize(store, package.index, tmp_path / "out")
    assert os.getxattr(tmp_path / "out/file", "user.origin") == b"depot \x00\xff"
    assert os.getxattr(tmp_path / "out/folder", "user.kind") == b"spares"
    assert verify_tree(package.index, tmp_path / "out") == []
    os.setxattr(tmp_path / "out/file", "user.origin", b"elsewhere")
    os.setxattr(tmp_path / "out/folder", "user.added", b"")
    assert verify_tree(package.index, tmp_path / "out") == [
        "attribute user.origin of file differs",
        "attribute user.added of folder differs",
    ]


def test_attributes_are_left_out_where_they_are_not_allowed(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"x")
    os.setxattr(source, "user.origin", b"depot")
    package = publish_tree(source)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(xattrs_module.os, "setxattr", refuse)
    materialize(store, package.index, tmp_path / "out")
    assert os.listxattr(tmp_path / "out/file") == []
    assert verify_tree(package.index, tmp_path / "out") == []


def test_failing_disk_is_not_taken_for_a_place_without_attributes(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"x")
    os.setxattr(source, "user.origin", b"depot")
    package = publish_tree(source)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(xattrs_module.os, "setxattr", fail)
    with pytest.raises(OSError, match="Input/output error"):
        materialize(store, package.index, tmp_path / "out")
    assert not (tmp_path / "out").exists()
