import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.core.errors import ConfigError, CorruptError, UnavailableError
from peat_p2p.hub.history import History
from peat_p2p.hub.observer import Entry, Observer


def test_a_heartbeat_that_says_nothing_new_leaves_no_trace() -> None:
    observer = Observer()
    (first,) = observer.saw("platforms", "a", {"last_seen": 1, "site": "north", "version": ""}, 10.0)
    assert (first.kind, first.detail) == ("appeared", {"site": "north"})
    assert observer.saw("platforms", "a", {"last_seen": 2, "site": "north", "version": ""}, 11.0) == []
    (changed,) = observer.saw("platforms", "a", {"last_seen": 3, "site": "south", "new": 1}, 12.0)
    assert changed.kind == "changed"
    assert changed.detail == {"site": ["north", "south"], "new": [None, 1], "version": ["", None]}
    (gone,) = observer.saw("platforms", "a", None, 13.0)
    assert (gone.kind, gone.remember) == ("gone", None)
    assert observer.saw("platforms", "a", None, 14.0) == []
    assert observer.saw("packages", "a:x", {"n": 1}, 15.0) == [], "held packages are not the history's business"


def test_a_snapshot_tells_what_went_away_meanwhile() -> None:
    observer = Observer([("commands", "old", {"n": 1}), ("commands", "kept", {"n": 1})])
    assert observer.saw("commands", "kept", {"n": 1}, 1.0) == []
    assert [(e.kind, e.doc_id) for e in observer.snapshot_complete(2.0)] == [("gone", "old")]
    assert observer.snapshot_complete(3.0) == []
    observer.snapshot_begins()
    assert [e.doc_id for e in observer.snapshot_complete(4.0)] == ["kept"]


def entry(n: int, doc_id: str = "a", fields: dict[str, Any] | None = None, kind: str = "changed") -> Entry:
    return Entry(float(n), kind, "platforms", doc_id, {"n": [n - 1, n]}, None if kind == "gone" else fields or {"n": n})


def test_the_history_is_there_after_a_restart(tmp_path: Path) -> None:
    with History(tmp_path / "hub" / "h.sqlite", limit=100) as history:
        history.record([entry(1, "a"), entry(2, "b"), entry(3, "a"), entry(4, "b", kind="gone")])
    with History(tmp_path / "hub" / "h.sqlite", limit=100) as history:
        assert history.known() == [("platforms", "a", {"n": 3})]
        (there,) = history.documents("platforms", gone=False, limit=9)
        assert (there.doc_id, there.first_seen, there.changed_at, there.gone_at) == ("a", 1.0, 3.0, None)
        (gone,) = history.documents("platforms", gone=True, limit=9)
        assert (gone.doc_id, gone.fields, gone.gone_at) == ("b", {"n": 2}, 4.0)
        assert [e.at for e in history.events(limit=9)] == [4.0, 3.0, 2.0, 1.0]
        newest = history.events(limit=1)[0]
        assert [e.at for e in history.events(limit=2, before=newest.id)] == [3.0, 2.0]
        assert [e.at for e in history.events(limit=9, collection="platforms", doc_id="a")] == [3.0, 1.0]
        assert history.events(limit=9, collection="commands") == []
        history.record([entry(5, "b")])
        assert history.documents("platforms", gone=True, limit=9) == [], "it came back"


def test_the_history_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    with History(tmp_path / "h.sqlite", limit=100) as history:
        for n in range(0, 500, 50):
            history.record([entry(n + i, f"d{n + i}", kind="gone" if i % 2 else "changed") for i in range(50)])
            history.record([entry(n + i, f"d{n + i}", kind="gone") for i in range(50)])
        events = history.events(limit=10_000)
        assert len(events) == 100 and events[0].at == 499.0
        gone = history.documents("platforms", gone=True, limit=10_000)
        assert len(gone) == 100 and gone[0].doc_id == "d498"


def test_all_of_a_batch_or_none(tmp_path: Path) -> None:
    with History(tmp_path / "h.sqlite", limit=100) as history:
        bad = Entry(2.0, "changed", "platforms", "b", {"x": object()}, {"x": 1})
        with pytest.raises(TypeError):
            history.record([entry(1), bad])
        assert history.events(limit=9) == [] and history.known() == []
        history.record([entry(1)])
        assert len(history.known()) == 1


def test_damage_and_strange_versions_are_said(tmp_path: Path) -> None:
    (tmp_path / "bad.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(CorruptError, match=r"bad\.sqlite is damaged"):
        History(tmp_path / "bad.sqlite", limit=100)
    with sqlite3.connect(tmp_path / "new.sqlite") as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(ConfigError, match="schema 9"):
        History(tmp_path / "new.sqlite", limit=100)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be opened"):
        History(tmp_path / "file" / "h.sqlite", limit=100)


def test_a_closed_history_says_so(tmp_path: Path) -> None:
    with History(tmp_path / "h.sqlite", limit=100) as history:
        pass
    with pytest.raises(UnavailableError):
        history.known()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.none() | st.dictionaries(st.sampled_from(["x", "last_seen", "envelope"]), st.integers(0, 2)),
    ),
    max_size=20,
)


@given(STEPS, STEPS)
def test_what_is_remembered_is_what_was_last_seen(tmp_path_factory: Any, first: Any, second: Any) -> None:
    """Over a restart in between, whatever was lost or changed meanwhile."""
    path = tmp_path_factory.mktemp("h") / "h.sqlite"
    for steps in (first, second):
        final: dict[str, Any] = {}
        with History(path, limit=1000) as history:
            observer = Observer(history.known())
            for doc_id, document in steps:
                history.record(observer.saw("commands", doc_id, document, 1.0))
                final[doc_id] = document
            history.record(observer.snapshot_complete(2.0))
            remembered = {doc_id: fields for _, doc_id, fields in history.known()}
        assert remembered == {
            d: {k: v for k, v in doc.items() if k != "last_seen"} for d, doc in final.items() if doc is not None
        }
