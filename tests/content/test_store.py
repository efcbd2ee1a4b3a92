from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.content import disk as disk_module
from peat_p2p.content import store as store_module
from peat_p2p.content.entries import FileEntry, Kind
from peat_p2p.content.index import ChunkRef, Index
from peat_p2p.content.materialize import materialize
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.content.stored import GcResult
from peat_p2p.content.tree import verify_tree
from peat_p2p.core.errors import ConflictError, CorruptError, ExhaustedError, InvalidInputError, NotFoundError

Publish = Callable[..., StoredPackage]
MakeTree = Callable[..., Path]


def ref(data: bytes) -> ChunkRef:
    return ChunkRef(blake3(data).digest(), len(data))


def place(store: ChunkStore, data: bytes) -> ChunkRef:
    """Put a file where a transfer would have put it."""
    chunk = ref(data)
    store.chunk_path(chunk.hex).write_bytes(data)
    return chunk


def index_of(*chunks: ChunkRef) -> Index:
    size = sum(chunk.size for chunk in chunks)
    return Index((FileEntry("f", Kind.FILE, 0o644, size),), tuple(chunks))


def test_chunk_counts_only_after_it_was_verified(store: ChunkStore) -> None:
    chunk = place(store, b"content")
    assert not store.has(chunk.hex)
    assert store.missing(index_of(chunk)) == {chunk.hex}
    assert store.verify(chunk.hex, chunk.size)
    assert store.has(chunk.hex)
    assert store.missing(index_of(chunk)) == set()
    assert store.read_chunk(chunk) == b"content"


def test_bad_chunk_is_removed(store: ChunkStore) -> None:
    good, bad, short = ref(b"good"), ref(b"bad!"), ref(b"short")
    place(store, b"good")
    store.chunk_path(bad.hex).write_bytes(b"evil")
    store.chunk_path(short.hex).write_bytes(b"sho")
    absent = ref(b"absent")
    assert store.verify_many([good, bad, short, absent]) == {bad.hex, short.hex, absent.hex}
    assert store.has(good.hex)
    assert not store.chunk_path(bad.hex).exists()
    assert not store.chunk_path(short.hex).exists()


@pytest.mark.parametrize("harm", ["rewritten", "shortened", "deleted"])
def test_chunk_changed_behind_its_back_is_missing(store: ChunkStore, harm: str) -> None:
    chunk = place(store, b"x" * 100)
    assert store.verify(chunk.hex, 100)
    path = store.chunk_path(chunk.hex)
    if harm == "rewritten":
        path.write_bytes(b"y" * 100)
        os.utime(path, ns=(5, 5))
    elif harm == "shortened":
        os.truncate(path, 10)
    else:
        path.unlink()
    assert not store.has(chunk.hex)
    assert store.missing(index_of(chunk)) == {chunk.hex}
    with pytest.raises(NotFoundError, match=chunk.hex):
        store.read_chunk(chunk)


