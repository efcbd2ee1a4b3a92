"""Carries one file from one host to another by one bearer alone, with no TLS and nothing of ours above it.

Run in a host's namespace: `python -m bench.carry give KIND ADDRESS FILE` and `... take KIND ADDRESS OWN SIZE`. KIND is
`tcp:CONNECTIONS:CONGESTION` (empty: the host's), `udp` (src's bearer) or `fec` (bench/fec.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import sys
from pathlib import Path

from bench import fec
from peat_p2p.core.address import HostPort
from peat_p2p.swarm.bearers.relay import Service, open_bearers

PORT = 4300
_RANGE = struct.Struct("!QQ")
_READ = 1 << 16


async def _serve(data: bytes, address: str, congestion: str) -> asyncio.Server:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            sock = writer.get_extra_info("socket")
            if congestion:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
            start, stop = _RANGE.unpack(await reader.readexactly(_RANGE.size))
            for at in range(start, stop, _READ):
                writer.write(data[at : min(stop, at + _READ)])
                await writer.drain()
            writer.write_eof()
            await reader.read(1)

    return await asyncio.start_server(answer, address, PORT)


async def _fetch(address: HostPort, start: int, stop: int) -> bytes:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(_RANGE.pack(start, stop))
    data = await reader.readexactly(stop - start)
    writer.close()
    return data


async def _by_tcp(address: HostPort, size: int, connections: int) -> bytes:
    edges = [size * number // connections for number in range(connections + 1)]
    async with asyncio.TaskGroup() as group:
        parts = [group.create_task(_fetch(address, start, stop)) for start, stop in itertools.pairwise(edges)]
    return b"".join(part.result() for part in parts)


async def give(kind: str, address: str, file: Path) -> None:
    data = await asyncio.to_thread(file.read_bytes)
    if kind == "fec":
        await fec.give(data, address, PORT)
        return
    _, _, rest = kind.partition(":")
    async with await _serve(data, address, rest.partition(":")[2]):
        if kind == "udp":
            async with open_bearers(HostPort(address, PORT), {Service.METADATA: HostPort(address, PORT)}):
                await asyncio.Event().wait()
        await asyncio.Event().wait()


async def take(kind: str, address: str, own: str, size: int) -> bytes:
    if kind == "fec":
        return await fec.take(address, own, PORT, size)
    if kind == "udp":
        async with open_bearers(HostPort(own, PORT), {}) as bearers:
            return await _by_tcp(await bearers.port_to(HostPort(address, PORT), Service.METADATA), size, 1)
    return await _by_tcp(HostPort(address, PORT), size, int(kind.split(":")[1]))


async def main(words: list[str]) -> None:
    if words[0] == "give":
        await give(words[1], words[2], Path(words[3]))
        return
    data = await take(words[1], words[2], words[3], int(words[4]))
    await asyncio.to_thread(Path(words[5]).write_bytes, data)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1:]))
