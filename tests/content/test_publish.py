from __future__ import annotations

import filecmp
import os
import random
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peat_p2p.content import ingest as ingest_module
from peat_p2p.content import publish as publish_module
from peat_p2p.content.chunking import pieces_root
from peat_p2p.content.index import Index
from peat_p2p.content.manifest import open_manifest
from peat_p2p.content.materialize import materialize
from peat_p2p.content.publish import TorrentMeta, publish
from peat_p2p.content.scan import scan
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.content.tree import verify_tree
from peat_p2p.core.clock import ManualClock
from peat_p2p.core.errors import ConflictError, DeniedError, InvalidInputError, NotFoundError
from peat_p2p.trust.credentials import NodeCredentials

Publish = Callable[..., StoredPackage]
MakeTree = Callable[..., Path]


def snapshot(root: Path) -> dict[str, tuple[int, object]]:
    found: dict[str, tuple[int, object]] = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(folder) / name
            status = path.lstat()
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)  # noqa: PTH115  a Path would normalize it
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            found[str(path.relative_to(root))] = (
                0 if stat.S_ISLNK(status.st_mode) else status.st_mode,
                content,
            )
    return found


def test_directory_comes_out_as_it_went_in(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, make_tree: MakeTree
) -> None:
    source = make_tree(tmp_path / "source")
    package = publish_tree(source)
    target = tmp_path / "out/tree"
    materialize(store, package.index, target)
    assert snapshot(target) == snapshot(source)
    assert verify_tree(package.index, target) == []
    assert package.manifest.total_bytes == sum(
        p.stat().st_size for p in source.rglob("*") if p.is_file() and not p.is_symlink()
    )


def test_single_file_becomes_directory_with_that_file(tmp_path: Path, store: ChunkStore, publish_tree: Publish) -> None:
    source = tmp_path / "tool.bin"
    source.write_bytes(random.Random(5).randbytes(2_000_000))
    source.chmod(0o750)
    package = publish_tree(source)
    assert package.index.is_single_file
    materialize(store, package.index, tmp_path / "out")
    assert filecmp.cmp(source, tmp_path / "out/tool.bin", shallow=False)
    assert stat.S_IMODE((tmp_path / "out/tool.bin").stat().st_mode) == 0o750
    assert verify_tree(package.index, tmp_path / "out") == []


def test_empty_directory_and_empty_file(tmp_path: Path, store: ChunkStore, publish_tree: Publish) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for number, name in enumerate(("nothing", "file")):
        package = publish_tree(tmp_path / name, version=f"{number}")
        assert package.index.chunks == ()
        materialize(store, package.index, tmp_path / f"out-{name}")
        assert verify_tree(package.index, tmp_path / f"out-{name}") == []


