import asyncio

import aiohttp
import pytest

from peat_p2p.client import Gap, SidecarClient, SnapshotComplete
from peat_p2p.core.address import HostPort, ListenAddress
from peat_p2p.core.errors import ConfigError, DeniedError, UnavailableError
from peat_p2p.sidecar.config import SidecarConfig
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role

EVERYWHERE = ListenAddress(host_port=HostPort("0.0.0.0", 0))
TOKEN = "correct-horse-battery"


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.168.1.5:0", "edge.example:0"])
def test_beyond_loopback_callers_must_be_known(node_config, token_file, address):
    node = node_config(listen=(ListenAddress.parse("127.0.0.1:0"), ListenAddress.parse(address)))
    with pytest.raises(ConfigError, match=r"--token-file.*--tls.*--insecure"):
        SidecarConfig(node=node)
    for allowed in ({"insecure": True}, {"tls": True}, {"token_file": token_file}):
        SidecarConfig(node=node, **allowed)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "localhost:0", "unix:///tmp/s"])
def test_on_this_machine_nothing_is_asked(node_config, address):
    SidecarConfig(node=node_config(listen=(ListenAddress.parse(address),)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_document_bytes": 10}, "1024"),
        ({"max_pending_changes": 0}, "pending"),
        ({"watch_interval_s": 0}, "interval"),
    ],
)
def test_settings_that_cannot_be_are_refused(node_config, options, says):
    with pytest.raises(ConfigError, match=says):
        SidecarConfig(node=node_config(), **options)


async def test_a_token_is_asked_for_on_tcp_and_not_on_the_unix_socket(run, token_file, tmp_path):
    addresses = (EVERYWHERE, ListenAddress(path=tmp_path / "s"))
    async with run(node={"listen": addresses}, token_file=token_file) as endpoints:
        tcp, unix = endpoints.apis
        async with SidecarClient(tcp, token=TOKEN) as client:
            await client.put_document("things", "a", {"n": 1})
        async with SidecarClient(unix) as client:
            assert await client.list_documents("things") == ["a"]
        for wrong in (None, "x", TOKEN + "x"):
            async with SidecarClient(tcp, token=wrong) as client:
                for call in (client.get_status(), client.get_node(), client.delete_document("things", "a")):
                    with pytest.raises(DeniedError, match="token"):
                        await call
                with pytest.raises(DeniedError, match="token"):
                    await anext(client.subscribe())
        async with SidecarClient(unix) as client:
            assert await client.list_documents("things") == ["a"]


@pytest.mark.parametrize("content", ["", "short", "two words of enough length", "é" * 20])
async def test_a_token_file_must_hold_a_token(run, tmp_path, content):
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(ConfigError, match="16 characters"):
        async with run(token_file=path):
            pass


async def test_a_token_file_that_is_not_there(run, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        async with run(token_file=tmp_path / "none"):
            pass


@pytest.fixture
def caller(formation, tmp_path):
    def make(name, *roles, of=formation):
        folder = tmp_path / f"caller-{name}"
        of.issue(name, roles, folder, replace=True)
        return NodeCredentials.load(folder).client_context()

    return make


async def test_with_tls_an_operator_may_call(run, caller):
    async with run(node={"listen": (EVERYWHERE,)}, tls=True) as endpoints:
        assert endpoints.api.startswith("https://")
        async with SidecarClient(endpoints.api, tls=caller("boss", Role.OPERATOR)) as client:
            assert (await client.get_status()).node_id == "n1"
            await client.put_document("things", "a", {"n": 1})
            assert await client.read_collection("things") == {"a": {"n": 1}}


async def test_with_tls_strangers_are_refused(run, caller, tmp_path):
    foreign = Formation.init(tmp_path / "foreign", "other")
    async with run(node={"listen": (EVERYWHERE,)}, tls=True) as endpoints:
        async with SidecarClient(endpoints.api, tls=caller("boss", Role.OPERATOR, of=foreign)) as client:
            with pytest.raises(UnavailableError, match="TLS"):
                await client.get_status()
        plain = endpoints.api.replace("https:", "http:")
        async with SidecarClient(plain) as client:
            with pytest.raises(UnavailableError):
                await client.get_status()


async def test_with_tls_a_member_that_could_gain_a_voice_is_refused(run, caller):
    hub = {"listen": (EVERYWHERE,), "roles": (Role.HUB,)}
    async with run("hub", node=hub, tls=True) as endpoints:
        async with SidecarClient(endpoints.api, tls=caller("edge-7", Role.AGENT)) as client:
            for call in (client.get_status(), client.put_document("commands", "k", {"target_id": "*"})):
                with pytest.raises(DeniedError, match="operator is needed"):
                    await call
            with pytest.raises(DeniedError, match="operator is needed"):
                await anext(client.subscribe())
        async with SidecarClient(endpoints.api, tls=caller("boss", Role.OPERATOR)) as client:
            assert await client.list_documents("commands") == []


async def test_with_tls_a_revoked_operator_is_refused(run, caller, formation):
    lost, boss = caller("lost", Role.OPERATOR), caller("boss", Role.OPERATOR)
    endpoint = {node.node_id: node.endpoint_id for node in formation.nodes()}["lost"]
    async with (
        run("hub", node={"listen": (EVERYWHERE,), "roles": (Role.HUB,)}, tls=True) as endpoints,
        SidecarClient(endpoints.api, tls=lost) as client,
        SidecarClient(endpoints.api, tls=boss) as other,
    ):
        await client.get_status()
        theirs, ours = client.subscribe(["things"]), other.subscribe(["things"])
        assert await anext(theirs) == await anext(ours) == SnapshotComplete()
        await other.put_document("revocations", f"endpoint:{endpoint}", {"reason": "laptop stolen"})
        with pytest.raises(DeniedError, match="laptop stolen"):
            await client.get_status()
        async with asyncio.timeout(10):
            assert isinstance(await anext(theirs), Gap)
            with pytest.raises(DeniedError, match="laptop stolen"):
                await anext(theirs)
            assert isinstance(await anext(ours), Gap)
            assert await anext(ours) == SnapshotComplete()
        await ours.aclose()


async def test_nothing_but_the_services_is_served(endpoints):
    async with aiohttp.ClientSession() as session:
        for path in ("/", "/metrics", "/peat.sidecar.v1.PeatSidecar", "/peat.sidecar.v1.PeatSidecarX/GetStatus"):
            async with session.get(endpoints.api + path) as answer:
                assert answer.status == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:1234", 200),
        ("127.0.0.1:5", 200),
        ("[::1]:5", 200),
        ("evil.example", 403),
        ("evil.example:80", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
async def test_a_page_whose_name_points_here_is_refused(endpoints, host, status):
    url = f"{endpoints.api}/peat.sidecar.v1.PeatSidecar/GetStatus"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json={}, headers={"host": host}) as answer,
    ):
        assert answer.status == status
        if status == 403:
            assert (await answer.json())["code"] == "permission_denied"


async def test_with_a_token_any_name_will_do(run, token_file):
    async with run(token_file=token_file) as endpoints, aiohttp.ClientSession() as session:
        headers = {"host": "sidecar.example", "authorization": f"Bearer {TOKEN}"}
        url = f"{endpoints.api}/peat.sidecar.v1.PeatSidecar/GetStatus"
        async with session.post(url, json={}, headers=headers) as answer:
            assert answer.status == 200
