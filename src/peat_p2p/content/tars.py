"""Segments inside a tar archive.

Owns telling the cutter where large members start and end, so that a member gives the same chunks in any archive, and
as a file in a directory. Only a hint: content that is no tar, or a damaged one, is passed on as it is.
"""

from __future__ import annotations

import tarfile

from peat_p2p.content.chunking import StreamCutter

_BLOCK = 512
# Members of these types are followed by data of their size; others are links, folders and devices.
_WITH_DATA = frozenset({b"0", b"\0", b"7", b"S", b"L", b"K", b"x", b"X", b"g"})


class TarSegments:
    """Passes a stream on to a cutter, with boundaries around members of at least `average` bytes."""

    def __init__(self, cut: StreamCutter, average: int) -> None:
        self._cut = cut
        self._average = average
        self.start()

    def start(self, *, plain: bool = False) -> None:
        """Another stream follows; a plain one is passed on as it is."""
        self._header = b""
        self._data = 0
        self._padding = 0
        self._large = False
        self._passing = plain

    def boundary(self) -> None:
        """No chunk spans this point."""
        self._cut.boundary()

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        while view:
            if self._passing:
                self._cut.feed(view)
                return
            if self._data:
                view = self._pass_on(view)
            elif self._padding:
                count = min(self._padding, len(view))
                self._padding -= count
                self._cut.feed(view[:count])
                view = view[count:]
            else:
                count = _BLOCK - len(self._header)
                self._header += view[:count]
                self._cut.feed(view[:count])
                view = view[count:]
                if len(self._header) == _BLOCK:
                    self._start_member()

    def _pass_on(self, view: memoryview) -> memoryview:
        count = min(self._data, len(view))
        self._data -= count
        self._cut.feed(view[:count])
        if not self._data and self._large:
            self._cut.boundary()
        return view[count:]

    def _start_member(self) -> None:
        header, self._header = self._header, b""
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            self._passing = True  # the end of the archive, or no archive
            return
        self._data = member.size if member.type in _WITH_DATA else 0
        self._padding = -self._data % _BLOCK
        self._large = self._data >= self._average
        if self._large:
            self._cut.boundary()
