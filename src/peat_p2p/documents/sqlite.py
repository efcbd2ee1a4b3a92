"""Durable rows in one SQLite file.

Owns the file: write-ahead log, full sync, a checksum on each row, one process at a time. Keeps the rules of the `Store`
port. Must not know what rows mean.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from peat_p2p.core.errors import ConflictError, CorruptError, ExhaustedError, PeatError, UnavailableError

_FORM = 1
_APPLICATION = 0x70656174  # "peat"
_PUT = "INSERT INTO rows (name, row) VALUES {} ON CONFLICT (name) DO UPDATE SET row = excluded.row"
# Rows a statement: each statement lets go of the interpreter and has to wait for it again.
_ROWS_PER_PUT = 100
_WAL_BYTES = 8 * 1024 * 1024


class SqliteStore:
    """Rows in the file at `path`, which is made if it is not there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2)
        except sqlite3.Error as error:
            raise self._explained(error) from error
        try:
            self._open()
        except sqlite3.Error as error:
            self._db.close()
            raise self._explained(error) from error
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        db = self._db
        # Exclusive: a second process on the same file is refused at once, and no shared memory file is needed.
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")
        db.execute("PRAGMA cell_size_check=ON")
        db.execute("BEGIN EXCLUSIVE")
        try:
            (form,) = db.execute("PRAGMA user_version").fetchone()
            (application,) = db.execute("PRAGMA application_id").fetchone()
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if not tables and not form:
                db.execute(f"PRAGMA application_id={_APPLICATION}")
                db.execute(f"PRAGMA user_version={_FORM}")
                db.execute("CREATE TABLE rows (name BLOB PRIMARY KEY NOT NULL, row BLOB NOT NULL)")
            elif application != _APPLICATION:
                raise CorruptError(f"{self._path} is not a document database of peat")
            elif form != _FORM:
                raise CorruptError(f"{self._path} has form {form}; this version of peat reads form {_FORM}")
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise

    def load(self) -> Iterator[tuple[bytes, bytes]]:
        """All rows. Raises CorruptError if the file or a row of it is damaged."""
        try:
            for name, row in self._db.execute("SELECT name, row FROM rows"):
                if zlib.crc32(row[4:], zlib.crc32(name)).to_bytes(4, "big") != row[:4]:
                    raise CorruptError(f"{self._path} is damaged: a row does not match its checksum. {_WAY_OUT}")
                yield name, row[4:]
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def commit(self, rows: Mapping[bytes, bytes | None]) -> None:
        """Set and remove rows in one synced transaction."""
        puts = [
            (name, zlib.crc32(row, zlib.crc32(name)).to_bytes(4, "big") + row)
            for name, row in rows.items()
            if row is not None
        ]
        removals = [(name,) for name, row in rows.items() if row is None]
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            try:
                for start in range(0, len(puts), _ROWS_PER_PUT):
                    some = puts[start : start + _ROWS_PER_PUT]
                    db.execute(_PUT.format(",".join(["(?, ?)"] * len(some))), [value for row in some for value in row])
                if removals:
                    db.executemany("DELETE FROM rows WHERE name = ?", removals)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _explained(self, error: sqlite3.Error) -> PeatError:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return CorruptError(f"{self._path} is damaged ({error}). {_WAY_OUT}")
        if name.startswith("SQLITE_FULL"):
            return ExhaustedError(f"no space left to write {self._path}")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return ConflictError(f"{self._path} is in use by another process")
        return UnavailableError(f"{self._path} cannot be used: {error}")


_WAY_OUT = "Move the file away and start again: the documents come back from the other nodes"
