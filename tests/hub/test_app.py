"""The hub over a real sidecar, on real sockets."""

import asyncio
import socket
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from peat_p2p.client.client import SidecarClient
from peat_p2p.core.address import HostPort, ListenAddress
from peat_p2p.core.config import Endpoints, NodeConfig
from peat_p2p.core.errors import ConfigError, ConflictError
from peat_p2p.fleet.commands import open_command
from peat_p2p.fleet.heartbeat import Heartbeat
from peat_p2p.hub.app import open_hub, own_api
from peat_p2p.hub.config import HubConfig
from peat_p2p.sidecar.app import open_sidecar
from peat_p2p.sidecar.config import SidecarConfig
from peat_p2p.trust.formation import dev_credentials
from peat_p2p.trust.identity import Role

ORDER = {"target_id": "edge-1", "command_type": "pull", "payload": {"package": "app", "version": "1"}}


def node(tmp_path: Path, **changes: Any) -> NodeConfig:
    return NodeConfig(data_dir=tmp_path / "data", node_id="hub-1", dev=True, mdns=False, **changes)


def hub(config: HubConfig, **sidecar: Any) -> Any:
    return open_hub(config, open_sidecar(SidecarConfig(node=config.node, **sidecar)))


async def call(method: str, url: str, **more: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.request(method, url, **more) as answer:
        return answer.status, await answer.json()


async def test_an_order_is_signed_and_both_survive_a_restart(tmp_path: Path) -> None:
    config = HubConfig(node=node(tmp_path))
    async with hub(config) as endpoints:
        assert endpoints.hub.startswith("http://127.0.0.1:") and endpoints.node_id == "hub-1" and endpoints.mesh
        async with SidecarClient(endpoints.api) as sidecar:
            await sidecar.heartbeat(Heartbeat(agent_id="edge-1", site="north"))
            status, made = await call("POST", f"{endpoints.hub}/api/commands", json=ORDER)
            assert status == 201, made
            document = await sidecar.get_document("commands", made["id"])
        assert document is not None
        trust = dev_credentials(tmp_path / "data" / "formation", "hub-1", [])
        command, signer = open_command(made["id"], document, trust.anchor, trust.identity.not_before)
        assert command.payload == ORDER["payload"] and signer.has(Role.HUB)
        assert (await call("GET", f"{endpoints.hub}/healthz"))[1]["current"] is True
        async with asyncio.timeout(5):
            while not (await call("GET", f"{endpoints.hub}/api/fleet"))[1]["agents"]:
                await asyncio.sleep(0.02)
    async with hub(config) as endpoints:
        (listed,) = (await call("GET", f"{endpoints.hub}/api/commands"))[1]["commands"]
        assert (listed["id"], listed["silent"]) == (made["id"], ["edge-1"])
        events = (await call("GET", f"{endpoints.hub}/api/history"))[1]["events"]
        assert sorted((e["kind"], e["collection"]) for e in events) == [
            ("appeared", "commands"),
            ("appeared", "platforms"),
        ]


async def test_a_port_in_use_is_said_and_everything_closes(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = HostPort("127.0.0.1", other.getsockname()[1])
        with pytest.raises(ConflictError, match=f"port {taken} is in use"):
            async with hub(HubConfig(node=node(tmp_path, http_listen=taken))):
                pass
    async with hub(HubConfig(node=node(tmp_path))) as endpoints:
        assert endpoints.hub


async def test_a_token_guards_both_faces(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-long-enough-token\n")
    only_tcp = (ListenAddress(host_port=HostPort("127.0.0.1", 0)),)
    config = HubConfig(node=node(tmp_path, listen=only_tcp), token_file=token)
    async with hub(config, token_file=token) as endpoints:
        assert (await call("GET", f"{endpoints.hub}/api/fleet"))[0] == 401
        good = {"Authorization": "Bearer a-long-enough-token"}
        assert (await call("POST", f"{endpoints.hub}/api/commands", json=ORDER, headers=good))[0] == 201


async def test_the_hub_reaches_a_sidecar_that_speaks_tls_alone(tmp_path: Path) -> None:
    only_tcp = (ListenAddress(host_port=HostPort("127.0.0.1", 0)),)
    config = HubConfig(node=node(tmp_path, listen=only_tcp))
    async with hub(config, tls=True) as endpoints:
        assert endpoints.api.startswith("https://")
        assert (await call("POST", f"{endpoints.hub}/api/commands", json=ORDER))[0] == 201


async def test_what_the_sidecar_raises_comes_out_as_it_is(tmp_path: Path) -> None:
    @asynccontextmanager
    async def broken() -> Any:
        raise ConfigError("no certificates")
        yield

    with pytest.raises(ConfigError, match="no certificates"):
        async with open_hub(HubConfig(node=node(tmp_path)), broken()):
            pass


def test_settings_are_checked(tmp_path: Path) -> None:
    everywhere = node(tmp_path, http_listen=HostPort("0.0.0.0", 0))
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        HubConfig(node=everywhere)
    assert HubConfig(node=everywhere, insecure=True) and HubConfig(node=everywhere, token_file=tmp_path / "t")
    for wrong in ({"history_events": 1}, {"max_body_bytes": 1}):
        with pytest.raises(ConfigError, match=r"at least|under"):
            HubConfig(node=node(tmp_path), **wrong)


async def test_a_bad_token_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        async with hub(HubConfig(node=node(tmp_path), token_file=tmp_path / "none")):
            pass
    (tmp_path / "short").write_text("abc")
    with pytest.raises(ConfigError, match="too short"):
        async with hub(HubConfig(node=node(tmp_path), token_file=tmp_path / "short")):
            pass


def test_the_hub_prefers_the_guarded_socket() -> None:
    both = Endpoints(node_id="n", endpoint_id="e", api="http://127.0.0.1:1", apis=("http://127.0.0.1:1", "unix:///s"))
    assert own_api(both) == "unix:///s"
    assert own_api(Endpoints(node_id="n", endpoint_id="e", api="http://127.0.0.1:1")) == "http://127.0.0.1:1"
