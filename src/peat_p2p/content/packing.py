"""Chunks packed for disk and link.

Owns the choice whether content is stored as it is or as one zstd frame. A frame is made once, by the publisher, and
travels as it is, so all agents have equal bytes whatever their zstd; only unpacking must agree, and its format is
fixed. Must not touch a disk.
"""

from __future__ import annotations

import threading

import zstandard

from peat_p2p.core.errors import CorruptError

# A package is published once and crosses thin links many times, so a publisher may take some seconds for it, and no
# more: level 14 packs 8 MB/s on a core and sends 14 % less than level 3, level 6 70 MB/s and 7 % less; level 3 keeps
# up with a disk.
_LEVELS = ((192 << 20, 14), (1 << 30, 6))
_FAST_LEVEL = 3
_SURE = 12  # from this level on a look with the fast one costs little beside it
# Less gain than this is not worth unpacking, and a chunk as it is can be cloned or linked in place.
_WORTH = 0.95
_local = threading.local()


def level_for(content_bytes: int) -> int:
    """The zstd level for a package with so much content."""
    return next((level for most, level in _LEVELS if content_bytes <= most), _FAST_LEVEL)


def pack(content: bytes | memoryview, level: int = _FAST_LEVEL) -> bytes | None:
    """A zstd frame of `content`, or None if that is not worth while."""
    # What is dense already takes longest at high levels, and for nothing.
    if level >= _SURE and len(_compressor(_FAST_LEVEL).compress(content)) >= _WORTH * len(content):
        return None
    frame: bytes = _compressor(level).compress(content)
    return frame if len(frame) < _WORTH * len(content) else None


def _compressor(level: int) -> zstandard.ZstdCompressor:
    compressor: zstandard.ZstdCompressor | None = getattr(_local, f"level{level}", None)
    if compressor is None:
        compressor = zstandard.ZstdCompressor(level=level)
        setattr(_local, f"level{level}", compressor)
    return compressor


def unpack(frame: bytes, length: int) -> bytes:
    """The content, of `length` bytes, in a frame that was verified. Raises CorruptError if the publisher erred."""
    decompressor = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        if zstandard.frame_content_size(frame) != length:
            raise CorruptError("a packed chunk does not hold as much as the package index says")
        content: bytes = decompressor.decompress(frame, max_output_size=length)
    except zstandard.ZstdError as error:
        raise CorruptError(f"a packed chunk cannot be unpacked: {error}") from error
    return content