def test_chunks_do_not_depend_on_how_content_is_read(
    tmp_path: Path, publish_tree: Publish, make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_tree(tmp_path / "source")
    first = publish_tree(source)
    monkeypatch.setattr("peat_p2p.content.chunking._BUFFER_BYTES", 1)  # then two chunks of greatest size
    with ChunkStore.open(tmp_path / "other") as other:
        second = publish_tree(source, into=other)
    assert second.index == first.index


def test_second_publish_of_nearly_the_same_writes_only_what_changed(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, make_tree: MakeTree
) -> None:
    source = make_tree(tmp_path / "source")
    first = publish_tree(source)
    before = store.stat()
    big = source / "lib/big.so"
    content = big.read_bytes()
    big.write_bytes(content[:400_000] + b"a few bytes more" + content[400_000:])
    (source / "lib/deep/er/new.txt").write_bytes(b"new")
    second = publish_tree(source, version="1.1")
    written = store.stat().chunk_bytes - before.chunk_bytes
    assert second.index != first.index
    assert 0 < written <= 4 * 4 * second.index.average
    assert publish_tree(source, version="1.2").index == second.index
    assert store.stat().chunk_bytes == before.chunk_bytes + written


def test_a_later_version_is_cut_like_the_earlier_one(tmp_path: Path, publish_tree: Publish) -> None:
    rng = random.Random(9)
    body = rng.randbytes(70 << 20)
    source = tmp_path / "image"
    source.write_bytes(body[: 60 << 20])
    first = publish_tree(source)
    source.write_bytes(body)  # now over the size at which the average would double
    second = publish_tree(source, version="2.0")
    assert second.index.average == first.index.average
    shared = set(second.index.chunks) & set(first.index.chunks)
    assert sum(chunk.size for chunk in shared) > 59 << 20


def test_manifest_is_signed_and_about_the_package(
    tmp_path: Path, publish_tree: Publish, make_tree: MakeTree, publisher: NodeCredentials, clock: ManualClock
) -> None:
    package = publish_tree(make_tree(tmp_path / "source"), "tool", "2.1")
    manifest, digest, identity = open_manifest(package.envelope, publisher.anchor, clock.wall(), "tool", "2.1", "any")
    assert (manifest, digest) == (package.manifest, package.manifest_digest)
    assert identity.node_id == "pub-1"
    assert manifest.digest == package.index.digest
    assert len(manifest.to_payload()) < 1024


def test_roots_of_published_chunks_are_known(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, make_tree: MakeTree
) -> None:
    package = publish_tree(make_tree(tmp_path / "source"))
    roots = store.roots(package.index)
    assert set(roots) == {chunk.hex for chunk in package.index.chunks}
    for chunk in package.index.unique_chunks[:10]:
        assert roots[chunk.hex] == pieces_root(store.chunk_path(chunk.hex).read_bytes())


def test_pieces_root_is_that_of_bittorrent(tmp_path: Path) -> None:
    import libtorrent as lt

    for size in (1, 16384, 16385, 50_000, 262_144):
        data = random.Random(size).randbytes(size)
        (tmp_path / "file").write_bytes(data)
        made = lt.create_torrent([lt.create_file_entry("file", size)], 1 << 20, lt.create_torrent.v2_only)
        lt.set_piece_hashes(made, str(tmp_path))
        tree = lt.bdecode(lt.bencode(made.generate()))[b"info"][b"file tree"]
        assert pieces_root(data) == tree[b"file"][b""][b"pieces root"]


def test_progress_reaches_the_total(
    tmp_path: Path, store: ChunkStore, publisher: NodeCredentials, clock: ManualClock, make_tree: MakeTree
) -> None:
    seen: list[tuple[str, int, int]] = []

    def torrent(index: Index, root: Path) -> TorrentMeta:
        return TorrentMeta(b"i", "0" * 64)

    source = make_tree(tmp_path / "source")
    package = publish(source, "tool", "1", "any", store, publisher, torrent, clock, lambda *event: seen.append(event))
    reads = [done for phase, done, _ in seen if phase == "read"]
    assert reads == sorted(reads) and reads[-1] == package.index.total_bytes
    assert seen[-1] == ("torrent", package.index.unique_bytes, package.index.unique_bytes)


# What can be wrong with a source


def test_missing_source(tmp_path: Path, publish_tree: Publish) -> None:
    with pytest.raises(NotFoundError, match="no-such-thing does not exist"):
        publish_tree(tmp_path / "no-such-thing")


def test_device_pipe_or_socket(tmp_path: Path, publish_tree: Publish) -> None:
    (tmp_path / "tree").mkdir()
    os.mkfifo(tmp_path / "tree/pipe")
    with pytest.raises(InvalidInputError, match="pipe is a device, a pipe or a socket"):
        publish_tree(tmp_path / "tree")
    with pytest.raises(InvalidInputError, match="neither a file nor a directory"):
        publish_tree(tmp_path / "tree/pipe")


def test_name_that_is_not_utf8(tmp_path: Path, publish_tree: Publish) -> None:
    (tmp_path / "tree").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "tree") + b"/\xff\xfe")).write_bytes(b"")
    with pytest.raises(InvalidInputError, match="not UTF-8"):
        publish_tree(tmp_path / "tree")


