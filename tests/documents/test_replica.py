"""A replica's face to the API: what is put is what is got, durable, merged, and told to readers."""

from __future__ import annotations

import asyncio
import json

import pytest

from peat_p2p.core.errors import ConflictError, CorruptError, ExhaustedError, InvalidInputError, TooLargeError
from peat_p2p.documents.types import Change, Lagged, Limits, SnapshotComplete, Verdict


async def test_put_merges_by_field_and_keeps_numbers_exactly(make):
    replica = await make("alpha")
    await replica.put("things", "one", '{"big": 9223372036854775807, "exact": 1.10, "deep": {"n": 1E400}}')
    document = await replica.put("things", "one", '{"other": [1, 2]}')
    assert document.json == '{"big":9223372036854775807,"deep":{"n": 1E400},"exact":1.10,"other":[1, 2]}'
    assert replica.get("things", "one") == document
    assert replica.ids("things") == ["one"]
    assert replica.get("things", "two") is None


async def test_a_put_that_changes_nothing_is_no_change(make):
    replica = await make("alpha")
    first = await replica.put("things", "one", '{"a":1}')
    head = replica.head(1)
    assert await replica.put("things", "one", '{"a":1}') == first
    assert replica.head(1) == head


async def test_delete_and_come_back(make):
    replica = await make("alpha")
    await replica.put("things", "one", '{"a":1,"b":2}')
    assert await replica.delete("things", "one") is True
    assert await replica.delete("things", "one") is False
    assert replica.get("things", "one") is None
    assert (await replica.put("things", "one", '{"b":3}')).json == '{"b":3}'


@pytest.mark.parametrize(
    ("collection", "doc_id", "text"),
    [
        ("", "one", "{}"),
        ("-x", "one", '{"a":1}'),
        ("_beacon.1", "one", '{"a":1}'),
        ("a/b", "one", '{"a":1}'),
        ("things", "", '{"a":1}'),
        ("things", "\ud800", '{"a":1}'),
        ("things", "one", "[1]"),
        ("things", "one", '{"a":NaN}'),
    ],
)
async def test_what_cannot_be_is_refused_and_leaves_nothing(make, collection, doc_id, text):
    replica = await make("alpha")
    with pytest.raises(InvalidInputError):
        await replica.put(collection, doc_id, text)
    assert replica.collections() == []


async def test_limits_count_the_whole_document(make):
    replica = await make("alpha", limits=Limits(document_bytes=100, doc_id_bytes=5, fields=3))
    await replica.put("things", "one", json.dumps({"a": "x" * 50}))
    with pytest.raises(TooLargeError, match="100"):
        await replica.put("things", "one", json.dumps({"b": "x" * 50}))
    with pytest.raises(TooLargeError, match="5 bytes"):
        await replica.put("things", "toolong", '{"a":1}')
    with pytest.raises(TooLargeError, match="fields"):
        await replica.put("things", "two", '{"a":1,"b":1,"c":1,"d":1}')
    assert set(json.loads(replica.get("things", "one").json)) == {"a"}


async def test_restart_keeps_everything(nodes, clock, tmp_path):
    from peat_p2p.documents.replica import Replica

    path = tmp_path / "documents.db"
    async with Replica.open(path, nodes["alpha"], clock) as replica:
        await replica.put("platforms", "alpha", '{"last_seen":1700000000,"name":"x"}')
        await replica.put("platforms", "alpha", '{"last_seen":1700000030}')
        await replica.put("things", "gone", '{"a":1}')
        await replica.delete("things", "gone")
        await replica.tend()
        epoch, heads = replica.epoch, [replica.head(klass) for klass in range(4)]
        before = replica.get("platforms", "alpha")
    async with Replica.open(path, nodes["alpha"], clock) as replica:
        assert replica.epoch == epoch
        assert [replica.head(klass) for klass in range(4)] == heads
        assert replica.get("platforms", "alpha") == before
        assert replica.get("things", "gone") is None
        seq = replica.head(3)
        await replica.put("platforms", "alpha", '{"last_seen":1700000060}')
        assert replica.head(3) > seq
        assert json.loads(replica.get("platforms", "alpha").json) == {"last_seen": 1700000060, "name": "x"}


async def test_a_second_process_is_refused(make, nodes, clock, tmp_path):
    from peat_p2p.documents.replica import Replica

    await make("alpha", path=tmp_path / "documents.db")
    with pytest.raises(ConflictError, match="another process"):
        async with Replica.open(tmp_path / "documents.db", nodes["alpha"], clock):
            raise AssertionError("opened twice")


