"""Durable rows that only a key makes readable.

Owns the wrapping of any store: names hidden, rows sealed (AES-256-GCM), a row of its own that tells a wrong key at
once. Keeps the rules of the `Store` port, and refuses a store that was begun without encryption. Must not know what
rows mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from peat_p2p.core.errors import ConfigError, CorruptError
from peat_p2p.documents.store import Store
from peat_p2p.trust.atrest import RowCipher, WrongKeyError

_PROOF = b"~key"


class SealedStore:
    """A store whose rows lie encrypted in `inner`, which is at `where`."""

    def __init__(self, inner: Store, key: bytes, where: str) -> None:
        self._inner = inner
        self._cipher = RowCipher(key)
        self._where = where

    def load(self) -> Iterator[tuple[bytes, bytes]]:
        """All rows, opened. Raises ConfigError for a wrong key, CorruptError for a store that is not encrypted."""
        empty = True
        for hidden, stored in self._inner.load():
            empty = False
            try:
                name, row = self._cipher.open(hidden, stored)
            except WrongKeyError as error:
                raise ConfigError(f"{self._where}: {error}") from error
            except CorruptError as error:
                raise CorruptError(
                    f"{self._where} is not encrypted, or is damaged: open it without a storage key, or move it away"
                ) from error
            if name != _PROOF:
                yield name, row
        if empty:
            self.commit({_PROOF: b""})

    def commit(self, rows: Mapping[bytes, bytes | None]) -> None:
        """Set and remove rows."""
        hide, seal = self._cipher.hide, self._cipher.seal
        self._inner.commit({hide(name): None if row is None else seal(name, row) for name, row in rows.items()})

    def close(self) -> None:
        """Let go of the inner store."""
        self._inner.close()
