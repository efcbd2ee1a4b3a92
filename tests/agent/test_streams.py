"""States of a stream: not too often, but the end at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from peat_p2p.agent import streams
from peat_p2p.agent.view import Changes


@pytest.fixture(autouse=True)
def long_breath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BREATH_SECONDS", 3600.0)


async def test_the_end_of_a_transfer_is_told_at_once() -> None:
    ticket: Any = SimpleNamespace(
        changes=Changes(),
        over=asyncio.Event(),
        ended=False,
        status="complete",
        transfer=SimpleNamespace(status=lambda: "fetching"),
    )
    seen = []
    async with asyncio.timeout(10):
        async for status in streams.paced(ticket, asyncio.Event()):
            seen.append(status)
            ticket.changes.notify()
            asyncio.get_running_loop().call_soon(setattr, ticket, "ended", True)
            asyncio.get_running_loop().call_soon(ticket.over.set)
    assert seen == ["fetching", "complete"]


async def test_the_result_of_work_is_told_at_once() -> None:
    told = asyncio.Event()

    async def work(tell: Any) -> str:
        tell("begun")
        await told.wait()
        return "done"

    seen = []
    async with asyncio.timeout(10):
        async for state, last in streams.follow(work):
            seen.append((state, last))
            told.set()
    assert seen == [("begun", False), ("done", True)]
