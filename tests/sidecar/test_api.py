import asyncio
import json

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from peat_p2p.client import SidecarClient
from peat_p2p.core.errors import DeniedError, PeatError
from peat_p2p.trust.identity import Role
from peat_p2p.wire.gen.peat.node.v1 import node_pb
from peat_p2p.wire.gen.peat.sidecar.v1 import sidecar_pb as pb


async def put(api, doc_id, text, collection="things"):
    await api.put_document(pb.PutDocumentRequest(collection=collection, doc_id=doc_id, json_data=text))


async def get(api, doc_id, collection="things"):
    response = await api.get_document(pb.GetDocumentRequest(collection=collection, doc_id=doc_id))
    return response.json_data if response.has_field("json_data") else None


async def test_status(api, endpoints):
    status = await api.get_status(pb.GetStatusRequest())
    assert status.node_id == endpoints.node_id == "n1"
    assert status.endpoint_addr == f"{endpoints.endpoint_id}@{endpoints.mesh}"
    assert (status.sync_active, status.connected_peers, status.phase) == (True, 0, pb.NodePhase.READY)


async def test_a_document_is_merged_by_key_listed_and_deleted(api):
    assert await get(api, "a") is None
    await put(api, "a", '{"x": 1, "y": {"deep": [1, 2]}}')
    await put(api, "a", '{"y": "new", "z": null}')
    assert json.loads(await get(api, "a")) == {"x": 1, "y": "new", "z": None}
    await put(api, "b", '{"n":1}')
    assert await get(api, "b") == '{"n":1}'
    listed = await api.list_documents(pb.ListDocumentsRequest(collection="things"))
    assert sorted(listed.doc_ids) == ["a", "b"]
    await api.delete_document(pb.DeleteDocumentRequest(collection="things", doc_id="a"))
    await api.delete_document(pb.DeleteDocumentRequest(collection="things", doc_id="a"))
    assert await get(api, "a") is None
    assert (await api.list_documents(pb.ListDocumentsRequest(collection="things"))).doc_ids == ["b"]
    assert (await api.list_documents(pb.ListDocumentsRequest(collection="none"))).doc_ids == []


async def test_an_empty_object_is_a_document(api):
    await put(api, "a", "{}")
    assert await get(api, "a") == "{}"
    await put(api, "a", '{"n":1}')
    await put(api, "a", " { } ")
    assert await get(api, "a") == '{"n":1}'
    await api.delete_document(pb.DeleteDocumentRequest(collection="things", doc_id="a"))
    assert await get(api, "a") is None


async def test_numbers_come_back_as_they_were_written(api):
    text = '{"a":9007199254740993,"b":1.10,"c":1e400,"d":-0.0,"e":123456789012345678901234567890}'
    await put(api, "n", text)
    stored = await get(api, "n")
    for number in ("9007199254740993", "1.10", "1e400", "-0.0", "123456789012345678901234567890"):
        assert f":{number}" in stored.replace(" ", "")


async def test_typed_calls_and_documents_read_each_other(api):
    platform = pb.Platform(id="p", platform_type="ugv", status=pb.PlatformStatus.BUSY, latitude=1.5, callsign="x")
    await api.put_platform(pb.PutPlatformRequest(platform=platform))
    assert (await api.get_platforms(pb.GetPlatformsRequest())).platforms == [platform]
    assert json.loads(await get(api, "p", "platforms"))["status"] == 2
    await put(api, "p", '{"last_seen": 5, "labels": {"a": "b"}, "name": 7, "latitude": 2}', "platforms")
    (read,) = (await api.get_platforms(pb.GetPlatformsRequest())).platforms
    assert (read.name, read.latitude, read.callsign) == ("", 2.0, "x")
    await api.put_platform(pb.PutPlatformRequest(platform=pb.Platform(id="p", name="again")))
    stored = json.loads(await get(api, "p", "platforms"))
    assert (stored["name"], stored["last_seen"], stored["labels"], stored["latitude"]) == ("again", 5, {"a": "b"}, 0.0)
    assert stored["callsign"] == "x"

    cell = pb.Cell(id="c", status=pb.CellStatus.OFFLINE, platform_count=2**32 - 1, leader_id="p")
    await api.put_cell(pb.PutCellRequest(cell=cell))
    assert (await api.get_cells(pb.GetCellsRequest())).cells == [cell]

    track = pb.Track(id="t", altitude_m=0.0, confidence=0.25, category=pb.TrackCategory.AIR)
    await api.put_track(pb.PutTrackRequest(track=track))
    (seen,) = (await api.get_tracks(pb.GetTracksRequest())).tracks
    assert seen == track
    assert seen.has_field("altitude_m")
    assert not seen.has_field("speed_mps")

    command = pb.Command(id="k", target_id="a", status=pb.CommandStatus.PENDING, expires_at=2**63 - 1)
    await api.put_command(pb.PutCommandRequest(command=command))
    assert (await api.get_commands(pb.GetCommandsRequest())).commands == [command]


