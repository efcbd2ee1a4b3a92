"""Streams at the pace of a person.

Owns the turning of work and of transfers into sequences of states, neither more nor less often than somebody who
watches wants to see them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from peat_p2p.agent.transfers import Ticket
from peat_p2p.core.errors import UnavailableError
from peat_p2p.core.waiting import within
from peat_p2p.swarm.status import TransferStatus

BREATH_SECONDS = 0.1  # states of a stream are at least this far apart, but for the end
PULSE_SECONDS = 1.0  # and at most this far

T = TypeVar("T")


async def paced(ticket: Ticket, stopping: asyncio.Event) -> AsyncIterator[TransferStatus]:
    """A ticket's status, neither more nor less often than a person wants to see it, to the end.

    Raises UnavailableError once `stopping` is set.
    """
    while True:
        changed = ticket.changes.next()
        if stopping.is_set() and not ticket.ended:
            raise UnavailableError("the agent is stopping; the transfer goes on when it is started again")
        yield ticket.status if ticket.ended else ticket.transfer.status()
        if ticket.ended:
            return
        if not await within(BREATH_SECONDS, ticket.over):
            await within(PULSE_SECONDS, changed)


async def follow(work: Callable[[Callable[[T], None]], Awaitable[T]]) -> AsyncGenerator[tuple[T, bool], None]:
    """Run `work(tell)`; yield what it tells (the latest, not too often, False) and at the end its result (True).

    `tell` may be called from a thread. When the caller stops listening, the work is cancelled; its error is raised as
    it is.
    """
    latest: list[T] = []
    news = asyncio.Event()
    loop = asyncio.get_running_loop()

    def put(state: T) -> None:
        latest[:] = [state]
        news.set()

    def tell(state: T) -> None:
        loop.call_soon_threadsafe(put, state)

    async def guarded() -> T | Exception:
        try:
            return await work(tell)
        except Exception as error:
            return error  # out of a TaskGroup it would come wrapped

    async with asyncio.TaskGroup() as group:
        task = group.create_task(guarded())
        task.add_done_callback(lambda _: news.set())
        try:
            while not task.done():
                await news.wait()
                news.clear()
                if latest and not task.done():
                    yield latest.pop(), False
                    await asyncio.wait({task}, timeout=BREATH_SECONDS)
        finally:
            task.cancel()
    result = task.result()
    if isinstance(result, Exception):
        raise result
    yield result, True
