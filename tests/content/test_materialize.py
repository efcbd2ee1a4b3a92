from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from peat_p2p.content import materialize as materialize_module
from peat_p2p.content.index import ChunkRef
from peat_p2p.content.materialize import Placement, materialize
from peat_p2p.content.store import RESERVE_BYTES, ChunkStore, StoredPackage
from peat_p2p.content.tree import verify_tree
from peat_p2p.core.errors import ConflictError, ExhaustedError, InvalidInputError, NotFoundError

Publish = Callable[..., StoredPackage]
MakeTree = Callable[..., Path]


@pytest.fixture
def package(tmp_path: Path, publish_tree: Publish, make_tree: MakeTree) -> StoredPackage:
    return publish_tree(make_tree(tmp_path / "source"))


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def test_existing_destination_is_left_alone(tmp_path: Path, store: ChunkStore, package: StoredPackage) -> None:
    for name in ("folder", "file", "link"):
        path = tmp_path / "out" / name
        path.parent.mkdir(exist_ok=True)
        if name == "folder":
            path.mkdir()
        elif name == "file":
            path.write_bytes(b"mine")
        else:
            path.symlink_to("/nonexistent")
        with pytest.raises(ConflictError, match=f"{name} exists already"):
            materialize(store, package.index, path)
    assert sorted(leftovers(tmp_path / "out")) == ["file", "folder", "link"]


def test_missing_chunk_is_told_before_anything_is_written(
    tmp_path: Path, store: ChunkStore, package: StoredPackage
) -> None:
    store.chunk_path(package.index.chunks[3].hex).unlink()
    with pytest.raises(NotFoundError, match=f"1 of {len(package.index.unique_chunks)} chunks"):
        materialize(store, package.index, tmp_path / "out/x")
    assert not (tmp_path / "out").exists()


def test_chunk_that_rots_silently_never_reaches_a_finished_place(
    tmp_path: Path, store: ChunkStore, package: StoredPackage
) -> None:
    chunk = package.index.chunks[len(package.index.chunks) // 2]
    path = store.chunk_path(chunk.hex)
    times = path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times, times))
    assert store.has(chunk.hex)  # size and time are as they were
    with pytest.raises(NotFoundError, match=f"{chunk.hex} is missing or damaged"):
        materialize(store, package.index, tmp_path / "out/x")
    assert leftovers(tmp_path / "out") == []
    assert not store.has(chunk.hex)


