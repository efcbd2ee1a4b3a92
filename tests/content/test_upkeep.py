from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from peat_p2p.content import eviction, upkeep
from peat_p2p.content import store as store_module
from peat_p2p.content.eviction import Kept, Watermarks
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.content.upkeep import ScrubPace, carry_out, plan_eviction, scrub_step, verify_store
from peat_p2p.core.clock import ManualClock
from peat_p2p.core.errors import ExhaustedError, NotFoundError

Publish = Callable[..., StoredPackage]


def publish_random(folder: Path, publish_tree: Publish, seed: int, size: int = 400_000) -> StoredPackage:
    source = folder / f"source-{seed}"
    source.write_bytes(random.Random(seed).randbytes(size))
    return publish_tree(source, name=f"p{seed}")


def before_me(digest: str) -> list[str]:
    """Holders that keep the package so that the agent `me` need not."""
    return [
        name for name in (f"x{n}" for n in range(400)) if eviction._rank(digest, name) < eviction._rank(digest, "me")
    ]


def rot(store: ChunkStore, digest: str) -> None:
    """Damage that no size or time tells."""
    path = store.chunk_path(digest)
    at = path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(at, at))


def test_verify_finds_all_rot_and_whose_it_is(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, clock: ManualClock
) -> None:
    first, second = (publish_random(tmp_path, publish_tree, seed) for seed in (1, 2))
    again = publish_tree(tmp_path / "source-1", name="p1", version="2.0")
    clock.advance(10)
    assert verify_store(store, clock.wall()).rotten == ()
    shared, own = first.index.chunks[2], second.index.chunks[0]
    rot(store, shared.hex)
    rot(store, own.hex)
    clock.advance(10)
    seen: list[tuple[int, int]] = []
    found = verify_store(store, clock.wall(), lambda done, total: seen.append((done, total)))
    assert {item.digest: set(item.packages) for item in found.rotten} == {
        shared.hex: {first.manifest_digest, again.manifest_digest},
        own.hex: {second.manifest_digest},
    }
    assert (found.chunks, found.bytes) == (len(first.index.unique_chunks) + len(second.index.unique_chunks), 800_000)
    assert seen[-1] == (800_000, 800_000)
    assert store.missing(first.index) == {shared.hex}
    assert store.damaged() == {
        first.manifest_digest: {shared.hex},
        again.manifest_digest: {shared.hex},
        second.manifest_digest: {own.hex},
    }


def test_verify_goes_on_where_it_was_interrupted(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_random(tmp_path, publish_tree, 1)
    monkeypatch.setattr(upkeep, "_STEP_BYTES", 100_000)
    clock.advance(10)
    started = clock.wall()
    total = store.stat().chunks

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_store(store, started, stop)
    clock.advance(10)
    assert 0 < verify_store(store, started).chunks < total
    assert verify_store(store, started).chunks == 0


def test_scrub_goes_round_the_store(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, clock: ManualClock
) -> None:
    package = publish_random(tmp_path, publish_tree, 1)
    pace = ScrubPace(period=100, every=10, least=1)
    rotten = package.index.unique_chunks[-1].hex
    rot(store, rotten)
    found = []
    steps = 0
    while not found:
        clock.advance(10)
        found += scrub_step(store, pace).rotten
        steps += 1
        assert steps <= 11
    assert [item.digest for item in found] == [rotten]
    assert found[0].packages == (package.manifest_digest,)
    assert ScrubPace().budget(30 * 10**9) * 14 * 86400 / 60 >= 30 * 10**9
    assert ScrubPace().budget(0) > 0


def test_missing_file_is_rot_too(tmp_path: Path, store: ChunkStore, publish_tree: Publish, clock: ManualClock) -> None:
    package = publish_random(tmp_path, publish_tree, 1)
    store.chunk_path(package.index.chunks[0].hex).unlink()
    clock.advance(1)
    assert [item.digest for item in verify_store(store, clock.wall()).rotten] == [package.index.chunks[0].hex]


def test_reserved_space_is_not_counted_twice(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "free_bytes", lambda path: store_module.RESERVE_BYTES + 1000)
    with store.reserve(600, "pull a") as first:
        assert store.stat().reserved_bytes == 600
        with pytest.raises(ExhaustedError, match="pull b needs"), store.reserve(500, "pull b"):
            pass
        store.use_reserved(first, 200)
        assert (first.left, store.stat().reserved_bytes) == (400, 400)
        with store.reserve(500, "pull b"):
            store.use_reserved(first, 10_000)
            assert (first.left, store.stat().reserved_bytes) == (0, 500)
    assert store.stat().reserved_bytes == 0
    store.check_space(1000)


def test_eviction_frees_what_it_said(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, clock: ManualClock
) -> None:
    packages = []
    for seed in range(4):
        packages.append(publish_random(tmp_path, publish_tree, seed))
        clock.advance(60)
    store.pin(packages[0].manifest_digest)
    store.touch(packages[1].manifest_digest)  # used last now
    # Watermarks of a disk that is as good as empty are always passed; every package is held by many.
    marks = Watermarks(high=1e-9, low=1e-10)
    holders = {package.manifest_digest: before_me(package.manifest_digest) for package in packages}
    plan = plan_eviction(store, 0, "me", holders, watermarks=marks, in_use={packages[3].manifest_digest}, priorities={})
    assert plan.kept == {packages[0].manifest_digest: Kept.PINNED, packages[3].manifest_digest: Kept.IN_USE}
    assert plan.remove == (packages[2].manifest_digest, packages[1].manifest_digest)
    assert carry_out(store, plan) == plan.freed == 800_000
    assert {summary.manifest_digest for summary in store.packages()} == set(plan.kept)
    assert store.damaged() == {}
    with pytest.raises(NotFoundError):
        store.pin(packages[2].manifest_digest)


def test_nothing_is_evicted_below_the_watermark(tmp_path: Path, store: ChunkStore, publish_tree: Publish) -> None:
    package = publish_random(tmp_path, publish_tree, 1)
    plan = plan_eviction(store, 0, "me", {package.manifest_digest: ["other"]}, watermarks=Watermarks(1.0, 1.0))
    assert plan.remove == ()