async def test_a_put_and_a_heartbeat_keep_each_others_fields(api):
    beat = {"agent_id": "a", "platform_type": "uds-remote-agent", "name": "edge", "version": "1", "last_seen": 5}
    await put(api, "a", json.dumps(beat), "platforms")
    await api.put_platform(pb.PutPlatformRequest(platform=pb.Platform(id="a", latitude=1.5, callsign="x")))
    stored = json.loads(await get(api, "a", "platforms"))
    assert beat.items() <= stored.items()
    await put(api, "a", json.dumps({"agent_id": "a", "last_seen": 6}), "platforms")
    (platform,) = (await api.get_platforms(pb.GetPlatformsRequest())).platforms
    assert (platform.name, platform.latitude, platform.callsign) == ("edge", 1.5, "x")
    await api.put_platform(pb.PutPlatformRequest(platform=pb.Platform(id="a", name="new")))
    (platform,) = (await api.get_platforms(pb.GetPlatformsRequest())).platforms
    assert (platform.name, platform.platform_type, platform.latitude) == ("new", "uds-remote-agent", 0.0)


async def test_a_typed_get_takes_the_id_of_the_document(api):
    await put(api, "real", '{"id": "claimed", "name": "x"}', "platforms")
    (platform,) = (await api.get_platforms(pb.GetPlatformsRequest())).platforms
    assert (platform.id, platform.name) == ("real", "x")


async def test_peers_are_kept_and_forgotten(api):
    peer = "ab" * 32
    await api.connect_peer(pb.ConnectPeerRequest(endpoint_id=peer, addresses=["127.0.0.1:9"]))
    (known,) = (await api.list_peers(pb.ListPeersRequest())).peers
    assert (known.endpoint_id, known.addresses, known.connected) == (peer, ["127.0.0.1:9"], False)
    await api.disconnect_peer(pb.DisconnectPeerRequest(endpoint_id=peer))
    assert (await api.list_peers(pb.ListPeersRequest())).peers == []


async def test_sync_stops_and_starts(api):
    await api.stop_sync(pb.StopSyncRequest())
    assert not (await api.get_sync_stats(pb.GetSyncStatsRequest())).sync_active
    assert not (await api.get_status(pb.GetStatusRequest())).sync_active
    await api.start_sync(pb.StartSyncRequest())
    stats = await api.get_sync_stats(pb.GetSyncStatsRequest())
    assert (stats.sync_active, stats.connected_peers) == (True, 0)


async def test_subscribe_tells_what_is_there_a_marker_and_what_changes(api):
    await put(api, "old", '{"n":1}')
    await put(api, "x", '{"y":0}', "elsewhere")
    stream = api.subscribe(pb.SubscribeRequest(collections=["things"]))
    async with asyncio.timeout(10):
        first = await anext(stream)
        assert first == pb.DocumentChange(
            collection="things", doc_id="old", change_type=pb.ChangeType.UPSERT, json_data='{"n":1}'
        )
        assert await anext(stream) == pb.DocumentChange(marker=pb.StreamMarker.SNAPSHOT_COMPLETE)
        await put(api, "new", '{"n":2}')
        await put(api, "x", '{"y":1}', "elsewhere")
        assert (await anext(stream)).doc_id == "new"
        await api.delete_document(pb.DeleteDocumentRequest(collection="things", doc_id="old"))
        gone = await anext(stream)
        assert gone == pb.DocumentChange(collection="things", doc_id="old", change_type=pb.ChangeType.DELETE)
        assert not gone.has_field("json_data")
    await stream.aclose()