def test_what_is_journaled_was_synced_before(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    journal = store._journal
    real_sync, real_add = store.sync, journal.add_chunks
    monkeypatch.setattr(
        store, "sync", lambda digests: (events.extend(f"sync {d}" for d in digests), real_sync(digests))
    )
    monkeypatch.setattr(
        journal, "add_chunks", lambda rows: (events.extend(f"enter {r.digest.hex()}" for r in rows), real_add(rows))
    )
    received = [place(store, bytes([number]) * 50) for number in range(20)]
    assert store.verify_many(received) == set()
    data = [random.Random(number).randbytes(1000) for number in range(20)]
    with store.batch() as batch:
        for item in data:
            assert batch.take(ref(item).digest)
            batch.write(ref(item).digest, item, None)
    for chunk in received + [ref(item) for item in data]:
        assert events.index(f"sync {chunk.hex}") < events.index(f"enter {chunk.hex}")
        assert store.has(chunk.hex)


def test_sync_reaches_files_and_folders(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    chunk = place(store, b"one")
    store.verify(chunk.hex, chunk.size)
    path = store.chunk_path(chunk.hex)
    assert synced[:2] == [str(path), str(path.parent)]
    whole: list[Path] = []
    monkeypatch.setattr(disk_module, "sync_file_system", whole.append)
    store.verify_many([place(store, bytes([number])) for number in range(9)])
    assert whole == [store.root]


def test_batch_that_fails_enters_nothing_and_can_be_repeated(store: ChunkStore) -> None:
    chunk = ref(b"data")
    with pytest.raises(ZeroDivisionError), store.batch() as batch:
        batch.take(chunk.digest)
        batch.write(chunk.digest, b"data", None)
        raise ZeroDivisionError
    assert not store.has(chunk.hex)
    with store.batch() as batch:
        assert batch.take(chunk.digest)
        batch.write(chunk.digest, b"data", None)
    assert store.has(chunk.hex)
    with store.batch() as batch:
        assert not batch.take(chunk.digest)


def test_restart_adopts_what_arrived_but_was_not_entered(tmp_path: Path) -> None:
    with ChunkStore.open(tmp_path / "s") as store:
        entered, arrived, half = place(store, b"entered"), place(store, b"arrived"), ref(b"only half of it")
        store.verify(entered.hex, entered.size)
        store.chunk_path(half.hex).write_bytes(b"only ha")
    with ChunkStore.open(tmp_path / "s") as store:
        index = index_of(entered, arrived, half)
        assert store.missing(index) == {arrived.hex, half.hex}
        assert store.adopt(index) == {half.hex}
        assert store.has(arrived.hex)
        assert store.chunk_path(half.hex).read_bytes() == b"only ha"


def test_second_process_is_refused_and_named(tmp_path: Path) -> None:
    code = "import sys, pathlib, peat_p2p.content.store as s; s.ChunkStore.open(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "s")]
    with ChunkStore.open(tmp_path / "s"):
        result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"is in use by process {os.getpid()}" in result.stderr
    assert subprocess.run(command).returncode == 0


def test_damaged_journal_says_what_to_do(tmp_path: Path) -> None:
    with ChunkStore.open(tmp_path / "s"):
        pass
    (tmp_path / "s/journal.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(CorruptError, match=r"journal\.db.*Move the file away"):
        ChunkStore.open(tmp_path / "s")
    (tmp_path / "s/journal.db").unlink()
    with ChunkStore.open(tmp_path / "s") as store:
        assert store.stat().chunks == 0


def test_journal_of_a_later_program_is_refused(tmp_path: Path) -> None:
    with ChunkStore.open(tmp_path / "s") as store:
        store._journal._db.execute("PRAGMA user_version=99")
    with pytest.raises(CorruptError, match="form 99"):
        ChunkStore.open(tmp_path / "s")


# Packages and garbage


def test_packages_are_found_newest_first(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, clock: object
) -> None:
    (tmp_path / "f").write_bytes(b"1")
    for version in ("1.0", "1.10", "1.2"):
        publish_tree(tmp_path / "f", version=version)
        clock.advance(5)  # type: ignore[attr-defined]
    other = publish_tree(tmp_path / "f", name="other")
    assert [summary.manifest.version for summary in store.find("tool")] == ["1.2", "1.10", "1.0"]
    assert [summary.manifest.version for summary in store.find("tool", "1.10")] == ["1.10"]
    assert store.find("tool", arch="arm64") == []
    assert len(store.packages()) == 4
    assert store.package(other.manifest_digest) == other
    assert store.package("blake3:" + "0" * 64) is None


def test_package_with_missing_chunks_or_wrong_index_is_refused(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, make_tree: MakeTree
) -> None:
    package = publish_tree(make_tree(tmp_path / "source"))
    with ChunkStore.open(tmp_path / "other") as other:
        with pytest.raises(ConflictError, match="lacks"):
            other.put_package(package.envelope, package.info, package.index)
        assert other.packages() == []
    with pytest.raises(InvalidInputError, match="not the one"):
        store.put_package(package.envelope, package.info, index_of())


def test_gc_keeps_shared_and_held_chunks(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, make_tree: MakeTree
) -> None:
    source = make_tree(tmp_path / "source")
    first = publish_tree(source)
    (source / "lib/big.so").write_bytes(random.Random(77).randbytes(900_000))
    second = publish_tree(source, version="1.1")
    only_first = set(first.index.chunks) - set(second.index.chunks)
    assert only_first and set(first.index.chunks) & set(second.index.chunks)
    assert store.gc() == GcResult(0, 0, 0)
    assert store.remove_package(first.manifest_digest)
    assert not store.remove_package(first.manifest_digest)
    with store.hold(chunk.hex for chunk in only_first):
        assert store.gc().chunks == 0
    assert store.stat().loose_chunks == len(only_first)
    result = store.gc()
    assert (result.chunks, result.bytes) == (len(only_first), sum(chunk.size for chunk in only_first))
    assert not any(store.chunk_path(chunk.hex).exists() for chunk in only_first)
    materialize(store, second.index, tmp_path / "out")
    assert verify_tree(second.index, tmp_path / "out") == []
    store.remove_package(second.manifest_digest)
    store.gc()
    assert store.stat().chunk_bytes == 0
    assert [path for path in (store.root / "chunks").rglob("*") if path.is_file()] == []


def test_gc_removes_strays_but_not_what_is_arriving(store: ChunkStore) -> None:
    stray, arriving = place(store, b"left behind"), place(store, b"arriving")
    (store.root / "chunks/00/notes.txt").write_text("not a chunk")
    with store.hold([arriving.hex]):
        assert store.gc().strays == 2
    assert not store.chunk_path(stray.hex).exists()
    assert store.chunk_path(arriving.hex).exists()


# Space


def test_space_is_checked_before(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "free_bytes", lambda path: store_module.RESERVE_BYTES + 1000)
    store.check_space(1000)
    with pytest.raises(ExhaustedError, match=rf"{store.root}: the pull of x needs .* are free; free some space"):
        store.check_space(1001, "the pull of x")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_fills_up_is_named(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    source = tmp_path / "file"
    source.write_bytes(random.Random(1).randbytes(500_000))
    written = 0
    real = os.pwrite

    def write(fd: int, data: bytes, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > 200_000:
            raise OSError(number, os.strerror(number))
        return real(fd, data, offset)

    monkeypatch.setattr(disk_module.os, "pwrite", write)
    with pytest.raises(ExhaustedError, match=str(store.root)):
        publish_tree(source)
    monkeypatch.undo()
    assert list((store.root / "tmp").iterdir()) == []
    assert store.packages() == []
    store.gc()
    assert store.stat().chunk_bytes == 0
    assert publish_tree(source).manifest.total_bytes == 500_000


@pytest.mark.parametrize("size", [0, 1, 4095, 65_535, 65_536, 65_537, 1 << 20, (1 << 20) + 1, 3_000_001])
@pytest.mark.parametrize("refused", [None, errno.EINVAL, errno.EOPNOTSUPP])
def test_file_is_written_whole_whatever_its_size_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, refused: int | None
) -> None:
    real = os.open

    def choose(path: Path, flags: int, mode: int) -> int:
        if refused and flags & os.O_DIRECT:
            os.close(real(path, flags & ~os.O_DIRECT, mode))  # as the kernel does it
            raise OSError(refused, os.strerror(refused))
        return real(path, flags, mode)

    monkeypatch.setattr(disk_module.os, "open", choose)
    data = random.Random(size).randbytes(size)
    status = disk_module.write_new(tmp_path / "f", memoryview(data))
    assert (tmp_path / "f").read_bytes() == data
    assert status.st_size == size
    assert status.st_mtime_ns == (tmp_path / "f").stat().st_mtime_ns
    for other in (b"short", bytes(100_000)):
        with pytest.raises(FileExistsError):
            disk_module.write_new(tmp_path / "f", other)
    assert (tmp_path / "f").read_bytes() == data


def test_write_cut_short_by_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module.os, "pwrite", lambda fd, data, offset: 1000)
    with pytest.raises(OSError, match="No space left"):
        disk_module.write_new(tmp_path / "f", bytes(100_000))
    assert not (tmp_path / "f").exists()


@given(
    cuts=st.lists(st.integers(1, 400_000), max_size=8),
    seed=st.integers(0, 1 << 32),
    refused=st.sampled_from(["", "open", "write"]),
)
def test_file_is_put_together_from_parts_in_any_order(cuts: list[int], seed: int, refused: str) -> None:
    rng = random.Random(seed)
    data = rng.randbytes(400_001)
    ends = sorted({*cuts, len(data)})
    parts = list(zip([0, *ends], ends, strict=False))
    rng.shuffle(parts)
    real_open, real_write = os.open, os.pwrite
    direct: set[int] = set()

    def choose(path: Path, flags: int, mode: int = 0o777) -> int:
        if refused == "open" and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fd = real_open(path, flags, mode)
        (direct.add if flags & os.O_DIRECT else direct.discard)(fd)
        return fd

    def write(fd: int, content: memoryview, offset: int) -> int:
        if refused == "write" and fd in direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_write(fd, content, offset)

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk_module.os, "open", choose)
        patch.setattr(disk_module.os, "pwrite", write)
        file = disk_module.NewFile(Path(folder) / "f", 0o600)
        for begin, end in parts:
            file.write(memoryview(data)[begin:end], begin)
        file.close()
        assert (Path(folder) / "f").read_bytes() == data


def test_parts_cut_short_by_a_full_disk_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = disk_module.NewFile(tmp_path / "f", 0o600)
    monkeypatch.setattr(disk_module.os, "pwrite", lambda fd, data, offset: 1000)
    with pytest.raises(OSError, match="No space left"):
        file.write(memoryview(bytes(100_000)), 0)
    file.close()


def test_what_may_not_be_opened_any_more_is_made_durable_with_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[Path] = []
    monkeypatch.setattr(disk_module, "sync_file_system", whole.append)
    disk_module.make_durable(tmp_path, [], [tmp_path])
    assert not whole

    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(disk_module.os, "open", refuse)
    disk_module.make_durable(tmp_path, [tmp_path / "f"], [tmp_path])
    assert whole == [tmp_path]


# Death

_VICTIM = """
import hashlib, sys
from pathlib import Path
from peat_p2p.content.publish import TorrentMeta, publish
from peat_p2p.content.store import ChunkStore
from peat_p2p.content import batch
from peat_p2p.core.clock import SystemClock
from peat_p2p.trust.credentials import NodeCredentials

batch._FLUSH_BYTES = 1 << 20
source, store, node = map(Path, sys.argv[1:])
with ChunkStore.open(store) as opened:
    print("ready", flush=True)
    def torrent(index, root):
        info = b"info" + index.encode()
        return TorrentMeta(info, hashlib.sha256(info).hexdigest())
    publish(source, "tool", "1.0", "any", opened, NodeCredentials.load(node), torrent, SystemClock())
print("done", flush=True)
"""


def test_publisher_killed_at_any_moment_leaves_a_sound_store(
    tmp_path: Path, publisher: object, make_tree: MakeTree, publish_tree: Publish
) -> None:
    source = make_tree(tmp_path / "source")
    (source / "image").write_bytes(random.Random(3).randbytes(24 << 20))
    root = tmp_path / "victim"
    arguments = [sys.executable, "-c", _VICTIM, str(source), str(root), str(publisher.directory)]  # type: ignore[attr-defined]
    progress = []
    for delay in (0.0, 0.02, 0.05, 0.09, 0.14, 0.2):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with ChunkStore.open(root) as store:
            for path in (root / "chunks").rglob("*"):
                if path.is_file() and store.has(path.name):
                    assert blake3(path.read_bytes()).hexdigest() == path.name
            progress.append(store.stat().chunks)
            for summary in store.packages():
                package = store.package(summary.manifest_digest)
                assert package is not None and store.missing(package.index) == set()
            assert list((root / "tmp").iterdir()) == []
    assert progress == sorted(progress)  # what was done stays done
    with ChunkStore.open(root) as store:
        package = publish_tree(source, into=store)
        materialize(store, package.index, tmp_path / "out")
        assert verify_tree(package.index, tmp_path / "out") == []
        store.gc()
        assert store.stat().chunk_bytes == package.index.unique_bytes