def test_failure_half_way_leaves_nothing(
    tmp_path: Path, store: ChunkStore, package: StoredPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    real = os.pwrite

    def write(fd: int, data: bytes, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > 500_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(materialize_module.os, "pwrite", write)
    with pytest.raises(ExhaustedError, match="the content of x needs"):
        materialize(store, package.index, tmp_path / "out/x")
    assert leftovers(tmp_path / "out") == []


def test_full_disk_is_told_before(
    tmp_path: Path, store: ChunkStore, package: StoredPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materialize_module, "free_bytes", lambda path: 1000)
    monkeypatch.setattr(materialize_module, "clone", lambda source, target: False)
    with pytest.raises(ExhaustedError, match=str(tmp_path / "out")):
        materialize(store, package.index, tmp_path / "out/x")
    assert leftovers(tmp_path / "out") == []


def test_progress_reaches_the_total(tmp_path: Path, store: ChunkStore, package: StoredPackage) -> None:
    seen: list[tuple[str, int, int]] = []
    materialize(store, package.index, tmp_path / "out", lambda *event: seen.append(event))
    assert seen[-1] == ("write", package.index.total_bytes, package.index.total_bytes)


def one_chunk_file(tmp_path: Path, publish_tree: Publish, mode: int, version: str = "1") -> StoredPackage:
    source = tmp_path / "one.bin"
    source.unlink(missing_ok=True)
    source.write_bytes(random.Random(4).randbytes(3000))
    source.chmod(mode)
    package = publish_tree(source, version=version)
    assert len(package.index.chunks) == 1
    return package


def test_read_only_file_of_one_chunk_takes_no_space(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materialize_module, "clone", lambda source, target: False)
    package = one_chunk_file(tmp_path, publish_tree, 0o444)
    materialize(store, package.index, tmp_path / "out")
    chunk = package.index.chunks[0]
    assert (tmp_path / "out/one.bin").samefile(store.chunk_path(chunk.hex))
    assert store.has(chunk.hex)
    assert verify_tree(package.index, tmp_path / "out") == []
    # Another mode for the same content cannot share the file, or one of the two would get the other's mode.
    other = one_chunk_file(tmp_path, publish_tree, 0o555, "2")
    materialize(store, other.index, tmp_path / "out2")
    assert not (tmp_path / "out2/one.bin").samefile(tmp_path / "out/one.bin")
    assert verify_tree(package.index, tmp_path / "out") == []
    assert verify_tree(other.index, tmp_path / "out2") == []
    store.remove_package(package.manifest_digest)
    store.remove_package(other.manifest_digest)
    store.gc()
    assert verify_tree(package.index, tmp_path / "out") == []


def test_writable_file_is_never_linked(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materialize_module, "clone", lambda source, target: False)
    package = one_chunk_file(tmp_path, publish_tree, 0o644)
    materialize(store, package.index, tmp_path / "out")
    (tmp_path / "out/one.bin").write_bytes(b"the user's own")
    assert store.has(package.index.chunks[0].hex)
    store.read_chunk(package.index.chunks[0])


def test_clone_is_used_where_the_file_system_can(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloned: list[str] = []

    def clone(source: int, target: int) -> bool:  # as a file system with reflinks behaves
        data = os.pread(source, 1 << 20, 0)
        os.pwrite(target, data, 0)
        cloned.append(str(Path(f"/proc/self/fd/{target}").readlink()))
        return True

    monkeypatch.setattr(materialize_module, "clone", clone)
    package = one_chunk_file(tmp_path, publish_tree, 0o644)
    materialize(store, package.index, tmp_path / "out")
    assert any(path.endswith("/one.bin") for path in cloned)
    assert verify_tree(package.index, tmp_path / "out") == []
    assert stat.S_IMODE((tmp_path / "out/one.bin").stat().st_mode) == 0o644


# A placement, while chunks come


def never() -> bool:
    return False


@pytest.mark.parametrize("seed", range(8))
def test_files_are_written_in_whatever_order_chunks_come(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, make_tree: MakeTree, seed: int
) -> None:
    dice = random.Random(seed)
    source = make_tree(tmp_path / "source", seed)
    with (source / "sparse").open("wb") as file:
        for _ in range(20):
            file.seek(dice.randrange(1 << 16, 1 << 20), os.SEEK_CUR)
            file.write(dice.randbytes(dice.randrange(1, 200_000)))
        file.truncate(file.tell() + (1 << 20))
    package = publish_tree(source)
    coming = list(package.index.unique_chunks)
    dice.shuffle(coming)
    here: set[str] = set()
    asked: set[str] = set()

    def look(chunk: ChunkRef) -> bool:
        asked.add(chunk.hex)
        return chunk.hex in here

    written = [0]
    report = [0]
    with Placement(store, package.index, tmp_path / "out", lambda _, done, total: report.append(done)) as placement:
        while coming:
            for _ in range(dice.randrange(1, 40)):
                if coming:
                    here.add(coming.pop().hex)
            placement.advance(look, never)
            written.append(report[-1])
            assert not (tmp_path / "out").exists()
        assert written == sorted(written)
        assert len(set(written)) > 2, "files are written as chunks come"
        assert report[-1] == package.index.total_bytes, "nothing is left when all are here"
        placement.finish()
    assert verify_tree(package.index, tmp_path / "out") == []
    assert (tmp_path / "out/sparse").stat().st_blocks <= (source / "sparse").stat().st_blocks
    assert sorted(leftovers(tmp_path)) == ["out", "source", "store"]
    assert asked == {chunk.hex for chunk in package.index.unique_chunks}


def test_a_slice_of_work_ends_when_it_is_told_to(tmp_path: Path, store: ChunkStore, package: StoredPackage) -> None:
    done: list[int] = []
    with Placement(store, package.index, tmp_path / "out", lambda _, count, __: done.append(count)) as placement:
        placement.advance(lambda chunk: True, lambda: len(done) >= 3)
        assert len(done) == 3
        placement.finish()
    assert verify_tree(package.index, tmp_path / "out") == []


def test_a_placement_left_half_way_leaves_nothing(tmp_path: Path, store: ChunkStore, package: StoredPackage) -> None:
    here = {chunk.hex for chunk in package.index.unique_chunks[::2]}
    with Placement(store, package.index, tmp_path / "out/x") as placement:
        placement.advance(lambda chunk: chunk.hex in here, never)
        assert len(leftovers(tmp_path / "out")) == 1
    assert leftovers(tmp_path / "out") == []
    assert all(store.has(chunk.hex) for chunk in package.index.unique_chunks)


def test_a_placement_beside_chunks_still_to_come_counts_their_space(
    tmp_path: Path, store: ChunkStore, package: StoredPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materialize_module, "clone", lambda source, target: False)
    total = package.index.total_bytes
    monkeypatch.setattr(materialize_module, "free_bytes", lambda path: total + RESERVE_BYTES)
    with Placement(store, package.index, tmp_path / "fits") as placement:
        placement.finish()
    with pytest.raises(ExhaustedError):
        Placement(store, package.index, tmp_path / "out", coming=1)
    assert sorted(leftovers(tmp_path)) == ["fits", "source", "store"]


def test_what_a_killed_process_left_is_cleared_by_the_next(
    tmp_path: Path, store: ChunkStore, package: StoredPackage
) -> None:
    folder = tmp_path / "out"
    dead, young, other = folder / ".x.abc.tmp", folder / ".x.def.tmp", folder / ".xy.abc.tmp"
    for left in (dead, young, other):
        (left / "locked").mkdir(parents=True)
        (left / "locked/file").write_text("half")
        (left / "locked").chmod(0o500)
        os.utime(left, (0, 0))
    os.utime(young)
    with Placement(store, package.index, folder / "x") as in_use:
        [used] = set(folder.iterdir()) - {young, other}
        os.utime(used, (0, 0))
        materialize(store, package.index, folder / "x.y")
        materialize(store, package.index, folder / "x")
        assert {path.name for path in folder.iterdir()} == {used.name, young.name, other.name, "x", "x.y"}
        with pytest.raises(ConflictError, match="came to be while its content was written"):
            in_use.finish()
    assert {path.name for path in folder.iterdir()} == {young.name, other.name, "x", "x.y"}


# verify_tree


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x80
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda root: _flip(root / "lib/big.so", 123_456), "lib/big.so"),
        (lambda root: _flip(root / "lib/big.so", 899_999), "lib/big.so"),
        (lambda root: _flip(root / "lib/deep/er/007.txt", 0), "lib/deep/er/007.txt"),
        (lambda root: (root / "bin/run").chmod(0o644), "mode of bin/run is 0644, not 0755"),
        (lambda root: (root / "lib/deep").chmod(0o755), "mode of lib/deep is 0755, not 0750"),
        (lambda root: root.chmod(0o700), "mode of"),
        (lambda root: (root / "lib/nothing").unlink(), "lib/nothing is missing"),
        (lambda root: (root / "bin/run").unlink(), "bin/run is missing"),
        (lambda root: (root / "empty").rmdir(), "empty is missing"),
        (lambda root: (root / "extra").write_bytes(b""), "extra is not in the package"),
        (lambda root: (root / "lib/deep/extra").mkdir(), "lib/deep/extra is not in the package"),
        (lambda root: os.truncate(root / "lib/big.so", 899_999), "lib/big.so has 899999 bytes, not 900000"),
        (lambda root: _relink(root / "bin/alias", "./run"), "bin/alias points to './run', not 'run'"),
        (lambda root: _replace(root / "bin/alias"), "bin/alias is not a symlink"),
    ],
)
def test_any_difference_is_found(
    tmp_path: Path,
    store: ChunkStore,
    package: StoredPackage,
    harm: Callable[[Path], object],
    told: str,
) -> None:
    root = tmp_path / "out"
    materialize(store, package.index, root)
    assert verify_tree(package.index, root) == []
    harm(root)
    assert any(told in line for line in verify_tree(package.index, root))


