"""The sidecar as the process people run, and a stock client beside it."""

import asyncio
import contextlib
import json
import signal
import sys

import pytest

from peat_p2p.client import SidecarClient

pytestmark = pytest.mark.interop


@contextlib.asynccontextmanager
async def process(*arguments):
    command = (sys.executable, "-c", "from peat_p2p.cli.main import main; main()", *arguments)
    running = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


@pytest.fixture
def start(tmp_path):
    @contextlib.asynccontextmanager
    async def starting(*options):
        ready = tmp_path / "ready.json"
        ready.unlink(missing_ok=True)
        flags = ("--dev", "--no-mdns", "--data-dir", str(tmp_path / "data"), "--ready-file", str(ready), *options)
        async with process("sidecar", *flags) as running:
            async with asyncio.timeout(30):
                while not ready.exists():
                    assert running.returncode is None, (await running.stderr.read()).decode()
                    await asyncio.sleep(0.05)
            yield running, json.loads(ready.read_text())

    return starting


async def test_a_stock_client_talks_to_the_process_and_it_stops_when_told(start, stock_client):
    async with start() as (running, ready):
        for scenario in ("status", "typed", "subscribe"):
            async with process_of_node(stock_client, "json", ready["api"], scenario) as node:
                output, _ = await node.communicate()
                assert node.returncode == 0, output.decode()
        running.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await running.wait() == 0
        stderr = (await running.stderr.read()).decode()
        assert "Traceback" not in stderr
        assert "ERROR" not in stderr


async def test_killed_and_started_again_it_is_who_it_was_and_has_what_it_promised(start):
    async with start() as (running, before), SidecarClient(before["api"]) as client:
        for n in range(50):
            await client.put_document("things", str(n), {"n": n})
        running.kill()
        await running.wait()
    async with start() as (_, after), SidecarClient(f"unix://{before['apis'][1].removeprefix('unix://')}") as client:
        assert (after["node_id"], after["endpoint_id"]) == (before["node_id"], before["endpoint_id"])
        assert len(await client.read_collection("things")) == 50


async def test_a_second_one_on_the_same_address_is_refused_in_one_line(start, tmp_path):
    async with start() as (_, ready):
        listen = ("--listen", "tcp://" + ready["api"].removeprefix("http://"))
        async with process("sidecar", "--dev", "--no-mdns", "--data-dir", str(tmp_path / "other"), *listen) as second:
            async with asyncio.timeout(30):
                _, stderr = await second.communicate()
        assert second.returncode == 1
        assert "in use by another process" in stderr.decode()
        assert "Traceback" not in stderr.decode()


async def test_beyond_loopback_it_does_not_start_without_knowing_its_callers(tmp_path):
    flags = ("--dev", "--no-mdns", "--data-dir", str(tmp_path / "data"), "--listen", "tcp://0.0.0.0:0")
    async with process("sidecar", *flags) as running:
        async with asyncio.timeout(30):
            _, stderr = await running.communicate()
    assert running.returncode == 2
    assert "--token-file" in stderr.decode()
    assert "Traceback" not in stderr.decode()


@contextlib.asynccontextmanager
async def process_of_node(script, *arguments):
    running = await asyncio.create_subprocess_exec(
        *("node", str(script), *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()