@pytest.mark.parametrize("damage", ["head", "middle", "not ours"])
async def test_a_damaged_file_is_reported(nodes, clock, tmp_path, damage):
    from peat_p2p.documents.replica import Replica

    path = tmp_path / "documents.db"
    async with Replica.open(path, nodes["alpha"], clock) as replica:
        for index in range(200):
            await replica.put("things", f"doc {index}", json.dumps({"text": "x" * 300}))
    data = bytearray(path.read_bytes())
    if damage == "head":
        data[:200] = b"\xff" * 200
    elif damage == "middle":
        at = data.index(b"x" * 300)
        data[at + 100] ^= 1
    else:
        data = bytearray(b"SQLite format 3\0")
        path.unlink()
        import sqlite3

        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE other (a)")
        db.close()
        data = bytearray(path.read_bytes())
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=r"documents\.db"):
        async with Replica.open(path, nodes["alpha"], clock):
            raise AssertionError("opened a damaged file")


async def test_a_write_that_cannot_be_stored_is_not_seen(make, monkeypatch):
    replica = await make("alpha")
    await replica.put("things", "one", '{"a":1}')
    heads = [replica.head(klass) for klass in range(4)]

    def full(rows):
        raise ExhaustedError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(replica._store, "commit", full)
        with pytest.raises(ExhaustedError):
            await replica.put("things", "one", '{"a":2}')
        with pytest.raises(ExhaustedError):
            await replica.put("platforms", "x", '{"last_seen":1700000000}')
    assert replica.get("things", "one").json == '{"a":1}'
    assert [replica.head(klass) for klass in range(4)] == heads
    assert (await replica.put("things", "one", '{"b":2}')).json == '{"a":1,"b":2}'
    await replica.put("platforms", "x", '{"last_seen":1700000000}')
    assert (await replica.put("platforms", "x", '{"last_seen":1700000030}')).json == '{"last_seen":1700000030}'


async def take(subscription, count):
    return [await anext(subscription) for _ in range(count)]


async def test_feed_gives_snapshot_marker_and_changes_in_order(make):
    replica = await make("alpha")
    await replica.put("things", "b", '{"n":1}')
    await replica.put("things", "a", '{"n":2}')
    await replica.put("others", "c", '{"n":3}')
    with replica.subscribe(["things"]) as feed:
        events = await take(feed, 3)
        assert [event.doc_id for event in events[:2]] == ["a", "b"]
        assert events[2] == SnapshotComplete()
        await replica.put("things", "b", '{"n":4}')
        await replica.put("others", "c", '{"n":5}')
        await replica.delete("things", "a")
        assert await take(feed, 2) == [
            Change("things", "b", replica.get("things", "b")),
            Change("things", "a", None),
        ]


async def test_a_slow_reader_is_told_and_gets_a_fresh_snapshot(make):
    replica = await make("alpha")
    with replica.subscribe(max_pending=3) as feed:
        assert await take(feed, 1) == [SnapshotComplete()]
        for index in range(5):
            await replica.put("things", str(index), '{"n":1}')
        await replica.delete("things", "0")
        events = await take(feed, 6)
        assert events[0] == Lagged()
        assert [event.doc_id for event in events[1:5]] == ["1", "2", "3", "4"]
        assert events[5] == SnapshotComplete()
        await replica.delete("things", "4")
        assert await take(feed, 1) == [Change("things", "4", None)]


async def test_feed_ends_when_closed_or_when_the_replica_closes(nodes, clock):
    from peat_p2p.core.errors import UnavailableError
    from peat_p2p.documents.replica import Replica

    async with Replica.open(None, nodes["alpha"], clock) as replica:
        with replica.subscribe() as closed:
            pass
        assert [event async for event in closed] == []
        feed = replica.subscribe()
        await take(feed, 1)
    with pytest.raises(UnavailableError):
        await anext(feed)
    with pytest.raises(UnavailableError):
        await replica.put("things", "late", '{"a":1}')


async def test_replicas_exchange_writes_deletes_and_heartbeats(make, sync, clock):
    alpha, bravo = await make("alpha"), await make("bravo")
    there, back = {}, {}
    await alpha.put("platforms", "alpha", '{"last_seen":1700000000,"name":"x"}')
    await alpha.put("things", "one", '{"a":1}')
    await bravo.put("things", "one", '{"b":2}')
    outcomes = await sync(alpha, bravo, there)
    assert {outcome.verdict for outcome in outcomes} <= {Verdict.APPLIED, Verdict.STALE}
    await sync(bravo, alpha, back)
    for collection, doc_id in (("things", "one"), ("platforms", "alpha")):
        assert alpha.get(collection, doc_id) == bravo.get(collection, doc_id)
    assert alpha.get("things", "one").json == '{"a":1,"b":2}'
    await alpha.put("platforms", "alpha", '{"last_seen":1700000030}')
    ((_, key),) = alpha.changed_since(3, there[3], 10)
    from peat_p2p.documents.codec import encode_update

    assert len(encode_update(alpha.make_update(key, there[3]))) <= 20
    await sync(alpha, bravo, there)
    assert json.loads(bravo.get("platforms", "alpha").json)["last_seen"] == 1700000030
    await bravo.delete("things", "one")
    assert all(o.verdict in {Verdict.APPLIED, Verdict.STALE} for o in await sync(bravo, alpha, back))
    assert alpha.get("things", "one") is None
    # Nothing goes back to where it came from.
    assert [
        key
        for klass in range(4)
        for _, key in alpha.changed_since(klass, there[klass], 10, peer=bravo.node.endpoint_id)
    ] == []


