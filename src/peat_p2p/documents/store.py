"""The port to durable rows, and its form in memory.

Owns `Store`: a map of rows whose changes are committed together. Keeps the rule that when `commit` returns, the changes
survive a crash, all of them; and that a failed one changed nothing. Must not know what rows mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol


class Store(Protocol):
    """Durable rows by name. One thread at a time."""

    def load(self) -> Iterator[tuple[bytes, bytes]]:
        """All rows, in no order. Raises CorruptError."""
        ...

    def commit(self, rows: Mapping[bytes, bytes | None]) -> None:
        """Set rows, or remove those given as None, together and durably. Raises ExhaustedError, CorruptError."""
        ...

    def close(self) -> None:
        """Let go of the file. Nothing is lost."""
        ...


class MemoryStore:
    """Rows that live as long as the process; for tests, simulations and nodes that keep nothing."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def load(self) -> Iterator[tuple[bytes, bytes]]:
        """All rows."""
        yield from list(self.rows.items())

    def commit(self, rows: Mapping[bytes, bytes | None]) -> None:
        """Set and remove rows."""
        for name, row in rows.items():
            if row is None:
                self.rows.pop(name, None)
            else:
                self.rows[name] = row

    def close(self) -> None:
        """Do nothing."""
