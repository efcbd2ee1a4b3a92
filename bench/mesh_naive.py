"""What the mesh is compared with: whole documents flooded over WebSocket to every peer.

The plainest thing that works: every write sends the whole document as JSON to every peer, who passes it on to its
other peers if it is newer than what it has; a new connection sends everything. It is in clear and keeps nothing on
disk, so it is spared the cost of both.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web


class NaiveNode:
    """Documents in a dictionary, flooded on every change."""

    def __init__(self) -> None:
        self._documents: dict[tuple[str, str], tuple[float, dict[str, Any] | None]] = {}
        self._peers: dict[object, asyncio.Queue[str]] = {}
        self._on = asyncio.Event()
        self._on.set()
        self.address: tuple[str, int] = ("", 0)
        self.on_new: Callable[[str, str], None] = lambda collection, doc_id: None
        self._sent = 0
        self._received = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, listen: str, peers: list[str]) -> AsyncIterator[NaiveNode]:
        node = cls()
        app = web.Application()
        app.router.add_get("/", node._accept)
        runner = web.AppRunner(app)
        await runner.setup()
        host, _, port = listen.rpartition(":")
        site = web.TCPSite(runner, host, int(port), shutdown_timeout=1.0)
        await site.start()
        node.address = runner.addresses[0]
        async with asyncio.TaskGroup() as group, aiohttp.ClientSession() as session:
            tasks = [group.create_task(node._dial(session, peer.rpartition("@")[2])) for peer in peers]
            yield node
            for task in tasks:
                task.cancel()
        await runner.cleanup()

    async def put(self, collection: str, doc_id: str, fields: dict[str, Any]) -> None:
        _, old = self._documents.get((collection, doc_id), (0.0, None))
        self._take(collection, doc_id, time.time(), {**(old or {}), **fields}, None)

    async def delete(self, collection: str, doc_id: str) -> None:
        self._take(collection, doc_id, time.time(), None, None)

    def all(self, collection: str) -> dict[str, Any]:
        return {i: d for (c, i), (_, d) in self._documents.items() if c == collection and d is not None}

    def collections(self) -> list[str]:
        return sorted({collection for collection, _ in self._documents})

    def size(self) -> int:
        return len(self._documents)

    def state(self) -> list[str]:
        """A digest of everything."""
        text = json.dumps(sorted((*key, at) for key, (at, _) in self._documents.items()))
        return [hashlib.sha256(text.encode()).hexdigest()]

    def set_budget(self, budget: float | None) -> None:
        """The flood knows no budget."""

    def figures(self) -> dict[str, Any]:
        return {"sent": self._sent, "received": self._received, "links": [{} for _ in self._peers]}

    async def stop_sync(self) -> None:
        self._on.clear()
        for socket in list(self._peers):
            await socket.close()  # type: ignore[attr-defined]

    async def start_sync(self) -> None:
        self._on.set()

    def _take(self, collection: str, doc_id: str, at: float, document: dict[str, Any] | None, giver: object) -> None:
        old = self._documents.get((collection, doc_id))
        if old is not None and old[0] >= at:
            return
        self._documents[collection, doc_id] = (at, document)
        self.on_new(collection, doc_id if document is not None else "-" + doc_id)
        text = json.dumps({"c": collection, "i": doc_id, "t": at, "d": document})
        for peer, queue in self._peers.items():
            if peer is not giver:
                queue.put_nowait(text)

    async def _accept(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=10.0, max_msg_size=0)
        await socket.prepare(request)
        await self._speak(socket)
        return socket

    async def _dial(self, session: aiohttp.ClientSession, peer: str) -> None:
        while True:
            try:
                await self._on.wait()
                async with session.ws_connect(f"http://{peer}/", heartbeat=10.0, max_msg_size=0) as socket:
                    await self._speak(socket)
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(0.5)

    async def _speak(self, socket: Any) -> None:
        queue: asyncio.Queue[str] = asyncio.Queue()
        for (collection, doc_id), (at, document) in self._documents.items():
            queue.put_nowait(json.dumps({"c": collection, "i": doc_id, "t": at, "d": document}))
        self._peers[socket] = queue
        try:
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._send(socket, queue))
                async for message in socket:
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        break
                    self._received += len(message.data)
                    got = json.loads(message.data)
                    self._take(got["c"], got["i"], got["t"], got["d"], socket)
                sending.cancel()
        except* (ConnectionError, aiohttp.ClientError):
            pass
        finally:
            del self._peers[socket]

    async def _send(self, socket: Any, queue: asyncio.Queue[str]) -> None:
        while True:
            text = await queue.get()
            self._sent += len(text)
            await socket.send_str(text)