BAD = [
    ("put_document", pb.PutDocumentRequest(collection="", doc_id="a", json_data="{}"), "invalid", "collection"),
    ("put_document", pb.PutDocumentRequest(collection="_certificates", doc_id="a", json_data="{}"), "invalid", "name"),
    ("put_document", pb.PutDocumentRequest(collection="a/b", doc_id="a", json_data="{}"), "invalid", "'a/b'"),
    ("put_document", pb.PutDocumentRequest(collection="a\n", doc_id="a", json_data="{}"), "invalid", "name"),
    ("put_document", pb.PutDocumentRequest(collection="é", doc_id="a", json_data="{}"), "invalid", "name"),
    ("put_document", pb.PutDocumentRequest(collection="a" * 129, doc_id="a", json_data="{}"), "invalid", "128"),
    ("put_document", pb.PutDocumentRequest(collection="a", json_data="{}"), "invalid", "id is empty"),
    ("put_document", pb.PutDocumentRequest(collection="a", doc_id="x" * 513, json_data="{}"), "invalid", "512"),
    ("put_document", pb.PutDocumentRequest(collection="a", doc_id="a"), "invalid", "JSON"),
    ("put_document", pb.PutDocumentRequest(collection="a", doc_id="a", json_data="{"), "invalid", "JSON"),
    ("put_document", pb.PutDocumentRequest(collection="a", doc_id="a", json_data="[]"), "invalid", "object"),
    ("put_document", pb.PutDocumentRequest(collection="a", doc_id="a", json_data='"x"'), "invalid", "object"),
    ("put_document", pb.PutDocumentRequest(collection="a", doc_id="a", json_data="{} {}"), "invalid", "JSON"),
    ("put_document", pb.PutDocumentRequest(collection="a", doc_id="a", json_data='{"x":NaN}'), "invalid", "JSON"),
    ("put_document", pb.PutDocumentRequest(collection="a", doc_id="a", json_data="{'x':1}"), "invalid", "JSON"),
    ("put_document", pb.PutDocumentRequest(collection="commands", doc_id="a", json_data="{"), "invalid", "JSON"),
    ("put_document", pb.PutDocumentRequest(collection="commands", doc_id="a", json_data="7"), "invalid", "object"),
    (
        "put_document",
        pb.PutDocumentRequest(collection="a", doc_id="a", json_data='{"x":"' + "y" * 262144 + '"}'),
        "exhausted",
        "262144",
    ),
    (
        "put_document",
        pb.PutDocumentRequest(collection="a", doc_id="a", json_data='{"x":"' + "y" * 3_000_000 + '"}'),
        "exhausted",
        "max-document-bytes",
    ),
    ("get_document", pb.GetDocumentRequest(collection="_x", doc_id="a"), "invalid", "collection"),
    ("get_document", pb.GetDocumentRequest(collection="a"), "invalid", "id is empty"),
    ("delete_document", pb.DeleteDocumentRequest(collection="_x", doc_id="a"), "invalid", "collection"),
    ("delete_document", pb.DeleteDocumentRequest(collection="a"), "invalid", "id is empty"),
    ("list_documents", pb.ListDocumentsRequest(collection=""), "invalid", "collection"),
    ("put_platform", pb.PutPlatformRequest(), "invalid", "no platform"),
    ("put_platform", pb.PutPlatformRequest(platform=pb.Platform()), "invalid", "platform's id is empty"),
    (
        "put_platform",
        pb.PutPlatformRequest(platform=pb.Platform(id="p", latitude=float("nan"))),
        "invalid",
        "latitude",
    ),
    ("put_cell", pb.PutCellRequest(), "invalid", "no cell"),
    ("put_track", pb.PutTrackRequest(), "invalid", "no track"),
    ("put_command", pb.PutCommandRequest(), "invalid", "no command"),
    ("put_command", pb.PutCommandRequest(command=pb.Command(target_id="a")), "invalid", "command's id is empty"),
    ("connect_peer", pb.ConnectPeerRequest(endpoint_id="x"), "invalid", "endpoint id"),
    ("connect_peer", pb.ConnectPeerRequest(endpoint_id="AB" * 32, addresses=["h:1"]), "invalid", "lower-case"),
    ("connect_peer", pb.ConnectPeerRequest(endpoint_id="ab" * 32, addresses=["h"]), "invalid", "port"),
    ("connect_peer", pb.ConnectPeerRequest(endpoint_id="ab" * 32, relay_url="https://r"), "invalid", "relay"),
    ("connect_peer", pb.ConnectPeerRequest(endpoint_id="ab" * 32), "invalid", "address"),
    ("disconnect_peer", pb.DisconnectPeerRequest(endpoint_id=""), "invalid", "endpoint id"),
]
CODES = {"invalid": Code.INVALID_ARGUMENT, "exhausted": Code.RESOURCE_EXHAUSTED}


@pytest.mark.parametrize(("method", "request_", "code", "says"), BAD)
async def test_bad_input_is_refused_in_words(run, stub, method, request_, code, says):
    async with run() as endpoints, stub(endpoints.api) as api:
        with pytest.raises(ConnectError) as caught:
            await getattr(api, method)(request_)
        assert caught.value.code is CODES[code], caught.value.message
        assert says in caught.value.message
        assert "Traceback" not in caught.value.message
        listed = await api.list_documents(pb.ListDocumentsRequest(collection="a"))
        assert listed.doc_ids == []


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (pb.SubscribeRequest(collections=["ok", "not ok"]), "not ok"),
        (pb.SubscribeRequest(query=pb.SubscriptionQuery()), "empty"),
    ],
)
async def test_a_bad_subscription_is_refused_at_once(api, request_, says):
    with pytest.raises(ConnectError, match=says) as caught:
        await anext(api.subscribe(request_))
    assert caught.value.code is Code.INVALID_ARGUMENT


