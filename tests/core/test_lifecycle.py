from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from peat_p2p.core.config import Endpoints
from peat_p2p.core.errors import ConfigError, NotFoundError, UnavailableError
from peat_p2p.core.lifecycle import read_endpoints, run_until_stopped


def _endpoints() -> Endpoints:
    return Endpoints(
        node_id="n", endpoint_id="e", pid=os.getpid(), api="http://127.0.0.1:1", apis=("http://127.0.0.1:1",)
    )


async def test_files_appear_when_ready_and_go_away_when_stopped(tmp_path: Path) -> None:
    seen: list[Endpoints] = []
    closed: list[bool] = []
    ready = tmp_path / "ready.json"
    ready.write_text("stale")

    @asynccontextmanager
    async def service() -> AsyncIterator[Endpoints]:
        assert not ready.exists(), "a stale ready file would mislead readers while the service starts"
        yield _endpoints()
        closed.append(True)

    async def stop_when_ready() -> None:
        while not ready.exists():
            await asyncio.sleep(0.01)
        seen.append(read_endpoints(tmp_path / "node.json"))
        assert json.loads(ready.read_text())["node_id"] == "n"
        os.kill(os.getpid(), signal.SIGTERM)

    async with asyncio.TaskGroup() as group:
        group.create_task(stop_when_ready())
        await run_until_stopped(service(), endpoints_file=tmp_path / "node.json", ready_file=ready)
    assert seen == [_endpoints()]
    assert closed == [True]
    assert list(tmp_path.iterdir()) == []


async def test_a_task_that_fails_ends_the_service(tmp_path: Path) -> None:
    @asynccontextmanager
    async def service() -> AsyncIterator[Endpoints]:
        async def fail() -> None:
            await asyncio.sleep(0.01)
            raise UnavailableError("the disk went away")

        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            yield _endpoints()

    with pytest.raises(ExceptionGroup) as caught:
        await run_until_stopped(service(), endpoints_file=tmp_path / "node.json", ready_file=None)
    assert caught.group_contains(UnavailableError, match="disk went away")
    assert list(tmp_path.iterdir()) == []


async def test_a_stop_that_hangs_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peat_p2p.core.lifecycle.STOP_SECONDS", 0.05)

    @asynccontextmanager
    async def service() -> AsyncIterator[Endpoints]:
        os.kill(os.getpid(), signal.SIGTERM)
        yield _endpoints()
        await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await run_until_stopped(service(), endpoints_file=tmp_path / "node.json", ready_file=None)


def test_reading_endpoints_says_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "node.json"
    with pytest.raises(NotFoundError, match="nothing is running"):
        read_endpoints(file)
    file.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_endpoints(file)
    file.write_text('{"unknown": 1}')
    with pytest.raises(ConfigError, match="does not hold"):
        read_endpoints(file)
    file.write_text('{"node_id": "n", "endpoint_id": "e", "pid": 2147483000}')
    with pytest.raises(NotFoundError, match="is gone"):
        read_endpoints(file)


async def test_the_files_of_another_process_that_lives_are_not_touched(tmp_path: Path) -> None:
    file, ready = tmp_path / "node.json", tmp_path / "ready.json"
    other = json.dumps({"node_id": "n", "endpoint_id": "e", "pid": os.getppid()})
    file.write_text(other)
    ready.write_text(other)

    @asynccontextmanager
    async def service() -> AsyncIterator[Endpoints]:
        if os.getpid():
            raise UnavailableError("the data folder is in use")
        yield _endpoints()

    with pytest.raises(UnavailableError):
        await run_until_stopped(service(), endpoints_file=file, ready_file=ready)
    assert file.read_text() == other
    assert ready.read_text() == other
