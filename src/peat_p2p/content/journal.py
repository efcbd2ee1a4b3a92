"""The store's book-keeping in SQLite: which chunks are verified and on disk, and which packages are here.

Owns the schema and every statement. Rule: a chunk is entered only after its file is verified and synced, so what the
journal says is true after any crash; a file it does not know is nothing. Must not touch chunk files.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peat_p2p.content.disk import exhausted
from peat_p2p.core.errors import CorruptError

_VERSION = 1
_SCHEMA = """
CREATE TABLE chunks (
  digest BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, root BLOB, content BLOB,
  checked REAL NOT NULL
) WITHOUT ROWID, STRICT;
CREATE INDEX chunks_by_content ON chunks (content) WHERE content IS NOT NULL;
CREATE TABLE packages (
  id INTEGER PRIMARY KEY, manifest_digest TEXT NOT NULL UNIQUE, name TEXT NOT NULL, version TEXT NOT NULL,
  arch TEXT NOT NULL, payload BLOB NOT NULL, envelope TEXT NOT NULL, info BLOB NOT NULL, package_index BLOB NOT NULL,
  pinned INTEGER NOT NULL, added REAL NOT NULL, used REAL NOT NULL
) STRICT;
CREATE INDEX packages_by_name ON packages (name, version, arch);
CREATE TABLE refs (digest BLOB NOT NULL, package INTEGER NOT NULL, PRIMARY KEY (digest, package)) WITHOUT ROWID, STRICT;
CREATE INDEX refs_by_package ON refs (package);
"""
_CHUNK = "digest, size, mtime_ns, root, content, checked"
_SLICE = 500


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """A verified chunk: its file had this size and modification time when it was checked (Unix seconds).

    `root` is its v2 pieces root and `content` the BLAKE3 of what is packed in it, where they are known.
    """

    digest: bytes
    size: int
    mtime_ns: int
    root: bytes | None
    content: bytes | None
    checked: float


@dataclass(frozen=True, slots=True)
class PackageRow:
    """A package without its bulky parts."""

    manifest_digest: str
    payload: bytes
    pinned: bool
    added: float
    used: float


@dataclass(frozen=True, slots=True)
class PackageParts:
    """The bulky parts of a package, as they were put in."""

    payload: bytes
    envelope: str
    info: bytes
    index: bytes


class Journal:
    """The database file of one store. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            with self._transaction() as db:
                self._migrate(db)
        except sqlite3.DatabaseError as error:
            raise self._broken(error) from error

    def _migrate(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version={_VERSION}")
        elif version != _VERSION:
            raise CorruptError(f"{self._path} has form {version}; this program knows form {_VERSION}: use a newer one")

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.DatabaseError as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise self._broken(error) from error

    def _query(self, statement: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        with self._lock:
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.DatabaseError as error:
                raise self._broken(error) from error

    def _broken(self, error: sqlite3.DatabaseError) -> Exception:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return exhausted(self._path.parent, 1 << 20, "the store's journal")
        return CorruptError(
            f"{self._path}: {error}. Move the file away and start again: chunks on disk are found and checked anew, "
            "packages must be pulled or published again"
        )

    # Chunks

    def chunk(self, digest: bytes) -> ChunkRow | None:
        """The row of one chunk."""
        rows = self.chunks([digest])
        return rows.get(digest)

    def chunks(self, digests: Iterable[bytes]) -> dict[bytes, ChunkRow]:
        """The rows of those of `digests` that are known."""
        found: dict[bytes, ChunkRow] = {}
        wanted = list(digests)
        for start in range(0, len(wanted), _SLICE):
            some = wanted[start : start + _SLICE]
            marks = ",".join("?" * len(some))
            for row in self._query(
                f"SELECT {_CHUNK} FROM chunks WHERE digest IN ({marks})",  # noqa: S608
                some,
            ):
                chunk = ChunkRow(*row)  # type: ignore[arg-type]
                found[chunk.digest] = chunk
        return found

    def packed(self, content: bytes) -> ChunkRow | None:
        """The chunk in which content of this BLAKE3 is packed."""
        rows = self._query(f"SELECT {_CHUNK} FROM chunks WHERE content=?", (content,))  # noqa: S608
        return ChunkRow(*rows[0]) if rows else None  # type: ignore[arg-type]

    def add_chunks(self, rows: Collection[ChunkRow]) -> None:
        """Enter verified chunks durably; a root already known is kept."""
        with self._transaction() as db:
            db.executemany(
                "INSERT INTO chunks VALUES (?,?,?,?,?,?) ON CONFLICT (digest) DO UPDATE SET size=excluded.size, "
                "mtime_ns=excluded.mtime_ns, root=coalesce(excluded.root, root), "
                "content=coalesce(excluded.content, content), checked=excluded.checked",
                [(row.digest, row.size, row.mtime_ns, row.root, row.content, row.checked) for row in rows],
            )

    def drop_chunks(self, digests: Collection[bytes]) -> None:
        """Forget chunks."""
        with self._transaction() as db:
            db.executemany("DELETE FROM chunks WHERE digest=?", [(digest,) for digest in digests])

    def unreferenced(self) -> list[ChunkRow]:
        """Chunks that no package has."""
        return [
            ChunkRow(*row)  # type: ignore[arg-type]
            for row in self._query(
                f"SELECT {_CHUNK} FROM chunks "  # noqa: S608
                "WHERE NOT EXISTS (SELECT 1 FROM refs WHERE refs.digest = chunks.digest)"
            )
        ]

    def oldest_checked(self, count: int) -> list[ChunkRow]:
        """The `count` chunks whose content was looked at the longest time ago."""
        return [
            ChunkRow(*row)  # type: ignore[arg-type]
            for row in self._query(
                f"SELECT {_CHUNK} FROM chunks ORDER BY checked, digest LIMIT ?",  # noqa: S608
                (count,),
            )
        ]

    def referenced(self, digest: bytes) -> list[str]:
        """The manifest digests of the packages that have this chunk."""
        return [
            str(row[0])
            for row in self._query(
                "SELECT manifest_digest FROM refs JOIN packages ON packages.id = refs.package WHERE digest=?", (digest,)
            )
        ]

    def referenced_of(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those of `digests` that some package has."""
        found: set[bytes] = set()
        wanted = list(digests)
        for start in range(0, len(wanted), _SLICE):
            some = wanted[start : start + _SLICE]
            marks = ",".join("?" * len(some))
            rows = self._query(f"SELECT DISTINCT digest FROM refs WHERE digest IN ({marks})", some)  # noqa: S608
            found.update(bytes(row[0]) for row in rows)  # type: ignore[call-overload]
        return found

    def totals(self) -> tuple[int, int, int, int]:
        """Count and bytes of all chunks, then count and bytes of those that no package has."""
        count, size = self._query("SELECT count(*), coalesce(sum(size), 0) FROM chunks")[0]
        loose_count, loose_size = self._query(
            "SELECT count(*), coalesce(sum(size), 0) FROM chunks "
            "WHERE NOT EXISTS (SELECT 1 FROM refs WHERE refs.digest = chunks.digest)"
        )[0]
        return count, size, loose_count, loose_size  # type: ignore[return-value]

    # Packages

    def add_package(
        self, row: PackageRow, reference: tuple[str, str, str], parts: PackageParts, digests: Iterable[bytes]
    ) -> None:
        """Enter a package with (name, version, arch) and its chunks durably. One that is here already is kept."""
        with self._transaction() as db:
            cursor = db.execute(
                "INSERT INTO packages (manifest_digest, name, version, arch, payload, envelope, info, package_index, "
                "pinned, added, used) VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (manifest_digest) DO NOTHING",
                (
                    row.manifest_digest,
                    *reference,
                    row.payload,
                    parts.envelope,
                    parts.info,
                    parts.index,
                    int(row.pinned),
                    row.added,
                    row.used,
                ),
            )
            if cursor.rowcount:
                package = cursor.lastrowid
                db.executemany("INSERT INTO refs VALUES (?,?)", [(digest, package) for digest in digests])

    def parts(self, manifest_digest: str) -> PackageParts | None:
        """The bulky parts of a package."""
        rows = self._query(
            "SELECT payload, envelope, info, package_index FROM packages WHERE manifest_digest=?", (manifest_digest,)
        )
        return PackageParts(*rows[0]) if rows else None  # type: ignore[arg-type]

    def packages(self, name: str | None = None) -> list[PackageRow]:
        """All packages, or those of one name, newest first."""
        where, values = ("WHERE name=?", (name,)) if name is not None else ("", ())
        return [
            PackageRow(str(row[0]), row[1], bool(row[2]), row[3], row[4])  # type: ignore[arg-type]
            for row in self._query(
                f"SELECT manifest_digest, payload, pinned, added, used FROM packages {where} "  # noqa: S608
                "ORDER BY added DESC, id DESC",
                values,
            )
        ]

    def digests(self, manifest_digest: str) -> list[bytes]:
        """The chunks of a package."""
        return [
            bytes(row[0])  # type: ignore[call-overload]
            for row in self._query(
                "SELECT digest FROM refs JOIN packages ON packages.id = refs.package WHERE manifest_digest=?",
                (manifest_digest,),
            )
        ]

    def remove_package(self, manifest_digest: str) -> bool:
        """Forget a package durably; whether it was here."""
        with self._transaction() as db:
            row = db.execute("SELECT id FROM packages WHERE manifest_digest=?", (manifest_digest,)).fetchone()
            if row is None:
                return False
            db.execute("DELETE FROM refs WHERE package=?", row)
            db.execute("DELETE FROM packages WHERE id=?", row)
            return True

    def set_pinned(self, manifest_digest: str, pinned: bool) -> bool:
        """Set or clear the pin of a package; whether it is here."""
        with self._transaction() as db:
            values = (int(pinned), manifest_digest)
            return db.execute("UPDATE packages SET pinned=? WHERE manifest_digest=?", values).rowcount > 0

    def touch(self, manifest_digest: str, at: float) -> None:
        """Note that a package was used."""
        with self._transaction() as db:
            db.execute("UPDATE packages SET used=max(used, ?) WHERE manifest_digest=?", (at, manifest_digest))