async def test_the_largest_document_fits_even_when_every_byte_is_escaped(run, stub):
    value = "\\u0001" * 10_900  # 65 kB of document, each byte of its escapes escaped once more in Connect JSON
    text = '{"x":"' + value + '"}'
    async with run(max_document_bytes=len(text) + 10) as endpoints:
        for form in ("json", "binary"):
            async with stub(endpoints.api, form) as api:
                await put(api, form, text)
                assert await get(api, form) == text


async def test_the_document_limit_counts_what_is_there_already(run, stub):
    async with run(max_document_bytes=2000) as endpoints, stub(endpoints.api) as api:
        await put(api, "a", '{"x":"' + "y" * 1500 + '"}')
        with pytest.raises(ConnectError, match="2000") as caught:
            await put(api, "a", '{"z":"' + "y" * 1500 + '"}')
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        await put(api, "a", '{"x":"' + "z" * 1500 + '"}')


async def test_read_collection_gives_everything_in_order(api, node_api):
    for doc_id in ("b", "a:2", "a:1"):
        await put(api, doc_id, '{"n":1.10}')
    response = await node_api.read_collection(node_pb.ReadCollectionRequest(collection="things"))
    assert [(d.doc_id, d.json_data) for d in response.documents] == [
        ("a:1", '{"n":1.10}'),
        ("a:2", '{"n":1.10}'),
        ("b", '{"n":1.10}'),
    ]
    response = await node_api.read_collection(node_pb.ReadCollectionRequest(collection="things", id_prefix="a:"))
    assert [d.doc_id for d in response.documents] == ["a:1", "a:2"]
    with pytest.raises(ConnectError, match="collection"):
        await node_api.read_collection(node_pb.ReadCollectionRequest(collection="_certificates"))


async def test_the_node_says_who_it_is(run):
    async with (
        run(node={"site": "alpha", "labels": {"k": "v"}}) as endpoints,
        SidecarClient(endpoints.api) as client,
    ):
        info = await client.get_node()
        assert (info.node_id, info.endpoint_id) == ("n1", endpoints.endpoint_id)
        assert (info.formation, info.roles, info.site) == ("test", ("agent",), "alpha")
        assert dict(info.labels) == {"k": "v"}
        assert info.mesh_address == endpoints.mesh
        assert info.version


async def test_a_restart_keeps_ids_and_documents(run):
    async with run() as before, SidecarClient(before.api) as client:
        await client.put_document("things", "a", '{"n": 1.10}')
        await client.put_document("things", "gone", {"n": 1})
        await client.delete_document("things", "gone")
    async with run() as after, SidecarClient(after.api) as client:
        assert (after.node_id, after.endpoint_id) == (before.node_id, before.endpoint_id)
        assert await client.list_documents("things") == ["a"]
        assert "1.10" in await client.get_document_text("things", "a")


async def test_two_calls_at_once_do_not_lose_each_others_fields(run):
    async with run() as endpoints, SidecarClient(endpoints.apis[1]) as client:
        async with asyncio.TaskGroup() as group:
            for n in range(100):
                group.create_task(client.put_document("things", "a", {f"k{n}": n}))
        assert await client.get_document("things", "a") == {f"k{n}": n for n in range(100)}


async def test_a_store_key_makes_the_file_unreadable_to_others(run, tmp_path):
    key = bytes(range(32))
    async with run(store_key=key) as endpoints, SidecarClient(endpoints.api) as client:
        await client.put_document("things", "needle-id", {"text": "needle-in-haystack"})
    data = b"".join(path.read_bytes() for path in (tmp_path / "data" / "n1").iterdir() if path.is_file())
    assert b"needle" not in data
    for wrong in (None, bytes(32)):
        with pytest.raises(PeatError):
            async with run(store_key=wrong):
                pass
    async with run(store_key=key) as endpoints, SidecarClient(endpoints.api) as client:
        assert await client.get_document("things", "needle-id") == {"text": "needle-in-haystack"}


@pytest.mark.parametrize("collection", ["rollouts", "desired"])
async def test_orders_are_for_operators_and_hubs(run, collection):
    async with run() as endpoints, SidecarClient(endpoints.api) as client:
        with pytest.raises(DeniedError, match="operator or hub"):
            await client.put_document(collection, "r", {"n": 1})
        with pytest.raises(DeniedError, match="operator or hub"):
            await client.delete_document(collection, "r")
        assert await client.list_documents(collection) == []
    async with run("hub", node={"roles": (Role.HUB,)}) as endpoints, SidecarClient(endpoints.api) as client:
        await client.put_document(collection, "r", {"n": 1})
        assert await client.list_documents(collection) == ["r"]
