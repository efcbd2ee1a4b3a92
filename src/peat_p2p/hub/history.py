"""The hub's own memory, in one SQLite file.

Owns the tables: the last state of each document the hub has followed, gone or not, and a bounded log of what changed.
Blocking; callers run it in a thread, one at a time. Must not know where entries come from.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from peat_p2p.core.errors import ConfigError, CorruptError, ExhaustedError, UnavailableError
from peat_p2p.hub.observer import Entry

SCHEMA = 1
_TABLES = """
CREATE TABLE documents (
    collection TEXT NOT NULL, doc_id TEXT NOT NULL, fields TEXT NOT NULL,
    first_seen REAL NOT NULL, changed_at REAL NOT NULL, gone_at REAL,
    PRIMARY KEY (collection, doc_id)
) WITHOUT ROWID;
CREATE INDEX documents_gone ON documents (gone_at) WHERE gone_at IS NOT NULL;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL,
    collection TEXT NOT NULL, doc_id TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE INDEX events_document ON events (collection, doc_id, id);
"""
_REMEMBER = """
INSERT INTO documents (collection, doc_id, fields, first_seen, changed_at, gone_at) VALUES (?1, ?2, ?3, ?4, ?4, NULL)
ON CONFLICT DO UPDATE SET fields = ?3, changed_at = ?4, gone_at = NULL
"""


@dataclass(frozen=True, slots=True)
class PastEvent:
    """An event of the log. `id` grows with time."""

    id: int
    at: float
    kind: str
    collection: str
    doc_id: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PastDocument:
    """A document as it was last seen; `gone_at` is None while it is there."""

    doc_id: str
    fields: dict[str, Any]
    first_seen: float
    changed_at: float
    gone_at: float | None


class History:
    """The open file. Use as a context manager."""

    def __init__(self, path: Path, *, limit: int) -> None:
        """Open the history, which keeps `limit` events and as many documents that are gone. Raises PeatError."""
        self._path = path
        self._limit = limit
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"the hub's history {path} cannot be opened: {error}") from error
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise CorruptError(f"the hub's history {path} is damaged ({error}); move it away to begin anew") from error
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._db.close()

    def record(self, entries: Sequence[Entry]) -> None:
        """Take in entries, all or none. Raises ExhaustedError when the disk is full."""
        try:
            with self._lock:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    self._write(entries)
                    self._db.execute("COMMIT")
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise ExhaustedError(f"the disk of {self._path} is full") from error
            raise UnavailableError(f"the hub's history {self._path} cannot be written: {error}") from error

    def known(self) -> list[tuple[str, str, dict[str, Any]]]:
        """The documents that were there when the history was last written: collection, id, fields."""
        rows = self._rows("SELECT collection, doc_id, fields FROM documents WHERE gone_at IS NULL")
        return [(collection, doc_id, json.loads(fields)) for collection, doc_id, fields in rows]

    def documents(self, collection: str, *, gone: bool, limit: int) -> list[PastDocument]:
        """Documents of a collection, last changed first: those that are there, or those that are gone."""
        there = "IS NOT NULL" if gone else "IS NULL"
        rows = self._rows(
            "SELECT doc_id, fields, first_seen, changed_at, gone_at FROM documents"  # noqa: S608
            f" WHERE collection = ? AND gone_at {there} ORDER BY changed_at DESC, doc_id LIMIT ?",
            collection,
            limit,
        )
        return [PastDocument(doc_id, json.loads(fields), *rest) for doc_id, fields, *rest in rows]

    def events(
        self, *, limit: int, before: int | None = None, collection: str | None = None, doc_id: str | None = None
    ) -> list[PastEvent]:
        """Events, newest first; with `before`, those with a smaller id."""
        rows = self._rows(
            "SELECT id, at, kind, collection, doc_id, detail FROM events WHERE id < ?1"
            " AND (?2 IS NULL OR collection = ?2) AND (?3 IS NULL OR doc_id = ?3) ORDER BY id DESC LIMIT ?4",
            before if before is not None else 2**63 - 1,
            collection,
            doc_id,
            limit,
        )
        return [PastEvent(n, at, kind, c, d, json.loads(detail)) for n, at, kind, c, d, detail in rows]

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        # What is lost with the machine's power is seen again in the sidecar's documents.
        self._db.execute("PRAGMA synchronous = NORMAL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;")
        elif version != SCHEMA:
            raise ConfigError(
                f"{self._path} is of schema {version}, this program reads {SCHEMA}: use the newer program"
            )

    def _write(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.remember is None:
                self._db.execute(
                    "UPDATE documents SET gone_at = ?, changed_at = ? WHERE collection = ? AND doc_id = ?",
                    (entry.at, entry.at, entry.collection, entry.doc_id),
                )
            else:
                fields = json.dumps(entry.remember)
                self._db.execute(_REMEMBER, (entry.collection, entry.doc_id, fields, entry.at))
        self._db.executemany(
            "INSERT INTO events (at, kind, collection, doc_id, detail) VALUES (?, ?, ?, ?, ?)",
            [(e.at, e.kind, e.collection, e.doc_id, json.dumps(e.detail)) for e in entries],
        )
        self._db.execute("DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?", (self._limit,))
        self._db.execute(
            "DELETE FROM documents WHERE gone_at IS NOT NULL AND gone_at <"
            " (SELECT gone_at FROM documents WHERE gone_at IS NOT NULL ORDER BY gone_at DESC LIMIT 1 OFFSET ?)",
            (self._limit - 1,),
        )

    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise UnavailableError(f"the hub's history {self._path} cannot be read: {error}") from error
