"""The torrent of a package: its info dictionary, made from the package's index and nothing else.

Owns the shape: BitTorrent v2 alone, private, an SSL torrent under the formation's CA, one file for each chunk at the
path the chunk has in the store, the index itself under the key `peat`. The piece length is at least the largest chunk,
so piece n is chunk n of `Index.unique_chunks` and there are no piece layers. Rule: the same index and CA give the same
bytes, and bytes from outside are taken only if they are exactly what this file would have made. Must not know about
sessions or sockets.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import libtorrent as lt

from peat_p2p.content.index import ChunkRef, Index
from peat_p2p.content.publish import TorrentBuilder, TorrentMeta
from peat_p2p.content.store import ChunkStore
from peat_p2p.core.errors import CorruptError, InvalidInputError, PeatError, TooLargeError, UntrustedError

NAME = "chunks"
BLOCK = 16 << 10
MAX_INFO_BYTES = 64 << 20
_ROOT_BYTES = 32
_ZERO = bytes(32)


@dataclass(frozen=True, slots=True)
class ParsedInfo:
    """A checked info dictionary. Piece n of the torrent is `chunks[n]`."""

    meta: TorrentMeta
    index: Index
    chunks: tuple[ChunkRef, ...]
    piece_length: int

    def chunk(self, digest: str) -> ChunkRef | None:
        """The chunk of a digest (hex), if it is part of this torrent."""
        key = bytes.fromhex(digest)
        at = bisect_left(self.chunks, key, key=lambda chunk: chunk.digest)
        return self.chunks[at] if at < len(self.chunks) and self.chunks[at].digest == key else None


def torrent_builder(store: ChunkStore, ca_pem: bytes) -> TorrentBuilder:
    """What `publish` calls: makes torrents of the store's chunks, with the roots it has computed already."""
    return lambda index, root: build_torrent(index, root, ca_pem, store.roots(index))


def build_torrent(
    index: Index, store_root: Path, ca_pem: bytes, roots: Mapping[str, bytes] | None = None
) -> TorrentMeta:
    """Make the torrent of `index` from the chunks in the store at `store_root`; those in `roots` are not read.

    Raises CorruptError when a chunk is missing or has another size.
    """
    known = roots or {}

    def root_of(chunk: ChunkRef) -> bytes:
        return known.get(chunk.hex) or _root_of_file(_chunk_path(store_root, chunk), chunk.size)

    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="pieces") as pool:
        found = list(pool.map(root_of, index.unique_chunks))
    return _meta(_encode(index, found, ca_pem))


