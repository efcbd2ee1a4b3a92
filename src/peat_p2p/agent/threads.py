"""Long blocking work in a thread that can be stopped.

Owns the rule that a thread is never left running behind a cancelled task: it is told to stop at its next report of
progress, and the task ends when the thread has.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class StoppedError(Exception):
    """Raised inside the thread by `Stopper.check` once its task was cancelled."""


class Stopper:
    """How the thread learns that it shall stop."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def stop(self) -> None:
        """Ask the thread to stop."""
        self._event.set()

    def check(self) -> None:
        """Raise StoppedError if the thread shall stop. Called from the thread, often."""
        if self._event.is_set():
            raise StoppedError


async def in_thread(work: Callable[[Stopper], T]) -> T:
    """Run `work(stopper)` in a thread. When cancelled, ask it to stop and wait until it has."""
    stopper = Stopper()
    future = asyncio.get_running_loop().run_in_executor(None, work, stopper)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stopper.stop()
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # taken note of: the cancellation is what counts
        raise
