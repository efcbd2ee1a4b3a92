"""Where each file's content lies in the chunks.

Owns the walk along the content stream. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from peat_p2p.content.entries import FileEntry, Kind
from peat_p2p.content.index import ChunkRef, Index


@dataclass(frozen=True, slots=True)
class Span:
    """`length` bytes of the content of a chunk from `offset` on."""

    chunk: ChunkRef
    offset: int
    length: int

    @property
    def is_whole(self) -> bool:
        """Whether this is the content from end to end of a chunk that is stored as it is."""
        return self.offset == 0 and self.length == self.chunk.size and not self.chunk.length


def spans(index: Index) -> Iterator[tuple[FileEntry, list[Span]]]:
    """Every regular file in order with the spans that make up its content."""
    chunks = iter(index.chunks)
    chunk: ChunkRef | None = None
    used = 0
    for entry in index.files:
        if entry.kind is not Kind.FILE:
            continue
        parts: list[Span] = []
        left = entry.content_bytes
        while left:
            if chunk is None or used == chunk.content_size:
                chunk, used = next(chunks), 0
            length = min(left, chunk.content_size - used)
            parts.append(Span(chunk, used, length))
            used += length
            left -= length
        yield entry, parts
