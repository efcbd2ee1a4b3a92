"""Copies of urgent batches, as datagrams carry them beside the link.

Owns when a link asks for them and what their records say: whole keys instead of refs, as nothing that came before may
be counted on. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.mesh.frames import Batch, Express, FrameError, Hello, RecordReader, decode_frame, encode_frame
from peat_p2p.mesh.pace import Patience
from peat_p2p.mesh.ports import Key, Store, Update
from peat_p2p.mesh.types import LONG_WAY

MOST_BYTES = 1150  # of keys and bodies in a datagram: no link cuts it up
_MOST_RECORDS = 4  # a longer batch is a backlog, and nobody waits for its last part
_PER_ITEM = 8
# Batches copied at once, and a second in the long run: of a backlog, copies would only be in its way.
_BATCHES = (8.0, 2.0)


class Copies:
    """The copies of one link. `long_way`: see MeshConfig."""

    def __init__(self, store: Store, long_way: float = LONG_WAY) -> None:
        self._store = store
        self._long_way = long_way
        self.express: Express | None = None
        """Where they may come in here, until the peer is told of it."""
        self.wanted = False
        """Whether the peer has asked for them."""
        self._batches = Patience(*_BATCHES, 0.0)

    def offer(self, peer: Hello | None, round_trip: float) -> Express | None:
        """What to send to a peer that knows it, once the way has turned out to be long; not None once."""
        if self.express is None or peer is None or round_trip < self._long_way:
            return None
        express, self.express = self.express, None
        return express if peer.express else None

    def make(self, parts: Iterable[tuple[Key, bytes]], now: float) -> list[bytes]:
        """Records with the state of `parts` (key, encoded update), without those that no datagram holds."""
        if not self.wanted or not self._batches.take(now):
            return []
        packed: list[list[tuple[bytes, bytes]]] = []
        room = 0
        for key, body in parts:
            name = self._store.encode_key(key)
            size = len(name) + len(body) + _PER_ITEM
            if not body or size > MOST_BYTES:
                continue
            if size > room:
                packed.append([])
                room = MOST_BYTES
            packed[-1].append((name, body))
            room -= size
        return [_record(items) for items in packed[:_MOST_RECORDS]]

    def read(self, record: bytes) -> list[tuple[Key, Update]]:
        """The parts of a record, each with its update; none of one that cannot be read."""
        try:
            return [part for body in RecordReader().feed(record) for part in self._parts(body)]
        except InvalidInputError:
            return []

    def _parts(self, body: bytes) -> Iterator[tuple[Key, Update]]:
        batch = decode_frame(body)
        if not isinstance(batch, Batch) or batch.klass != 0 or batch.number != 0 or batch.through is not None:
            raise FrameError("a copy of something else than an urgent batch")
        if [ref for ref, _ in batch.items] != list(range(len(batch.new_keys))):
            raise FrameError("a copy that does not name its parts")
        for name, (_, state) in zip(batch.new_keys, batch.items, strict=True):
            key = self._store.decode_key(name)
            yield key, self._store.decode(key, state)


def _record(items: list[tuple[bytes, bytes]]) -> bytes:
    bodies = tuple((ref, body) for ref, (_, body) in enumerate(items))
    return encode_frame(Batch(0, 0, bodies, tuple(name for name, _ in items)))
