"""Polling an agent that does not push yet.

Owns the loop: ask the agent beside this sidecar how it does and what it has, and keep its documents so. Off by default.
Rules: a list that could not be read retires nothing; the log speaks when something changes, not at every poll; an agent
that does not answer is asked less and less often.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp

from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import ConfigError, PeatError, UnavailableError
from peat_p2p.documents.replica import Replica
from peat_p2p.fleet import ids
from peat_p2p.fleet.fields import parse
from peat_p2p.sidecar import observed
from peat_p2p.wire.errors import UnsupportedCallError

log = logging.getLogger(__name__)

LIST_PACKAGES = "/zarfapi.v1.ZarfAPIService/ListPackages"
LIST_PULLED = "/registryapi.v1.RegistryService/ListPulledPackages"
CALL_SECONDS = 10.0
MAX_ANSWER = 16 * 1024 * 1024
LONGEST_PAUSE = 300.0


class Watcher:
    """Keeps the documents of one polled agent."""

    def __init__(self, url: str, agent_id: str, replica: Replica, clock: Clock, *, interval: float) -> None:
        self._url = url.rstrip("/")
        self._socket = ""
        if url.startswith("unix://"):
            self._socket, self._url = url.removeprefix("unix://"), "http://localhost"
        elif not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url!r}: the agent to watch is http://HOST:PORT, https://HOST:PORT or unix:///PATH")
        self._name = f"agent {agent_id} at {url}"
        self._agent_id = agent_id
        self._replica = replica
        self._clock = clock
        self._interval = interval
        self._troubles: dict[str, str] = {}

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Poll for ever."""
        connector = aiohttp.UnixConnector(self._socket) if self._socket else None
        timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
        log.info("watching %s every %g s", self._name, self._interval)
        failures = 0
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            while True:
                failures = 0 if await self.poll(session) else failures + 1
                await sleep(min(self._interval * 2 ** min(failures, 10), max(self._interval, LONGEST_PAUSE)))

    async def poll(self, session: aiohttp.ClientSession) -> bool:
        """Ask once. Returns whether the agent answered at all."""
        now = int(self._clock.wall())
        if not await self._try("status", self._poll_status(session, now)):
            return False
        await self._try("packages", self._poll_deployments(session, now))
        await self._try("pulled packages", self._poll_holdings(session, now))
        return True

    async def _poll_status(self, session: aiohttp.ClientSession, now: int) -> None:
        status = await self._ask(session, "GET", "/status")
        fields = observed.heartbeat(self._agent_id, status, now)
        await self._replica.put(ids.PLATFORMS, self._agent_id, json.dumps(fields))

    async def _poll_deployments(self, session: aiohttp.ClientSession, now: int) -> None:
        listed = await self._ask(session, "POST", LIST_PACKAGES)
        await self._settle(ids.DEPLOYMENTS, observed.deployments(self._agent_id, listed, now))

    async def _poll_holdings(self, session: aiohttp.ClientSession, now: int) -> None:
        listed = await self._ask(session, "POST", LIST_PULLED)
        await self._settle(ids.PACKAGES, observed.holdings(self._agent_id, listed, now))

    async def _settle(self, collection: str, found: Mapping[str, Mapping[str, object]]) -> None:
        present = {it.doc_id: parse(it.json) for it in self._replica.read(collection, f"{self._agent_id}:")}
        plan = observed.plan(present, found)
        for doc_id, fields in plan.writes.items():
            await self._replica.put(collection, doc_id, json.dumps(fields))
            log.info("%s: %s/%s %s", self._name, collection, doc_id, "changed" if doc_id in present else "is new")
        for doc_id in plan.deletes:
            await self._replica.delete(collection, doc_id)
            log.info("%s: %s/%s is gone", self._name, collection, doc_id)

    async def _try(self, what: str, step: Awaitable[None]) -> bool:
        """Take one step of a poll; a failure is logged once, until it changes or passes."""
        try:
            await step
        except PeatError as error:
            trouble = str(error)
            if self._troubles.get(what) != trouble:
                level = logging.INFO if isinstance(error, UnsupportedCallError) else logging.WARNING
                log.log(level, "%s: cannot read %s: %s", self._name, what, trouble)
            self._troubles[what] = trouble
            return False
        if self._troubles.pop(what, None) is not None:
            log.info("%s: %s can be read again", self._name, what)
        return True

    async def _ask(self, session: aiohttp.ClientSession, method: str, path: str) -> Any:
        try:
            body: dict[str, str] | None = {} if method == "POST" else None
            async with session.request(method, self._url + path, json=body) as answer:
                if answer.status in (404, 405, 501):
                    raise UnsupportedCallError(f"it has no {path}")
                if answer.status != 200:
                    raise UnavailableError(f"{path} answered {answer.status}")
                data = await answer.content.read(MAX_ANSWER + 1)
                while len(data) <= MAX_ANSWER and (more := await answer.content.read(MAX_ANSWER + 1 - len(data))):
                    data += more
        except TimeoutError:
            raise UnavailableError(f"no answer within {CALL_SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise UnavailableError(str(error) or type(error).__name__) from None
        if len(data) > MAX_ANSWER:
            raise UnavailableError(f"{path} answered with more than {MAX_ANSWER} bytes")
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise UnavailableError(f"{path} answered with something that is not JSON") from None
