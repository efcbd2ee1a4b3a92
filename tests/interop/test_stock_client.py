"""A client that nobody here wrote talks to a sidecar: stock packages, code generated from our proto by stock tools."""

import asyncio
from pathlib import Path

import pytest

from peat_p2p.core.config import NodeConfig
from peat_p2p.sidecar.app import open_sidecar
from peat_p2p.sidecar.config import SidecarConfig

pytestmark = pytest.mark.interop
SCENARIOS = ["status", "documents", "typed", "subscribe", "query", "errors", "peers"]


@pytest.fixture
async def endpoints(tmp_path):
    config = SidecarConfig(node=NodeConfig(data_dir=tmp_path, dev=True, node_id="stock", mdns=False))
    async with open_sidecar(config) as endpoints:
        yield endpoints


async def drive(script: Path, protocol: str, address: str, scenario: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *("node", str(script), protocol, address, scenario, "ab" * 32),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()


@pytest.mark.parametrize("protocol", ["json", "binary", "grpc-web"])
async def test_over_tcp(stock_client, endpoints, protocol):
    for scenario in SCENARIOS:
        await drive(stock_client, protocol, endpoints.apis[0], scenario)


async def test_over_a_unix_socket(stock_client, endpoints):
    for scenario in SCENARIOS:
        await drive(stock_client, "json", endpoints.apis[1], scenario)