async def test_an_empty_object_is_a_document(make, sync):
    alpha, bravo = await make("alpha"), await make("bravo")
    assert (await alpha.put("things", "one", "{}")).json == "{}"
    assert alpha.ids("things") == ["one"]
    await sync(alpha, bravo)
    assert bravo.get("things", "one").json == "{}"
    assert (await bravo.put("things", "one", '{"":1}')).json == '{"":1}'
    head = bravo.head(1)
    assert (await bravo.put("things", "one", "{}")).json == '{"":1}'
    assert bravo.head(1) == head
    await bravo.delete("things", "one")
    assert bravo.get("things", "one") is None
    assert (await bravo.put("things", "one", "{}")).json == "{}"


async def test_an_error_of_the_body_comes_out_as_itself(nodes, clock):
    from peat_p2p.documents.replica import Replica

    with pytest.raises(KeyError):
        async with Replica.open(None, nodes["alpha"], clock):
            raise KeyError("x")


async def test_reserved_documents_replicate_unseen(make, sync):
    alpha, bravo = await make("alpha"), await make("bravo")
    await alpha.put_reserved("_sidecars", {"addresses": '["h:1"]'})
    await sync(alpha, bravo)
    (document,) = bravo.read_reserved("_sidecars")
    assert (document.doc_id, document.json) == (alpha.node.endpoint_id, '{"addresses":["h:1"]}')
    assert bravo.collections() == []
    with pytest.raises(InvalidInputError):
        bravo.get("_sidecars", alpha.node.endpoint_id)
    with bravo.subscribe() as feed:
        assert await take(feed, 1) == [SnapshotComplete()]
    with pytest.raises(InvalidInputError):
        await alpha.put_reserved("_other", {"a": "1"})


async def test_encrypted_at_rest(nodes, clock, tmp_path):
    from peat_p2p.core.errors import ConfigError
    from peat_p2p.documents.replica import Replica

    path, key = tmp_path / "documents.db", bytes(range(32))
    async with Replica.open(path, nodes["alpha"], clock, key=key) as replica:
        await replica.put("things", "very secret", '{"name":"very secret"}')
    assert all(b"very secret" not in file.read_bytes() for file in tmp_path.iterdir())
    async with Replica.open(path, nodes["alpha"], clock, key=key) as replica:
        assert replica.get("things", "very secret").json == '{"name":"very secret"}'
    for wrong, error in ((bytes(32), ConfigError), (None, CorruptError)):
        with pytest.raises(error):
            async with Replica.open(path, nodes["alpha"], clock, key=wrong):
                raise AssertionError("opened with a wrong key")


async def test_a_cancelled_write_harms_nobody(make):
    replica = await make("alpha")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(replica.put("things", str(number), '{"a":1}')) for number in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
    assert all(task.cancelled() for task in tasks[::2])
    for number in range(1, 20, 2):
        assert tasks[number].result() == replica.get("things", str(number))
    assert (await replica.put("things", "0", '{"b":2}')).json in {'{"a":1,"b":2}', '{"b":2}'}


async def test_a_snapshot_lets_others_work(make):
    replica = await make("alpha")
    async with asyncio.TaskGroup() as group:
        for number in range(300):
            group.create_task(replica.put("things", str(number), '{"a":1}'))
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        counting = group.create_task(count())
        with replica.subscribe() as feed:
            await take(feed, 301)
        counting.cancel()
    assert turns > 5


async def test_many_writers_share_commits(make, monkeypatch):
    replica = await make("alpha")
    commits = []
    commit = replica._store.commit
    monkeypatch.setattr(replica._store, "commit", lambda rows: (commits.append(len(rows)), commit(rows)))
    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(replica.put("things", str(number), '{"a":1}'))
    assert sum(commits) == 200
    assert len(commits) < 20


async def test_writes_of_one_document_at_once_all_count(make):
    replica = await make("alpha")
    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(replica.put("things", "one", json.dumps({f"f{number}": number})))
    assert json.loads(replica.get("things", "one").json) == {f"f{number}": number for number in range(50)}