def test_unreadable_file(tmp_path: Path, publish_tree: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"x")
    real = os.open

    def refuse(path: object, *args: int) -> int:
        if path == source:  # the tests may run as root, whom no mode stops
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ingest_module.os, "open", refuse)
    with pytest.raises(DeniedError, match="file cannot be read: permission denied"):
        publish_tree(source)


@pytest.mark.parametrize("change", ["longer", "shorter", "same size", "replaced"])
def test_file_that_changes_while_it_is_published(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    source = tmp_path / "tree"
    source.mkdir()
    (source / "a").write_bytes(random.Random(1).randbytes(100_000))
    file = source / "b"
    file.write_bytes(random.Random(2).randbytes(100_000))

    def scan_then_change(path: Path, known: object = None) -> object:
        found = scan(path)
        if change == "longer":
            with file.open("ab") as out:
                out.write(b"!")
        elif change == "shorter":
            os.truncate(file, 50_000)
        elif change == "replaced":
            file.rename(tmp_path / "old")
            file.write_bytes((tmp_path / "old").read_bytes())
        else:
            file.write_bytes(random.Random(3).randbytes(100_000))
            os.utime(file, ns=(1, 1))
        return found

    monkeypatch.setattr(publish_module, "scan", scan_then_change)
    with pytest.raises(ConflictError, match="b changed while it was published"):
        publish_tree(source)
    assert store.packages() == []


def test_store_inside_the_source(tmp_path: Path, store: ChunkStore, publish_tree: Publish) -> None:
    with pytest.raises(InvalidInputError, match="contains the store"):
        publish_tree(tmp_path)


def test_node_without_publisher_role(
    tmp_path: Path, store: ChunkStore, agent: NodeCredentials, clock: ManualClock
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(DeniedError, match="no publisher role"):
        publish(tmp_path / "file", "n", "1", "any", store, agent, lambda i, r: TorrentMeta(b"", "0" * 64), clock)


def test_two_publishes_at_once_share_chunks(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, make_tree: MakeTree
) -> None:
    source = make_tree(tmp_path / "source")
    failures: list[BaseException] = []

    def run(version: str) -> None:
        try:
            publish_tree(source, version=version)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(f"1.{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    packages = store.find("tool")
    assert len(packages) == 3 and len({summary.manifest.digest for summary in packages}) == 1
    assert store.gc().chunks == 0


_names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)
_node = st.recursive(
    st.one_of(
        st.tuples(st.just("file"), st.integers(0, 300_000), st.integers(0, 3), st.sampled_from([0o644, 0o755, 0o400])),
        st.tuples(st.just("link"), _names),
    ),
    lambda inner: st.dictionaries(_names, inner, max_size=5),
    max_leaves=12,
)


def _build(path: Path, node: object) -> None:
    if isinstance(node, dict):
        path.mkdir()
        for name, child in node.items():
            _build(path / name, child)
    elif isinstance(node, tuple) and node[0] == "link":
        path.symlink_to(node[1])
    elif isinstance(node, tuple):
        path.write_bytes(random.Random(node[2]).randbytes(node[1]))
        path.chmod(node[3])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.dictionaries(_names, _node, max_size=6))
def test_any_tree_comes_out_as_it_went_in(
    tree: object,
    store: ChunkStore,
    publish_tree: Publish,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    _build(folder / "source", tree)
    package = publish_tree(folder / "source", version=f"v{len(store.packages())}")
    assert Index.decode(package.index.encode()) == package.index
    materialize(store, package.index, folder / "out")
    assert snapshot(folder / "out") == snapshot(folder / "source")
    assert verify_tree(package.index, folder / "out") == []
