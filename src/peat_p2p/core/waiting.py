"""Waiting for an event for a while. Must not know what is waited for."""

from __future__ import annotations

import asyncio
import contextlib


async def within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for `event`, for so many seconds at most; whether it came."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await event.wait()
    return False
