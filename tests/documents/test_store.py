"""What every store must do, whatever it is made of."""

from __future__ import annotations

import pytest

from peat_p2p.core.errors import ConfigError, CorruptError, ExhaustedError
from peat_p2p.documents.sealed import SealedStore
from peat_p2p.documents.sqlite import SqliteStore
from peat_p2p.documents.store import MemoryStore

KEY = bytes(range(32))


@pytest.fixture(params=["memory", "sqlite", "sealed"])
def reopen(request, tmp_path):
    """Gives the store anew, as after a restart; the one before is closed."""
    kept = MemoryStore()
    opened = []

    def open_again():
        for store in opened:
            store.close()
        opened.clear()
        if request.param == "memory":
            opened.append(kept)
        elif request.param == "sqlite":
            opened.append(SqliteStore(tmp_path / "rows.db"))
        else:
            opened.append(SealedStore(SqliteStore(tmp_path / "rows.db"), KEY, "rows.db"))
        return opened[0]

    yield open_again
    for store in opened:
        store.close()


def test_new_store_is_empty(reopen):
    assert dict(reopen().load()) == {}
    assert dict(reopen().load()) == {}


def test_rows_survive_and_change(reopen):
    store = reopen()
    assert dict(store.load()) == {}
    store.commit({b"a": b"1", b"b": b"", b"c\0d": bytes(range(256))})
    store.commit({b"a": b"2", b"b": None, b"not there": None})
    expected = {b"a": b"2", b"c\0d": bytes(range(256))}
    assert dict(store.load()) == expected
    store = reopen()
    assert dict(store.load()) == expected
    store.commit({b"a": None})
    assert dict(reopen().load()) == {b"c\0d": bytes(range(256))}


def test_an_empty_commit_is_fine(reopen):
    reopen().commit({})


def test_many_rows_at_once(reopen):
    rows = {index.to_bytes(4, "big"): bytes(index % 300) for index in range(5000)}
    reopen().commit(rows)
    assert dict(reopen().load()) == rows


def test_a_commit_that_fails_changes_nothing(tmp_path):
    store = SqliteStore(tmp_path / "rows.db")
    store.commit({b"a": b"1"})

    with pytest.raises(TypeError):
        store.commit({b"a": b"2", b"b": 5})
    assert dict(store.load()) == {b"a": b"1"}
    store.close()


def test_a_full_disk_is_told_and_changes_nothing(tmp_path):
    store = SqliteStore(tmp_path / "rows.db")
    store.commit({b"a": b"1"})
    store._db.execute("PRAGMA max_page_count=8")
    with pytest.raises(ExhaustedError, match=r"no space left.*rows\.db"):
        store.commit({b"a": b"2", b"b": bytes(100_000)})
    assert dict(store.load()) == {b"a": b"1"}
    store.commit({b"a": b"3"})
    assert dict(store.load()) == {b"a": b"3"}
    store.close()


def test_the_file_tells_nothing_without_the_key(tmp_path):
    path = tmp_path / "rows.db"
    store = SealedStore(SqliteStore(path), KEY, "rows.db")
    assert dict(store.load()) == {}
    store.commit({b"secret name": b"secret row"})
    store.close()
    assert all(b"secret" not in file.read_bytes() for file in tmp_path.iterdir())
    for key, error in ((bytes(32), ConfigError), (None, CorruptError)):
        inner = SqliteStore(path)
        with pytest.raises(error, match=r"rows\.db|read"):
            if key is None:
                from peat_p2p.documents.loading import load

                load(inner, None)
            else:
                dict(SealedStore(inner, key, "rows.db").load())
        inner.close()


def test_a_wrong_key_is_told_even_when_nothing_was_stored(tmp_path):
    store = SealedStore(SqliteStore(tmp_path / "rows.db"), KEY, "rows.db")
    assert dict(store.load()) == {}
    store.close()
    store = SealedStore(SqliteStore(tmp_path / "rows.db"), bytes(32), "rows.db")
    with pytest.raises(ConfigError, match=r"rows\.db"):
        dict(store.load())
    store.close()


def test_a_plain_store_does_not_open_with_a_key(tmp_path):
    store = SqliteStore(tmp_path / "rows.db")
    store.commit({b"a": b"1" * 100})
    with pytest.raises(CorruptError, match="not encrypted"):
        dict(SealedStore(store, KEY, "rows.db").load())
    store.close()
