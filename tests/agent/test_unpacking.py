"""Unpacking while chunks still come."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peat_p2p.agent import unpacking as unpacking_module
from peat_p2p.agent.unpacking import Unpacking
from peat_p2p.cli.demo.compare import differences
from peat_p2p.content.index import ChunkRef
from peat_p2p.content.publish import publish
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.core.clock import SystemClock
from peat_p2p.core.errors import ConflictError
from peat_p2p.fleet.commands import CommandStatus
from peat_p2p.swarm.torrent import torrent_builder
from peat_p2p.trust.formation import dev_credentials
from peat_p2p.trust.identity import Role


@pytest.fixture
def source(tmp_path: Path) -> Path:
    dice = random.Random(3)
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}").write_bytes(dice.randbytes(dice.randrange(1, 200_000)))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    with ChunkStore.open(tmp_path / "store") as store:
        yield store


@pytest.fixture
def package(tmp_path: Path, source: Path, store: ChunkStore) -> StoredPackage:
    me = dev_credentials(tmp_path / "formation", "me", [Role.PUBLISHER])
    builder = torrent_builder(store, me.ca_pem)
    return publish(source, "app", "1", "any", store, me, builder, SystemClock())


class Coming:
    """A transfer whose chunks come when the test says so."""

    def __init__(self, package: StoredPackage) -> None:
        self.manifest = package.manifest
        self.missing: dict[str, ChunkRef] = {chunk.hex: chunk for chunk in package.index.chunks}
        self.index = package.index

    def lacks(self) -> tuple[Any, dict[str, ChunkRef]]:
        return self.index, self.missing

    def bring(self, count: int) -> None:
        for digest in list(self.missing)[:count]:
            del self.missing[digest]


def half_done(folder: Path) -> list[Path]:
    [temporary] = folder.glob(".out.*.tmp")
    return [path for path in temporary.iterdir() if path.stat().st_mode & 0o777 == 0o644]


async def test_what_can_be_written_is_written_and_the_rest_at_the_end(
    tmp_path: Path, source: Path, store: ChunkStore, package: StoredPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking_module, "_SHARE", 1.0)
    transfer: Any = Coming(package)
    half = len(transfer.missing) // 2
    async with Unpacking(store, tmp_path / "out") as unpacking:
        await unpacking.advance(transfer)
        assert half_done(tmp_path) == []
        transfer.bring(half)
        await unpacking.advance(transfer)
        assert 10 < len(half_done(tmp_path)) < 40
        assert not (tmp_path / "out").exists()
        await unpacking.finish(package)
    assert differences(source, tmp_path / "out") == []
    assert list(tmp_path.glob(".out*")) == []


async def test_what_stands_in_the_way_early_is_told_at_the_end_alone(
    tmp_path: Path, store: ChunkStore, package: StoredPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer: Any = Coming(package)
    monkeypatch.setattr(unpacking_module, "_SHARE", 1.0)
    async with Unpacking(store, tmp_path / "out") as unpacking:
        transfer.bring(10)
        await unpacking.advance(transfer)
        rotten = next(chunk for chunk in package.index.unique_chunks if chunk.hex in transfer.missing)
        kept = store.chunk_path(rotten.hex).read_bytes()
        store.chunk_path(rotten.hex).write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        transfer.bring(len(transfer.missing))
        await unpacking.advance(transfer)
        assert list(tmp_path.glob(".out*")) == [], "it gave up"
        store.chunk_path(rotten.hex).write_bytes(kept)  # as fetched again
        assert store.verify(rotten.hex, rotten.size)
        await unpacking.advance(transfer)
        assert list(tmp_path.glob(".out*")) == [], "and does not try again before the end"
        (tmp_path / "out").mkdir()
        with pytest.raises(ConflictError, match="exists already"):
            await unpacking.finish(package)
        (tmp_path / "out").rmdir()
        await unpacking.finish(package)
    assert differences(tmp_path / "source", tmp_path / "out") == []


async def test_stopped_half_way_nothing_is_left(tmp_path: Path, store: ChunkStore, package: StoredPackage) -> None:
    transfer: Any = Coming(package)
    transfer.bring(10)
    reached = asyncio.Event()

    async def work() -> None:
        async with Unpacking(store, tmp_path / "out") as unpacking:
            await unpacking.advance(transfer)
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(work())
    await reached.wait()
    assert half_done(tmp_path)
    task.cancel()
    await asyncio.wait([task])
    assert list(tmp_path.glob(".out*")) == []


async def test_a_deployment_is_unpacked_while_it_is_fetched(
    fleet: Any, source: Path, until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[SimpleNamespace] = []
    real = Unpacking.put

    def put(self: Unpacking, package: StoredPackage, stopper: Any) -> None:
        [temporary] = self._destination.parent.glob(".*.tmp")
        whole = [path for path in temporary.iterdir() if path.stat().st_mode & 0o777 == 0o644]
        seen.append(SimpleNamespace(files=len(whole)))
        real(self, package, stopper)

    monkeypatch.setattr(Unpacking, "put", put)
    async with fleet.agent("a1") as one, fleet.agent("a2", download_limit=2_000_000) as two:
        await one.publish(source, "app", "1.0", "any", lambda *_: None)
        await fleet.order(fleet.command("c1", "a2", kind="deploy", package="app", version="1.0"))
        await until(lambda: fleet.sidecar.get("receipts", "c1:a2").get("status") == CommandStatus.COMPLETED, 30)
        [deployed] = two.deployments.current()
    assert differences(source, Path(deployed.path)) == []
    assert [one.files > 5 for one in seen] == [True]
