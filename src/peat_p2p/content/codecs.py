"""Compressors whose output can be made again, bit for bit.

Owns the codecs a recipe may name and what their parameters mean: `deflate` (level, memory level) is raw DEFLATE as
zlib makes it; `gnu-deflate` (level) as the gzip program makes it; `zstd` (level, checksum, content size, threaded) one
frame as libzstd makes it. A compressor's output may differ between machines, so whoever uses one compares the digest of
what comes out. Must not know about files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import zlib
from typing import Protocol

import zstandard

from peat_p2p.content.entries import Part
from peat_p2p.core.errors import UnavailableError

DEFLATE = "deflate"
GNU_DEFLATE = "gnu-deflate"
ZSTD = "zstd"
_GZIP_HEADER = 10
_GZIP_TRAILER = 8
_PARAMETERS = {DEFLATE: 2, GNU_DEFLATE: 1, ZSTD: 4}


class Encoder(Protocol):
    """A stream of content in, a stream of compressed bytes out."""

    def feed(self, data: bytes | memoryview) -> bytes:
        """Take content; the output that is ready."""
        ...

    def finish(self) -> bytes:
        """End the content; the rest of the output."""
        ...

    def close(self) -> None:
        """Give up what the encoder holds; finished or not."""
        ...


def encoder(part: Part) -> Encoder:
    """The compressor for a part. Raises UnavailableError if this machine has none."""
    numbers = part.parameters
    if len(numbers) != _PARAMETERS.get(part.codec):
        raise UnavailableError(f"this program has no codec {part.codec!r} {numbers}; a newer one may")
    try:
        if part.codec == DEFLATE:
            return _Deflate(*numbers)
        if part.codec == ZSTD:
            return _Zstd(part.content_bytes, *numbers)
    except (ValueError, zstandard.ZstdError, OverflowError) as error:
        raise UnavailableError(f"codec {part.codec!r} does not take the parameters {numbers}") from error
    return _GnuDeflate(*numbers)


class _Deflate:
    def __init__(self, level: int, memory: int) -> None:
        self._stream = zlib.compressobj(level, zlib.DEFLATED, -15, memory)

    def feed(self, data: bytes | memoryview) -> bytes:
        return self._stream.compress(data)

    def finish(self) -> bytes:
        return self._stream.flush()

    def close(self) -> None:
        pass


class _Zstd:
    def __init__(self, content_bytes: int, level: int, checksum: int, content_size: int, threaded: int) -> None:
        if not 1 <= level <= 19:
            raise ValueError(level)
        compressor = zstandard.ZstdCompressor(
            level=level,
            write_checksum=bool(checksum),
            write_content_size=bool(content_size),
            threads=1 if threaded else 0,
        )
        self._stream = compressor.compressobj(size=content_bytes if content_size else -1)

    def feed(self, data: bytes | memoryview) -> bytes:
        output: bytes = self._stream.compress(data)
        return output

    def finish(self) -> bytes:
        output: bytes = self._stream.flush()
        return output

    def close(self) -> None:
        pass


class _GnuDeflate:
    """The gzip program without its header and trailer, which a recipe keeps as they are."""

    def __init__(self, level: int) -> None:
        program = shutil.which("gzip")
        if program is None:
            raise UnavailableError("the program gzip is needed to make a file of this package; install it")
        if not 1 <= level <= 9:
            raise UnavailableError(f"gzip has no level {level}")
        self._process = subprocess.Popen(  # noqa: S603
            [program, f"-nc{level}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._output: list[bytes] = []
        self._guard = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="gzip", daemon=True)
        self._reader.start()
        self._skip = _GZIP_HEADER
        # The last bytes are held back until it is known that they are not the trailer.
        self._tail = b""

    def _read(self) -> None:
        assert self._process.stdout is not None
        while data := os.read(self._process.stdout.fileno(), 1 << 18):
            with self._guard:
                self._output.append(data)

    def _take(self) -> bytes:
        with self._guard:
            data, self._output = b"".join(self._output), []
        if self._skip:
            skipped = min(self._skip, len(data))
            data, self._skip = data[skipped:], self._skip - skipped
        data = self._tail + data
        self._tail = data[-_GZIP_TRAILER:]
        return data[:-_GZIP_TRAILER]

    def feed(self, data: bytes | memoryview) -> bytes:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
        except BrokenPipeError as error:
            raise UnavailableError("the program gzip ended early") from error
        return self._take()

    def finish(self) -> bytes:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join()
        if self._process.wait() != 0:
            raise UnavailableError(f"the program gzip failed with status {self._process.returncode}")
        return self._take()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
