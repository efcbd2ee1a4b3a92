"""Publishing again: what is as it was is not read, and what comes out is what a publish of everything gives."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peat_p2p.content import ingest as ingest_module
from peat_p2p.content import readahead
from peat_p2p.content import seen as seen_module
from peat_p2p.content.index import Index
from peat_p2p.content.publish import TorrentMeta, publish
from peat_p2p.content.seen import recall
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.core.clock import ManualClock
from peat_p2p.trust.credentials import NodeCredentials

Publish = Callable[..., StoredPackage]
MakeTree = Callable[..., Path]


@pytest.fixture
def clock() -> ManualClock:
    # The trees of these tests are as old as they need to be for their times to be trusted.
    return ManualClock(now=time.time() + 60)


@pytest.fixture(autouse=True)
def remember_small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_module, "_LEAST_BYTES", 0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are opened to read their content."""
    names: list[str] = []
    real = os.open

    def note(path: object, *args: int) -> int:
        names.append(os.path.basename(os.fspath(path)))  # type: ignore[call-overload]  # noqa: PTH119
        return real(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ingest_module.os, "open", note)
    return names


def in_full(source: Path, folder: Path, publish_tree: Publish) -> StoredPackage:
    with ChunkStore.open(folder) as fresh:
        return publish_tree(source, into=fresh)


def test_what_is_as_it_was_is_not_read(
    tmp_path: Path, publish_tree: Publish, make_tree: MakeTree, opened: list[str]
) -> None:
    source = make_tree(tmp_path / "source")
    first = publish_tree(source)
    assert "big.so" in opened
    opened.clear()
    second = publish_tree(source, version="1.1")
    assert [name for name in opened if name in ("big.so", "run", "zeros") or name.endswith(".txt")] == []
    assert second.index == first.index


