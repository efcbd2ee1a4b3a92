"""The first request of a fetch from nothing over a long path: the index, and behind it the first chunks at once.

Asked for one after the other, the chunks would come a round trip and the reading of the index later, and a link that
has only just begun to fill would run dry. The answer goes on as any stream of chunks (`feeds`), which takes it over.
Must not know the transfer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from peat_p2p.core.errors import UnavailableError
from peat_p2p.swarm.asks import FIRST_DEPTH, Ask
from peat_p2p.swarm.metadata import ChunkAnswer, MetadataClient, Partial
from peat_p2p.swarm.peers import PeerCandidate
from peat_p2p.swarm.torrent import ParsedInfo

AHEAD = FIRST_DEPTH  # bytes of chunks behind the index: what a stream would be asked for first


class Opening:
    """One such request. `begin` it, then either `go_on` with it or `close` it."""

    def __init__(self, client: MetadataClient, peer: PeerCandidate, infohash: str) -> None:
        self.peer = peer
        self._client = client
        self._infohash = infohash
        self._asks: asyncio.Future[AsyncIterator[bytes]] = asyncio.get_running_loop().create_future()
        self._stack = AsyncExitStack()
        self._answer: ChunkAnswer | None = None

    async def begin(self, partial: Partial) -> ParsedInfo:
        """The torrent metadata. Raises what `MetadataClient.index` does."""
        try:
            answer = await self._stack.enter_async_context(
                self._client.chunks(self.peer, self._infohash, self._later(), straight=False, ahead=AHEAD)
            )
            parsed = await self._client.index(self.peer, self._infohash, answer, partial)
        except BaseException:
            await self.close()
            raise
        self._answer = answer
        return parsed

    def go_on(self, asks: AsyncIterator[bytes]) -> ChunkAnswer:
        """The answer from the first chunk on, for which `asks` asks more. Raises UnavailableError if it is closed."""
        if self._answer is None or self._asks.done():
            raise UnavailableError("the stream is closed")
        self._asks.set_result(asks)
        return self._answer

    async def close(self) -> int:
        """End it. What is on its way is lost; returns how many bytes had come of what nobody has taken."""
        answer, self._answer = self._answer, None
        self._asks.cancel()
        untaken = answer.untaken() if answer is not None else 0
        await self._stack.aclose()
        return untaken

    async def _later(self) -> AsyncIterator[bytes]:
        yield Ask(0, 1).encode()  # a request is on its way when its body begins
        async for ask in await self._asks:
            yield ask
