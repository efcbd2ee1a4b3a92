"""Looking into archives.

Owns finding out whether a compressed file, or one inside a tar, can be made again bit for bit from its content, and
with which codec. Rule: a recipe is given only after its output was made and compared with the file to the last byte.
What cannot be made again is left whole. Must not write anything.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from peat_p2p.content.codecs import DEFLATE, GNU_DEFLATE, ZSTD, encoder
from peat_p2p.content.entries import Part, Recipe
from peat_p2p.core.errors import UnavailableError

MIN_BYTES = 64 << 10
_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
# xz, bzip2, lz4, zip, 7z: told apart only to say that they are kept as they are.
_NEVER_OPENED = (b"\xfd7zXZ\0", b"BZh", b"\x04\x22\x4d\x18", b"PK\3\4", b"7z\xbc\xaf\x27\x1c")
_READ = 256 << 10
_OCI_DIGEST = re.compile(r"sha(256|512):[0-9a-f]{64,128}")
_MAX_MEMBERS = 1000
_GZIP_TRAILER = 8
_ZSTD_BLOCK = 64 << 10  # a wrong level differs long before this
_ZSTD_LEVELS = (3, 19, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12)


@dataclass(frozen=True, slots=True)
class Opened:
    """What was found in a file: `recipe` if something in it is delivered from content, else None.

    `kept` counts the compressed streams that cannot be made again and stay as they are.
    """

    recipe: Recipe | None
    opened: int
    kept: int


def open_container(path: Path, size: int) -> Opened:
    """Examine a file. Raises OSError."""
    if size < MIN_BYTES:
        return Opened(None, 0, 0)
    with path.open("rb") as file:
        if file.read(8).startswith(_NEVER_OPENED):
            return Opened(None, 0, 1)
        file.seek(0)
        parts: list[Part] = []
        opened = kept = at = 0
        for offset, length in _streams(file, size):
            found = _parts(file, offset, length)
            if found is None:
                kept += 1
                continue
            opened += 1
            parts += _plain(offset - at)
            parts += found
            at = offset + length
        if not opened:
            return Opened(None, 0, kept)
        parts += _plain(size - at)
        file.seek(0)
        return Opened(Recipe(hashlib.file_digest(file, "sha256").digest(), _merged(parts)), opened, kept)


def is_tar(head: bytes) -> bool:
    """Whether a file that begins so (512 bytes) is a tar archive."""
    return head[257:262] == b"ustar"


def read_content(file: BinaryIO, offset: int, part: Part) -> Iterator[bytes]:
    """The content of a part of a file whose output lies at `offset`. Raises ValueError if it is not that."""
    if not part.codec:
        yield from _raw(file, offset, part.output_bytes)
        return
    total = 0
    decompress = _inflate if part.codec in (DEFLATE, GNU_DEFLATE) else _unzstd
    for data in decompress(file, offset, part.output_bytes):
        total += len(data)
        yield data
    if total != part.content_bytes:
        raise ValueError("a compressed part changed its content")


def _plain(length: int) -> list[Part]:
    return [Part(length, length)] if length else []


def _merged(parts: list[Part]) -> tuple[Part, ...]:
    merged: list[Part] = []
    for part in parts:
        if merged and not part.codec and not merged[-1].codec:
            length = merged.pop().output_bytes + part.output_bytes
            part = Part(length, length)
        merged.append(part)
    return tuple(merged)


def _streams(file: BinaryIO, size: int) -> list[tuple[int, int]]:
    """(offset, length) of what is compressed: the file itself or members of a tar, such as the layers of an image."""
    head = file.read(512)
    if head.startswith((_GZIP, _ZSTD)):
        return [(0, size)]
    if not is_tar(head):
        return []
    found = []
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isreg() and member.size >= MIN_BYTES and member.sparse is None:
                    found.append((member.offset_data, member.size))
                if len(found) > _MAX_MEMBERS:
                    return []
    except (tarfile.TarError, ValueError, EOFError):
        return []
    streams = []
    for offset, length in found:
        file.seek(offset)
        if offset + length <= size and file.read(4).startswith((_GZIP, _ZSTD)):
            streams.append((offset, length))
    return streams


def _parts(file: BinaryIO, offset: int, length: int) -> list[Part] | None:
    file.seek(offset)
    head = file.read(min(length, 1 << 16))
    if head.startswith(_GZIP):
        return _gzip_parts(file, offset, length, head)
    part = _zstd_part(file, offset, length, head)
    return [part] if part else None


# gzip


def _gzip_parts(file: BinaryIO, offset: int, length: int, head: bytes) -> list[Part] | None:
    header = _gzip_header(head)
    body = length - header - _GZIP_TRAILER
    if header == 0 or body <= 0:
        return None
    try:
        content = sum(len(data) for data in _inflate(file, offset + header, body))
    except (zlib.error, ValueError):
        return None
    # The byte at 8 says how hard the compressor tried; so the likely levels come first.
    likely = {2: (9, 8, 7), 4: (1,)}.get(head[8], (6, 5, 4))
    levels = [*likely, *(level for level in range(1, 10) if level not in likely)]
    candidates = [Part(content, body, DEFLATE, (level, memory)) for level in levels for memory in (8, 9)]
    # The gzip program marks only its levels 1 and 9.
    candidates += [Part(content, body, GNU_DEFLATE, (level,)) for level in ((9,) if head[8] == 2 else levels)]
    for part in candidates:
        if content and _agreement(file, offset + header, body, part) == body:
            return [*_plain(header), part, *_plain(_GZIP_TRAILER)]
    return None


def _gzip_header(head: bytes) -> int:
    """Length of a gzip member's header; 0 if it is not one."""
    if len(head) < 18:
        return 0
    flags, at = head[3], 10
    if flags & 0xE0:
        return 0
    if flags & 4:
        at += 2 + int.from_bytes(head[at : at + 2], "little")
    for flag in (8, 16):
        if flags & flag:
            end = head.find(b"\0", at)
            if end < 0:
                return 0
            at = end + 1
    return at + (2 if flags & 2 else 0)


