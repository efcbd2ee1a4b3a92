"""Proof of life by hash chain.

Owns the chain: a random seed hashed `length` times gives the end, which a signature covers; showing the value `n`
steps before the end proves that `n` seconds have been lived since, for 16 bytes and no signature. Keeps the rule that a
position is shown once the one before may be known. Must not know about documents or clocks.
"""

from __future__ import annotations

import hashlib

VALUE_BYTES = 16
# Somewhat more than an hour of seconds: a new signed end costs some 250 bytes then (2 bytes a heartbeat), and making or
# following a whole chain about 1.5 ms.
CHAIN_LENGTH = 4096
# What following a hostile chain may cost at most: 6 ms.
MAX_CHAIN_LENGTH = 1 << 14
_CHECKPOINT = 128


def step(value: bytes, times: int = 1) -> bytes:
    """`value` hashed `times` times."""
    sha256 = hashlib.sha256
    for _ in range(times):
        value = sha256(value).digest()[:VALUE_BYTES]
    return value


class Chain:
    """The secret side of a chain."""

    __slots__ = ("_marks", "length", "seed")

    def __init__(self, seed: bytes, length: int = CHAIN_LENGTH) -> None:
        self.seed = seed
        self.length = length
        # Made when first asked for: a restart has as many chains as this node has reporters, and most are done with.
        self._marks: list[bytes] = []

    @property
    def end(self) -> bytes:
        """What is signed: position 0."""
        return self.preimage(0)

    def preimage(self, position: int) -> bytes:
        """The value `position` steps before the end."""
        if not 0 <= position <= self.length:
            raise ValueError(f"a chain of {self.length} has no position {position}")
        if not self._marks:
            self._marks.append(self.seed)
            for _ in range(self.length // _CHECKPOINT):
                self._marks.append(step(self._marks[-1], _CHECKPOINT))
        steps = self.length - position
        return step(self._marks[steps // _CHECKPOINT], steps % _CHECKPOINT)


def proves(preimage: bytes, position: int, known: bytes, known_position: int) -> bool:
    """Whether `preimage` at `position` leads to `known`, which was shown (or signed) for `known_position`."""
    return (
        len(preimage) == VALUE_BYTES
        and known_position <= position <= MAX_CHAIN_LENGTH
        and step(preimage, position - known_position) == known
    )
