"""The store: publish, verify and gc of many files, beside hashing the same tree.

Owns the measurement only. The bars compare with what the machine can do at all in the same run: `b3sum` and
`sha256sum` over the same tree, and what the disk makes of it at best: `tar` reads the tree into one file, which is
synced. Every reader starts with a cold cache.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bench.result import Bench, Run, Scenario
from peat_p2p.content.materialize import materialize
from peat_p2p.content.publish import publish
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.content.tree import verify_tree
from peat_p2p.content.upkeep import verify_store
from peat_p2p.core.clock import SystemClock
from peat_p2p.swarm.torrent import torrent_builder
from peat_p2p.trust.formation import dev_credentials
from peat_p2p.trust.identity import Role

T = TypeVar("T")
_FOLDER = 200  # files in one folder
_LARGE = 100  # one file in so many is large


def whole(run: Run) -> None:
    """One tree through its whole life."""
    total, files = (500_000_000, 10_000) if run.quick else (5_000_000_000, 100_000)
    place = getattr(run.options, "place", None)
    with tempfile.TemporaryDirectory(prefix="peat-bench-store-", dir=place) as folder:
        work = Path(folder)
        tree = work / "tree"
        size = _make_tree(tree, total, files, run.random)
        os.sync()
        run.parameter(files=files, bytes=size, content="a third like text, the rest dense")
        _cool(tree)
        run.baseline("tar", _copied(tree, work / "probe", size))
        for program in ("b3sum", "sha256sum"):
            _cool(tree)
            run.baseline(program, _hash_with(program, tree, size))
        for name, figures in run.baselines.items():
            run.say(f"{name}: {figures}")
        _measure(run, work, tree, size)


def _measure(run: Run, work: Path, tree: Path, size: int) -> None:
    credentials = dev_credentials(work / "formation", "publisher", [Role.PUBLISHER])
    with ChunkStore.open(work / "store") as store:
        builder = torrent_builder(store, credentials.ca_pem)

        def put(version: str) -> StoredPackage:
            return publish(tree, "tree", version, "any", store, credentials, builder, SystemClock())

        _cool(tree)
        first = _timed(run, "publish", size, lambda: put("1"))
        run.record("stored bytes", first.index.unique_bytes, "bytes")
        run.record("chunks", len(first.index.unique_chunks))
        run.record("index bytes", len(first.index.encode()), "bytes")
        _change(tree, run.random)
        _cool(tree)
        before = store.stat().chunk_bytes
        second = _timed(run, "publish again with 1 % of the files changed", size, lambda: put("2"))
        run.record("new bytes of the second publish", store.stat().chunk_bytes - before, "bytes")
        _cool(store.root)
        _timed(run, "verify", store.stat().chunk_bytes, lambda: verify_store(store, SystemClock().wall()))
        _timed(run, "materialize", size, lambda: materialize(store, second.index, work / "out"))
        differences = _timed(run, "verify_tree", size, lambda: verify_tree(second.index, work / "out"))
        store.remove_package(first.manifest_digest)
        collected = _timed(run, "gc of the first version", size, store.gc)
        run.record("gc freed bytes", collected.bytes, "bytes")
        store.remove_package(second.manifest_digest)
        _timed(run, "gc of everything", size, store.gc)
        run.at_most("bytes left after gc of everything", store.stat().chunk_bytes, 0, "bytes")
    run.at_most("differences between source and what came out", len(differences), 0)
    bars = [("publish", "sha256sum", 0.5), ("verify", "b3sum", 0.5)]
    if not run.quick:  # packages of less than 1 GB are packed harder, which is the processor's work; see packing.py
        bars.append(("publish", "tar", 0.9))
    for name, other, limit in bars:
        run.at_least(f"{name} / {other}", _ratio(run, name, other), limit)


def _ratio(run: Run, name: str, other: str) -> float | None:
    beside = run.baselines[other].get("MB/s")
    return run.results[name]["MB/s"] / beside if beside else None


def _timed(run: Run, name: str, size: int, work: Callable[[], T]) -> T:
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.monotonic()
    result = work()
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures = _figures(size, seconds) | {"cpu_seconds": round(cpu, 2)}
    run.record(name, figures)
    run.say(f"  {figures}")
    return result


def _make_tree(tree: Path, total: int, files: int, rng: random.Random) -> int:
    # One file in a hundred is large; a third of the files compress as text does.
    words = [rng.randbytes(rng.randrange(2, 6)).hex().encode() for _ in range(4096)]
    text = b" ".join(rng.choices(words, k=1 << 20))
    large = total // 2 // (files // _LARGE)
    small = total // 2 // files
    size = 0
    for number in range(files):
        path = tree / f"{number // _FOLDER:04}" / f"{number:06}"
        if number % _FOLDER == 0:
            path.parent.mkdir(parents=True)
        count = rng.randrange(1, 2 * (large if number % _LARGE == 0 else small))
        head = number.to_bytes(8, "big")
        with path.open("wb") as file:
            file.write(head)
            left = count
            while left > 0:
                step = min(left, 1 << 20)
                if number % 3 == 0:
                    at = rng.randrange(len(text) - step) if step < len(text) else 0
                    file.write(text[at : at + step])
                else:
                    file.write(os.urandom(step))
                left -= step
        size += count + len(head)
    return size


def _change(tree: Path, rng: random.Random) -> None:
    for number, path in enumerate(sorted(tree.rglob("*"))):
        if path.is_file() and number % 100 == 7:
            path.write_bytes(path.read_bytes() + rng.randbytes(10))


def _cool(folder: Path) -> None:
    """Put what lies in a folder out of the page cache, so that every reader starts from the disk."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def _figures(size: int, seconds: float) -> dict[str, Any]:
    return {"seconds": round(seconds, 3), "MB/s": round(size / seconds / 1e6, 1)}


def _copied(tree: Path, target: Path, size: int) -> dict[str, Any]:
    started = time.monotonic()
    # Records of 1 MiB: with tar's own 10 KiB the calls cost more than the disk.
    subprocess.run(["tar", "-b", "2048", "-cf", str(target), "-C", str(tree), "."], check=True)
    subprocess.run(["sync", str(target)], check=True)
    seconds = time.monotonic() - started
    target.unlink()
    return _figures(size, seconds)


def _hash_with(program: str, tree: Path, size: int) -> dict[str, Any]:
    if shutil.which(program) is None:
        return {"reason": f"{program} is not installed"}
    started = time.monotonic()
    files = subprocess.Popen(["find", str(tree), "-type", "f", "-print0"], stdout=subprocess.PIPE)
    subprocess.run(["xargs", "-0", "-n", "5000", program], stdin=files.stdout, stdout=subprocess.DEVNULL, check=True)
    files.wait()
    seconds = time.monotonic() - started
    return _figures(size, seconds)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--place", type=Path, metavar="DIR", help="the disk to measure (default: the temporary folder)")


BENCH = Bench(
    "store",
    "publish, verify and gc of 5 GB in 100,000 files beside hashing them",
    (Scenario("whole", "one tree through its whole life", whole),),
    arguments=_arguments,
)