def test_only_the_surroundings_of_a_change_are_read(tmp_path: Path, publish_tree: Publish, opened: list[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rng = random.Random(4)
    for number in range(600):
        (source / f"{number:04}.txt").write_bytes(rng.randbytes(4000))
    publish_tree(source)
    (source / "0300.txt").write_bytes(b"other")
    opened.clear()
    again = publish_tree(source, version="1.1")
    read = [name for name in opened if name.endswith(".txt")]
    assert "0300.txt" in read
    assert len(read) < 40  # a few chunks of 16 KiB around it, out of 150
    assert again.index == in_full(source, tmp_path / "other", publish_tree).index


def test_what_is_asked_of_the_disk_beforehand_is_what_is_read(
    tmp_path: Path, publish_tree: Publish, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[str] = set()
    monkeypatch.setattr(readahead, "_ask_for", lambda path: asked.add(path.name))
    source = tmp_path / "source"
    source.mkdir()
    rng = random.Random(4)
    for number in range(600):
        (source / f"{number:04}.txt").write_bytes(rng.randbytes(90_000 if number % 50 == 49 else 4000))
    publish_tree(source)
    assert len(asked) == 600
    for name in ("0000", "0149", "0300", "0301", "0599"):
        (source / f"{name}.txt").write_bytes(b"other")
    (source / "0450.txt").unlink()
    (source / "0450a.txt").write_bytes(b"new")
    asked.clear()
    opened.clear()
    again = publish_tree(source, version="1.1")
    read = {name for name in opened if name.endswith(".txt")}
    assert len(asked - read) < 0.3 * len(asked)  # where cuts fall behind a change is only a guess
    assert {"0000.txt", "0149.txt", "0300.txt", "0301.txt", "0450a.txt", "0599.txt"} <= asked
    assert len(asked & read) > 0.5 * len(read)
    assert len(read) < 90
    assert again.index == in_full(source, tmp_path / "other", publish_tree).index


@pytest.mark.parametrize("which", ["small", "large", "mode", "attribute"])
def test_a_rewrite_that_keeps_size_and_time_is_noticed(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, make_tree: MakeTree, which: str
) -> None:
    source = make_tree(tmp_path / "source")
    file = source / ("lib/big.so" if which == "large" else "lib/deep/er/077.txt")
    file.write_bytes(random.Random(1).randbytes(max(50, file.stat().st_size)))
    publish_tree(source)
    before = file.stat()
    if which == "mode":
        file.chmod(0o711)
    elif which == "attribute":
        try:
            os.setxattr(file, "user.colour", b"red")
        except OSError:
            pytest.skip("no extended attributes here")
    else:
        file.write_bytes(random.Random(2).randbytes(before.st_size))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = publish_tree(source, version="1.1")
    assert again.index == in_full(source, tmp_path / "other", publish_tree).index


def test_a_file_too_young_to_show_a_further_change_is_read_again(
    tmp_path: Path, store: ChunkStore, publisher: NodeCredentials, opened: list[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "young").write_bytes(b"x" * 50_000)
    now = ManualClock(now=(source / "young").stat().st_mtime)

    def torrent_of(index: Index, root: Path) -> TorrentMeta:
        return TorrentMeta(b"info", "0" * 64)

    publish(source, "tool", "1", "any", store, publisher, torrent_of, now)
    opened.clear()
    publish(source, "tool", "2", "any", store, publisher, torrent_of, now)
    assert "young" in opened


def test_a_chunk_that_the_store_lost_is_made_again(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, make_tree: MakeTree
) -> None:
    source = make_tree(tmp_path / "source")
    first = publish_tree(source)
    for chunk in first.index.unique_chunks[::3]:
        store.chunk_path(chunk.hex).unlink()
    second = publish_tree(source, version="1.1")
    assert second.index == first.index
    assert store.missing(second.index) == set()


def test_what_is_remembered_is_never_the_truth(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, make_tree: MakeTree
) -> None:
    source = make_tree(tmp_path / "source")
    first = publish_tree(source)
    (memory,) = (store.root / "seen").iterdir()
    data = memory.read_bytes()
    for spoiled in (b"", data[:-1], data[:40], bytes([data[0] ^ 1]) + data[1:]):
        memory.write_bytes(spoiled)
        assert recall(store, source) is None
        assert publish_tree(source, version="1.1").index == first.index
    assert recall(store, source) is not None
    for summary in store.packages():
        store.remove_package(summary.manifest_digest)
    assert recall(store, source) is None


@pytest.mark.parametrize("change", ["a small one after the last", "no large one between", "a large one between"])
def test_chunks_that_ended_with_their_segment_are_not_taken_for_others(
    tmp_path: Path, publish_tree: Publish, change: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rng = random.Random(7)
    for name, size in (("a", 5000), ("b", 3000), ("c", 90_000), ("d", 2000), ("e", 6000), ("f", 2500)):
        (source / name).write_bytes(rng.randbytes(size))
    publish_tree(source)
    if change == "a small one after the last":
        (source / "g").write_bytes(rng.randbytes(9000))
    elif change == "no large one between":
        (source / "c").unlink()
    else:
        (source / "dd").write_bytes(rng.randbytes(80_000))
    again = publish_tree(source, version="1.1")
    assert again.index == in_full(source, tmp_path / "other", publish_tree).index


_size = st.one_of(st.integers(1, 3000), st.integers(3000, 40_000), st.sampled_from([70_000, 200_000]))
_files = st.dictionaries(st.integers(0, 60), st.tuples(_size, st.integers(0, 3)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=_files, after=_files, same=st.sets(st.integers(0, 60), min_size=20))
def test_any_change_gives_what_a_publish_of_everything_gives(
    before: dict[int, tuple[int, int]],
    after: dict[int, tuple[int, int]],
    same: set[int],
    publish_tree: Publish,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("again")
    source = folder / "source"
    source.mkdir()

    def write(number: int, size: int, seed: int) -> None:
        (source / f"{number:02}").write_bytes(random.Random(f"{number} {seed} {size}").randbytes(size))

    for number, (size, seed) in before.items():
        write(number, size, seed)
    with ChunkStore.open(folder / "store") as store:
        publish_tree(source, into=store)
        for number in before.keys() - after.keys() - same:
            (source / f"{number:02}").unlink()
        for number, (size, seed) in after.items():
            if number not in same or number not in before:
                write(number, size, seed)
        again = publish_tree(source, version="1.1", into=store)
        assert store.missing(again.index) == set()
    assert again.index == in_full(source, folder / "full", publish_tree).index
