"""Which chunks of a package somebody has, one bit for each, as agents tell each other. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from peat_p2p.core.errors import InvalidInputError

_BITS = 8


def pack_map(held: Sequence[bool]) -> bytes:
    """One bit for each chunk, the first the highest of the first byte; what is left of the last byte is 0."""
    bits = "".join("1" if one else "0" for one in held)
    size = (len(bits) + _BITS - 1) // _BITS
    return int(bits.ljust(size * _BITS, "0") or "0", 2).to_bytes(size, "big")


def unpack_map(data: bytes, chunks: int) -> list[bool]:
    """What `pack_map` packed, of so many chunks. Raises InvalidInputError."""
    if len(data) != (chunks + _BITS - 1) // _BITS:
        raise InvalidInputError(f"a map of {len(data)} bytes for {chunks} chunks")
    bits = f"{int.from_bytes(data, 'big'):0{len(data) * _BITS}b}" if data else ""
    if "1" in bits[chunks:]:
        raise InvalidInputError(f"a map of more than {chunks} chunks")
    return [bit == "1" for bit in bits[:chunks]]
