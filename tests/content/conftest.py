from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peat_p2p.content.index import Index
from peat_p2p.content.publish import TorrentMeta, publish
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.core.clock import ManualClock, SystemClock
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.formation import Formation, dev_credentials
from peat_p2p.trust.identity import Role


@pytest.fixture(scope="session")
def formation(tmp_path_factory: pytest.TempPathFactory) -> Formation:
    return Formation.init(tmp_path_factory.mktemp("formation"), "field")


@pytest.fixture(scope="session")
def publisher(formation: Formation, tmp_path_factory: pytest.TempPathFactory) -> NodeCredentials:
    folder = tmp_path_factory.mktemp("publisher")
    formation.issue("pub-1", [Role.PUBLISHER], folder)
    return NodeCredentials.load(folder)


@pytest.fixture(scope="session")
def agent(formation: Formation, tmp_path_factory: pytest.TempPathFactory) -> NodeCredentials:
    folder = tmp_path_factory.mktemp("agent")
    formation.issue("agent-1", [Role.AGENT], folder)
    return NodeCredentials.load(folder)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> NodeCredentials:
    return dev_credentials(tmp_path_factory.mktemp("other"), "pub-1", [Role.PUBLISHER])


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=SystemClock().wall())


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock) -> Iterator[ChunkStore]:
    with ChunkStore.open(tmp_path / "store", clock) as opened:
        yield opened


def torrent_of(index: Index, root: Path) -> TorrentMeta:
    info = b"info" + index.encode()
    return TorrentMeta(info, hashlib.sha256(info).hexdigest())


@pytest.fixture
def publish_tree(store: ChunkStore, publisher: NodeCredentials, clock: ManualClock) -> Callable[..., StoredPackage]:
    """publish(source, name, version) into `store`; the torrent is a stand-in, for torrents are not this room's."""

    def run(source: Path, name: str = "tool", version: str = "1.0", into: ChunkStore | None = None) -> StoredPackage:
        return publish(source, name, version, "any", into or store, publisher, torrent_of, clock)

    return run


@pytest.fixture
def make_tree() -> Callable[[Path, int], Path]:
    """A directory with what real packages have: small files, large ones, links, modes, empty things."""

    def make(root: Path, seed: int = 1) -> Path:
        rng = random.Random(seed)
        (root / "bin").mkdir(parents=True)
        (root / "lib/deep/er").mkdir(parents=True)
        (root / "empty").mkdir()
        (root / "bin/run").write_bytes(rng.randbytes(70_000))
        (root / "bin/run").chmod(0o755)
        (root / "bin/alias").symlink_to("run")
        (root / "lib/dangling").symlink_to("/nowhere/../at//all/")
        (root / "lib/big.so").write_bytes(rng.randbytes(900_000))
        (root / "lib/zeros").write_bytes(bytes(300_000))
        (root / "lib/nothing").write_bytes(b"")
        (root / "lib/secret").write_bytes(b"s3cret")
        (root / "lib/secret").chmod(0o400)
        for number in range(120):
            (root / f"lib/deep/er/{number:03}.txt").write_bytes(rng.randbytes(rng.randrange(3000)))
        (root / "lib/naïve ☃.txt").write_bytes(b"snow")
        (root / "lib/deep").chmod(0o750)
        (root / "empty").chmod(0o555)
        return root

    return make
