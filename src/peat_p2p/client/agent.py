"""The SDK's face of an agent's control service.

Owns the calls of `peat.agent.v1.PeatAgent`: what `peat publish`, `peat pull` and `peat packages` ask of the agent
beside them. The generated messages are handed on as they are.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from peat_p2p.client.channel import DEFAULT_TIMEOUT, ChannelClient
from peat_p2p.wire.gen.peat.agent.v1 import agent_pb as pb
from peat_p2p.wire.gen.peat.agent.v1.agent_connect import PeatAgentClient

T = TypeVar("T")


class AgentClient(ChannelClient):
    """The calls of one agent; publishing and pulling take as long as they take."""

    _WHAT = "agent"

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        super().__init__(address, token=token, tls=tls, timeout=timeout)
        self._agent = self._channel.client(PeatAgentClient)

    async def call(self, call: Callable[[PeatAgentClient], Awaitable[T]], *, changes: bool = True) -> T:
        """Make any unary call: `call` is given the generated client. One that `changes` nothing may be made again."""
        make = self._channel.write if changes else self._channel.read
        return await make(lambda: call(self._agent))

    def stream(self, call: Callable[[PeatAgentClient], AsyncIterator[T]]) -> AsyncGenerator[T, None]:
        """Read any server stream: `call` is given the generated client."""
        return self._channel.stream(lambda: call(self._agent))

    def publish(self, path: str, name: str, version: str, arch: str = "") -> AsyncGenerator[pb.PublishProgress, None]:
        """Publish what lies at `path` on the agent's machine; the last message has `done`."""
        request = pb.PublishRequest(path=path, name=name, version=version, arch=arch)
        return self.stream(lambda agent: agent.publish(request))

    def pull(
        self, name: str, version: str = "", arch: str = "", destination: str = "", *, wait: bool = False
    ) -> AsyncGenerator[pb.Transfer, None]:
        """Fetch a package and follow it; the last message has the state "complete" or "failed"."""
        request = pb.PullRequest(name=name, version=version, arch=arch, destination=destination, wait=wait)
        return self.stream(lambda agent: agent.pull(request))

    async def transfers(self) -> list[pb.Transfer]:
        """What the agent fetches or has fetched."""
        request = pb.ListTransfersRequest()
        return list((await self.call(lambda agent: agent.list_transfers(request), changes=False)).transfers)

    async def packages(self) -> list[pb.Package]:
        """The packages the fleet knows, with what this agent has of each."""
        request = pb.ListPackagesRequest()
        return list((await self.call(lambda agent: agent.list_packages(request), changes=False)).packages)
