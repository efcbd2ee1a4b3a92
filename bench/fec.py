"""A reliable UDP bearer that repairs loss by RaptorQ instead of sending again: the alternative that is measured.

The same pacer as src's bearer; blocks of 64 symbols, each followed at once by as many repair symbols as the loss seen
so far asks for; a block that still cannot be decoded a round trip later gets more. Kept here only to reproduce the
figures of `python -m bench bearers`.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from collections import OrderedDict
from dataclasses import dataclass

from raptorq import Decoder, Encoder  # type: ignore[import-untyped]

from peat_p2p.swarm.bearers.pace import Pacer

SYMBOL = 1380
_BLOCK = 64 * SYMBOL
_PACKET = SYMBOL + 4
_DATA = struct.Struct("!BII")
_HELLO, _SYMBOL, _REPORT = 1, 2, 3
_REPORT_HEAD = struct.Struct("!BIdQQIH")
_STATE = struct.Struct("!IH")
_DONE = 0xFFFF
_OPEN_BYTES = 8 << 20


def _socket(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
    sock.bind((address, port))
    return sock


@dataclass(slots=True)
class _Block:
    """A block on its way: how many symbols were sent of it, the last when, and how many are known to be there."""

    encoder: Encoder
    symbols: int
    packets: list[bytes]
    sent: int = 0
    goal: int = 0
    last: float = 0.0
    here: int = 0


class _Sender:
    def __init__(self, sock: socket.socket, data: bytes) -> None:
        self.sock = sock
        self.blocks = [data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK)]
        self.pacer = Pacer(_PACKET + _DATA.size + 28)
        self.peer: tuple[str, int] | None = None
        self.open: OrderedDict[int, _Block] = OrderedDict()
        self.next = 0
        self.seq = 0
        self.flight: OrderedDict[int, float] = OrderedDict()
        self.counted = (0, 0)
        self.loss = 0.02
        self.limited = True
        self.wake = asyncio.Event()

    def readable(self) -> None:
        while True:
            try:
                datagram, address = self.sock.recvfrom(2048)
            except BlockingIOError:
                return
            self.peer = address
            if datagram[0] == _REPORT:
                self.report(datagram)
            self.wake.set()

    def report(self, datagram: bytes) -> None:
        now = asyncio.get_running_loop().time()
        _, newest, clock, received, count, held, states = _REPORT_HEAD.unpack_from(datagram)
        sent_at = self.flight.get(newest)
        if sent_at is not None:
            self.pacer.on_rtt(now, max(1e-4, now - sent_at - held * 1e-4))
        gone = [seq for seq in self.flight if seq <= newest]
        for seq in gone:
            del self.flight[seq]
        fresh, came = newest + 1 - self.counted[0], count - self.counted[1]
        lost = max(0, fresh - came)
        if fresh > 0:
            self.counted = (newest + 1, count)
            self.loss += (lost / fresh - self.loss) * min(0.2, fresh / 500)
        size = self.pacer.packet_bytes
        flying = len(self.flight) * size
        self.pacer.on_ack(now, clock, received, came, lost, flying, self.limited, sent_at)
        self.limited = False
        at = _REPORT_HEAD.size
        for _ in range(states):
            number, here = _STATE.unpack_from(datagram, at)
            at += _STATE.size
            block = self.open.get(number)
            if block is None:
                continue
            if here == _DONE:
                del self.open[number]
                continue
            block.here = here
            if block.sent >= block.goal and now - block.last > self.pacer.smooth_rtt + 2 * self.pacer.rtt_spread:
                lacking = max(1, block.symbols + 1 - here)
                block.goal += math.ceil(lacking / (1 - min(self.loss, 0.5))) + 1

    def symbol(self) -> bytes | None:
        for number, block in self.open.items():
            if block.sent < block.goal:
                return self.take(number, block)
        if self.next < len(self.blocks) and len(self.open) * _BLOCK < _OPEN_BYTES:
            data = self.blocks[self.next]
            symbols = math.ceil(len(data) / SYMBOL)
            # Enough for the loss seen and twice its spread: more at once is cheaper than a round trip.
            mean = symbols * self.loss / (1 - min(self.loss, 0.5))
            goal = symbols + math.ceil(mean + math.sqrt(mean)) + 1
            block = _Block(Encoder.with_defaults(data, _PACKET), symbols, [], goal=goal)
            self.open[self.next] = block
            self.next += 1
            return self.take(self.next - 1, block)
        return None

    def take(self, number: int, block: _Block) -> bytes:
        if block.sent >= len(block.packets):
            block.packets = block.encoder.get_encoded_packets(max(8, block.goal - block.symbols))
        packet = block.packets[block.sent]
        block.sent += 1
        block.last = asyncio.get_running_loop().time()
        return _DATA.pack(_SYMBOL, self.seq, number) + packet

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self.sock.fileno(), self.readable)
        ready = loop.time()
        while True:
            now = loop.time()
            size = self.pacer.packet_bytes
            while self.peer and now >= ready and len(self.flight) * size < self.pacer.window:
                datagram = self.symbol()
                if datagram is None:
                    self.limited = True
                    break
                self.flight[self.seq] = now
                self.seq += 1
                try:
                    self.sock.sendto(datagram, self.peer)
                except BlockingIOError:
                    pass
                ready = max(ready, now - 0.005) + size / self.pacer.rate
            if self.flight and now - next(reversed(self.flight.values())) > 2.0:
                self.flight.clear()  # reports were lost
            self.wake.clear()
            try:
                async with asyncio.timeout(max(0.0005, min(0.05, ready - loop.time())) if self.open else 0.05):
                    await self.wake.wait()
            except TimeoutError:
                pass


async def give(data: bytes, address: str, port: int) -> None:
    """Send to whoever says hello, for ever."""
    await _Sender(_socket(address, port), data).run()


class _Receiver:
    def __init__(self, sock: socket.socket, size: int) -> None:
        self.sock = sock
        self.size = size
        self.decoders: dict[int, Decoder] = {}
        self.here: dict[int, int] = {}
        self.done: dict[int, bytes] = {}
        self.newest, self.newest_at, self.received, self.count = 0, 0.0, 0, 0
        self.fresh: set[int] = set()
        self.total = math.ceil(size / _BLOCK)
        self.end = asyncio.Event()

    def readable(self) -> None:
        now = asyncio.get_running_loop().time()
        while True:
            try:
                datagram = self.sock.recv(2048)
            except BlockingIOError:
                return
            _, seq, number = _DATA.unpack_from(datagram)
            self.received += len(datagram) + 28
            self.count += 1
            if seq >= self.newest:
                self.newest, self.newest_at = seq, now
            self.fresh.add(number)
            if number in self.done:
                continue
            decoder = self.decoders.get(number)
            if decoder is None:
                length = min(_BLOCK, self.size - number * _BLOCK)
                decoder = self.decoders[number] = Decoder.with_defaults(length, _PACKET)
            self.here[number] = self.here.get(number, 0) + 1
            data = decoder.decode(datagram[_DATA.size :])
            if data is not None:
                self.done[number] = data
                del self.decoders[number]
                if len(self.done) == self.total:
                    self.end.set()

    def report(self) -> bytes:
        now = asyncio.get_running_loop().time()
        told = [*self.decoders, *sorted(self.fresh & self.done.keys())][-200:]
        self.fresh = {number for number in self.fresh if number not in self.done}
        held = min(0xFFFFFFFF, int((now - self.newest_at) * 1e4))
        head = _REPORT_HEAD.pack(_REPORT, self.newest, self.newest_at, self.received, self.count, held, len(told))
        return head + b"".join(_STATE.pack(n, _DONE if n in self.done else self.here[n]) for n in told)


async def take(address: str, own: str, port: int, size: int) -> bytes:
    """Fetch `size` bytes."""
    sock = _socket(own, port)
    receiver = _Receiver(sock, size)
    asyncio.get_running_loop().add_reader(sock.fileno(), receiver.readable)
    told = 0
    while not receiver.end.is_set():
        hello = receiver.count == 0
        if hello or receiver.count != told:
            told = receiver.count
            sock.sendto(bytes((_HELLO,)) if hello else receiver.report(), (address, port))
        try:
            async with asyncio.timeout(0.5 if hello else 0.03):
                await receiver.end.wait()
        except TimeoutError:
            pass
    for _ in range(3):
        sock.sendto(receiver.report(), (address, port))
    return b"".join(receiver.done[number] for number in range(receiver.total))