def _relink(path: Path, target: str) -> None:
    path.unlink()
    os.symlink(target, path)  # noqa: PTH211  a Path would normalize the target


def _replace(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"run")


def test_no_tree_at_all(tmp_path: Path, package: StoredPackage) -> None:
    assert verify_tree(package.index, tmp_path / "no") == [f"{tmp_path / 'no'} is not a directory"]


def test_differences_are_limited(tmp_path: Path, package: StoredPackage) -> None:
    (tmp_path / "empty-tree").mkdir(mode=0o755)
    assert len(verify_tree(package.index, tmp_path / "empty-tree", limit=7)) == 7


def test_a_place_where_nothing_can_be_made_is_named(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, make_tree: MakeTree
) -> None:
    package = publish_tree(make_tree(tmp_path / "source"))
    with pytest.raises(InvalidInputError, match="/proc/nothing/here cannot be made"):
        materialize(store, package.index, Path("/proc/nothing/here"))
    with pytest.raises(InvalidInputError, match="File name too long"):
        materialize(store, package.index, tmp_path / ("x" * 256))


def test_what_the_file_system_does_not_take_is_named(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = publish_tree(make_tree(tmp_path / "source"))
    real = os.open

    def refuse(path: object, *args: int, **more: int) -> int:
        if str(path).endswith("big.so"):
            raise OSError(errno.EINVAL, "Invalid argument", str(path))
        return real(path, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InvalidInputError, match=r"'big\.so' cannot be written below .*: Invalid argument; choose"):
        materialize(store, package.index, tmp_path / "out")
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "store"}


def test_a_long_name_for_the_folder(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, make_tree: MakeTree
) -> None:
    package = publish_tree(make_tree(tmp_path / "source"))
    materialize(store, package.index, tmp_path / ("x" * 255))
    assert verify_tree(package.index, tmp_path / ("x" * 255)) == []