def _inflate(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    stream = zlib.decompressobj(-15)
    for data in _raw(file, offset, length):
        while data:
            yield stream.decompress(data, 4 * _READ)
            data = stream.unconsumed_tail
        if stream.eof and stream.unused_data:
            break
    yield stream.flush()
    if not stream.eof or stream.unused_data:
        raise ValueError("not one single stream")


# zstd


def _zstd_part(file: BinaryIO, offset: int, length: int, head: bytes) -> Part | None:
    try:
        header = zstandard.get_frame_parameters(head)
        content = sum(len(data) for data in _unzstd(file, offset, length))
    except (zstandard.ZstdError, ValueError):
        return None
    if header.dict_id or not content:
        return None
    sized = int(header.content_size != zstandard.CONTENTSIZE_UNKNOWN)
    for level in _ZSTD_LEVELS:
        parameters = zstandard.ZstdCompressionParameters.from_level(level, source_size=content if sized else 0)
        if not sized and 1 << parameters.window_log != header.window_size:
            continue
        part = Part(content, length, ZSTD, (level, int(header.has_checksum), sized, 0))
        same = _agreement(file, offset, length, part)
        if same == length:
            return part
        # Threads cut the content into jobs, of which only the first is made as without them.
        if same > _ZSTD_BLOCK:
            part = Part(content, length, ZSTD, (level, int(header.has_checksum), sized, 1))
            if _agreement(file, offset, length, part) == length:
                return part
    return None


def _unzstd(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    stream = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    read = 0
    for data in _raw(file, offset, length):
        if stream.eof:
            raise ValueError("more than one frame")
        yield stream.decompress(data)
        read += len(data)
    if not stream.eof or stream.unused_data or read != length:
        raise ValueError("not one whole frame")


# Both


def _raw(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    while length:
        file.seek(offset)
        data = file.read(min(length, _READ))
        if not data:
            raise ValueError("the file became shorter")
        yield data
        offset += len(data)
        length -= len(data)


def _agreement(file: BinaryIO, offset: int, length: int, part: Part) -> int:
    """How many bytes from `offset` on are as the part's codec makes them; `length` only if that is all it makes."""
    try:
        stream = encoder(part)
    except UnavailableError:
        return 0
    at = 0

    def same(made: bytes) -> bool:
        nonlocal at
        file.seek(offset + at)
        there = file.read(min(len(made), length - at))
        if there == made:
            at += len(made)
            return True
        at += next((here for here, (a, b) in enumerate(zip(there, made, strict=False)) if a != b), len(there))
        return False

    try:
        for data in read_content(file, offset, part):
            if not same(stream.feed(data)):
                return min(at, length - 1)
        return at if same(stream.finish()) else min(at, length - 1)
    except (ValueError, UnavailableError, zlib.error, zstandard.ZstdError):
        return 0
    finally:
        stream.close()


# OCI


def oci_manifests(path: Path) -> list[str]:
    """The digests of the manifests that an OCI layout, a directory or a tar archive, lists; empty if it is none."""
    try:
        if path.is_dir():
            if not (path / "oci-layout").is_file():
                return []
            text = (path / "index.json").read_bytes()
        else:
            with path.open("rb") as file:
                if not is_tar(file.read(512)):
                    return []
                file.seek(0)
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    archive.getmember("oci-layout")
                    member = archive.extractfile("index.json")
                    text = member.read(1 << 20) if member else b""
        listed = json.loads(text)["manifests"]
        digests = [str(entry["digest"]) for entry in listed]
    except (OSError, KeyError, TypeError, ValueError, tarfile.TarError, RecursionError):
        return []
    return [digest for digest in digests if _OCI_DIGEST.fullmatch(digest)]
