"""Maps of what somebody holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.swarm.holdmap import pack_map, unpack_map


@given(st.lists(st.booleans(), max_size=200))
def test_a_map_comes_back(held: list[bool]) -> None:
    packed = pack_map(held)
    assert len(packed) == (len(held) + 7) // 8
    assert unpack_map(packed, len(held)) == held


@given(st.binary(max_size=8), st.integers(0, 70))
def test_what_is_no_map_is_refused(data: bytes, chunks: int) -> None:
    try:
        held = unpack_map(data, chunks)
    except InvalidInputError:
        return
    assert pack_map(held) == data


def test_the_first_chunk_is_the_highest_bit() -> None:
    assert pack_map([True, False, False, False, False, False, False, False, True]) == b"\x80\x80"
    with pytest.raises(InvalidInputError, match="more than 9 chunks"):
        unpack_map(b"\x80\xc0", 9)
    with pytest.raises(InvalidInputError, match="a map of 1 bytes for 9 chunks"):
        unpack_map(b"\x80", 9)