def parse_info(info: bytes, infohash: str, ca_pem: bytes) -> ParsedInfo:
    """Check bytes from anywhere against the infohash a manifest names, and against the shape. Raises PeatError."""
    if len(info) > MAX_INFO_BYTES:
        raise TooLargeError(f"torrent metadata of {len(info)} bytes is over the limit of {MAX_INFO_BYTES}")
    if hashlib.sha256(info).hexdigest() != infohash:
        raise UntrustedError(f"torrent metadata does not have the infohash {infohash[:12]} its manifest names")
    try:
        decoded = cast("dict[bytes, Any]", lt.bdecode(info))
        index = Index.decode(decoded[b"peat"])
        tree = decoded[b"file tree"]
        roots = [tree[_directory(chunk)][chunk.hex.encode()][b""][b"pieces root"] for chunk in index.unique_chunks]
    except PeatError as error:
        raise InvalidInputError(f"torrent {infohash[:12]} carries no good package index: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"torrent {infohash[:12]} is not the torrent of a package") from error
    if decoded.get(b"ssl-cert") != ca_pem:
        raise UntrustedError(f"torrent {infohash[:12]} belongs to another formation")
    if any(not isinstance(root, bytes) or len(root) != _ROOT_BYTES for root in roots):
        raise InvalidInputError(f"torrent {infohash[:12]} has a file without a root")
    # What we would make from the same parts must be what came: so no path, flag or file can be smuggled in.
    if _encode(index, roots, ca_pem) != info:
        raise InvalidInputError(f"torrent {infohash[:12]} is not in canonical form")
    return ParsedInfo(TorrentMeta(info, infohash), index, index.unique_chunks, piece_length(index))


def shortened(info: bytes) -> bytes:
    """An info dictionary without what follows from the rest: the index and the root of each chunk.

    Names of chunks make up half of the whole, and as hashes they do not compress. Raises InvalidInputError.
    """
    try:
        decoded = cast("dict[bytes, Any]", lt.bdecode(info))
        encoded, tree = decoded[b"peat"], decoded[b"file tree"]
        roots = [
            entry[b""][b"pieces root"] for _, folder in sorted(tree.items()) for _, entry in sorted(folder.items())
        ]
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InvalidInputError("not the torrent metadata of a package") from error
    return b"".join((len(encoded).to_bytes(4, "big"), encoded, *roots))


def restored(short: bytes, infohash: str, ca_pem: bytes) -> ParsedInfo:
    """What `shortened` made, in the formation of this CA, checked as by `parse_info`. Raises PeatError.

    The info dictionary is made here from its parts, so that it is in canonical form needs no check.
    """
    size = int.from_bytes(short[:4], "big")
    try:
        index = Index.decode(short[4 : 4 + size])
    except PeatError as error:
        raise InvalidInputError(f"the short form of torrent metadata carries no good index: {error}") from error
    roots = short[4 + size :]
    if len(roots) != _ROOT_BYTES * len(index.unique_chunks):
        raise InvalidInputError("the short form of torrent metadata has not one root for each chunk")
    meta = _meta(_encode(index, [roots[at : at + _ROOT_BYTES] for at in range(0, len(roots), _ROOT_BYTES)], ca_pem))
    if meta.infohash != infohash:
        raise UntrustedError(f"torrent metadata does not have the infohash {infohash[:12]} its manifest names")
    return ParsedInfo(meta, index, index.unique_chunks, piece_length(index))


def piece_length(index: Index) -> int:
    """The smallest power of two that holds every chunk, at least one block."""
    length = BLOCK
    largest = max((chunk.size for chunk in index.chunks), default=0)
    while length < largest:
        length *= 2
    return length


def merkle_root(data: bytes | memoryview) -> bytes:
    """The BitTorrent v2 root of one file: SHA-256 over blocks of 16 KiB, the leaves padded to a power of two."""
    layer = [hashlib.sha256(data[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK)]
    width = 1
    while width < len(layer):
        width *= 2
    layer += [_ZERO] * (width - len(layer))
    while len(layer) > 1:
        layer = [hashlib.sha256(layer[at] + layer[at + 1]).digest() for at in range(0, len(layer), 2)]
    return layer[0]


def _encode(index: Index, roots: Sequence[bytes], ca_pem: bytes) -> bytes:
    tree: dict[bytes, dict[bytes, Any]] = {}
    for chunk, root in zip(index.unique_chunks, roots, strict=True):
        entry = {b"": {b"length": chunk.size, b"pieces root": root}}
        tree.setdefault(_directory(chunk), {})[chunk.hex.encode()] = entry
    info: Any = {
        b"file tree": tree,
        b"meta version": 2,
        b"name": NAME.encode(),
        b"peat": index.encode(),
        b"piece length": piece_length(index),
        b"private": 1,
        b"ssl-cert": ca_pem,
    }
    return lt.bencode(info)


def _meta(info: bytes) -> TorrentMeta:
    if len(info) > MAX_INFO_BYTES:
        raise TooLargeError(f"torrent metadata of {len(info)} bytes is over the limit of {MAX_INFO_BYTES}")
    return TorrentMeta(info, hashlib.sha256(info).hexdigest())


def _root_of_file(path: Path, size: int) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CorruptError(f"{path} is missing from the store: publish again") from None
    if len(data) != size:
        raise CorruptError(f"{path} has {len(data)} bytes, not {size}: run `peat store verify`")
    return merkle_root(memoryview(data))


def _chunk_path(store_root: Path, chunk: ChunkRef) -> Path:
    return store_root / NAME / chunk.hex[:2] / chunk.hex


def _directory(chunk: ChunkRef) -> bytes:
    return chunk.hex[:2].encode()
