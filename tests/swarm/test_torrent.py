"""The torrent of a package: deterministic, and nothing else is taken for one."""

from __future__ import annotations

import hashlib
from typing import Any

import libtorrent as lt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peat_p2p.core.errors import CorruptError, InvalidInputError, PeatError, TooLargeError, UntrustedError
from peat_p2p.swarm import torrent as module
from peat_p2p.swarm.torrent import BLOCK, build_torrent, merkle_root, parse_info, piece_length


@pytest.fixture
def package(node, content):
    return node("ann").publish(content(size=400_000))


def test_the_same_index_gives_the_same_bytes_with_and_without_known_roots(node, content) -> None:
    ann = node("ann")
    package = ann.publish(content(size=400_000))
    ca = ann.credentials.ca_pem
    built = build_torrent(package.index, ann.store.root, ca)
    assert built.info == package.info
    assert built.infohash == package.manifest.infohash == hashlib.sha256(built.info).hexdigest()
    parsed = parse_info(package.info, built.infohash, ca)
    assert parsed.index == package.index
    assert parsed.chunks == package.index.unique_chunks


def test_libtorrent_sees_what_we_meant(node, content) -> None:
    ann = node("ann")
    package = ann.publish(content(size=400_000))
    info = lt.torrent_info(b"d4:info" + package.info + b"e")
    assert str(info.info_hashes().v2) == package.manifest.infohash
    assert not info.info_hashes().has_v1()
    assert info.priv()
    assert info.num_pieces() == len(package.index.unique_chunks)
    assert info.ssl_cert().encode() == ann.credentials.ca_pem
    files = info.files()
    real = [n for n in range(files.num_files()) if not files.file_flags(n) & lt.file_storage.flag_pad_file]
    assert [files.file_path(n) for n in real] == [f"chunks/{c.hex[:2]}/{c.hex}" for c in package.index.unique_chunks]
    assert [files.file_size(n) for n in real] == [chunk.size for chunk in package.index.unique_chunks]
    assert [info.map_file(n, 0, 0).piece for n in real] == list(range(len(real)))


def test_the_piece_holds_the_largest_chunk(package) -> None:
    length = piece_length(package.index)
    largest = max(chunk.size for chunk in package.index.chunks)
    assert largest <= length < max(2 * largest, 2 * BLOCK)
    assert length & (length - 1) == 0


@pytest.mark.parametrize("size", [1, 100, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 17, 64 * BLOCK])
def test_merkle_root_is_that_of_libtorrent(tmp_path, size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    (tmp_path / "file").write_bytes(data[:size])
    files = lt.list_files(str(tmp_path / "file"))
    creator = lt.create_torrent(files, 4 << 20, lt.create_torrent.v2_only)
    lt.set_piece_hashes(creator, str(tmp_path))
    tree: Any = creator.generate()[b"info"][b"file tree"]
    assert tree[b"file"][b""][b"pieces root"] == merkle_root(data[:size])


def _changed(info: bytes, **changes: object) -> tuple[bytes, str]:
    decoded: Any = lt.bdecode(info)
    for key, value in changes.items():
        name = key.replace("_", " ").encode()
        if value is None:
            decoded.pop(name)
        else:
            decoded[name] = value
    data = lt.bencode(decoded)
    return data, hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"private": 0},
        {"private": None},
        {"name": b"../../etc"},
        {"meta_version": 3},
        {"piece_length": BLOCK * 1024},
        {"peat": b"nonsense"},
        {"peat": None},
        {"extra": 1},
        {"file_tree": {b"..": {b"": {b"length": 1, b"pieces root": bytes(32)}}}},
        {"file_tree": 5},
    ],
)
def test_any_other_shape_is_refused(node, package, changes) -> None:
    data, infohash = _changed(package.info, **changes)
    with pytest.raises(InvalidInputError):
        parse_info(data, infohash, _ca(package))


def test_an_added_file_is_refused(package) -> None:
    decoded: Any = lt.bdecode(package.info)
    decoded[b"file tree"][b"ab"] = decoded[b"file tree"].get(b"ab", {}) | {
        b"passwd": {b"": {b"length": 1, b"pieces root": bytes(32)}}
    }
    data = lt.bencode(decoded)
    with pytest.raises(InvalidInputError, match="canonical"):
        parse_info(data, hashlib.sha256(data).hexdigest(), _ca(package))


def test_another_formation_another_infohash_and_too_much_are_refused(package, monkeypatch) -> None:
    with pytest.raises(UntrustedError, match="infohash"):
        parse_info(package.info, "0" * 64, _ca(package))
    with pytest.raises(UntrustedError, match="formation"):
        parse_info(package.info, package.manifest.infohash, b"another CA")
    monkeypatch.setattr(module, "MAX_INFO_BYTES", 1000)
    with pytest.raises(TooLargeError):
        parse_info(package.info, package.manifest.infohash, _ca(package))


def test_a_missing_or_short_chunk_is_named(node, content) -> None:
    ann = node("ann")
    package = ann.publish(content(size=100_000))
    path = ann.store.chunk_path(package.index.unique_chunks[0].hex)
    path.chmod(0o644)
    path.write_bytes(b"short")
    with pytest.raises(CorruptError, match=path.name):
        build_torrent(package.index, ann.store.root, ann.credentials.ca_pem)
    path.unlink()
    with pytest.raises(CorruptError, match="missing"):
        build_torrent(package.index, ann.store.root, ann.credentials.ca_pem)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_cleanly(data: bytes) -> None:
    with pytest.raises(PeatError):
        parse_info(data, hashlib.sha256(data).hexdigest(), b"ca")


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.integers(0, 1 << 40) | st.binary(max_size=40),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([b"", b"peat", b"file tree", b"length", b"ab"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_arbitrary_bencoding_is_refused_cleanly(value: Any) -> None:
    data = lt.bencode(value)
    with pytest.raises(PeatError):
        parse_info(data, hashlib.sha256(data).hexdigest(), b"ca")


def _ca(package) -> bytes:
    decoded: Any = lt.bdecode(package.info)
    return decoded[b"ssl-cert"]
