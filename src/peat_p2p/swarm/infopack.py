"""How an info dictionary crosses a link: packed by zstd, whole or in short form. Pure.

Rule: what comes is bounded in size before it is looked at.
"""

from __future__ import annotations

import zstandard
from blake3 import blake3

from peat_p2p.core.errors import InvalidInputError, TooLargeError
from peat_p2p.swarm.torrent import MAX_INFO_BYTES, ParsedInfo, parse_info, restored, shortened

WHOLE_FORM = "application/zstd"
SHORT_FORM = "application/vnd.peat.torrent-short+zstd"


def pack_info(info: bytes, *, short: bool) -> bytes:
    """An info dictionary as it is sent."""
    packed: bytes = zstandard.ZstdCompressor(level=3).compress(shortened(info) if short else info)
    return packed


def etag_of(packed: bytes) -> str:
    """The entity tag of a packing: another version of zstd may pack otherwise, and only parts of one are joined."""
    return f'"{blake3(packed).hexdigest()[:32]}"'


def unpack_info(packed: bytes, sender: str, infohash: str, ca_pem: bytes, *, short: bool) -> ParsedInfo:
    """What `sender` packed, checked to be of this infohash and in the formation of this CA. Raises PeatError."""
    data = unpack(packed, sender)
    return restored(data, infohash, ca_pem) if short else parse_info(data, infohash, ca_pem)


def unpack(packed: bytes, sender: str) -> bytes:
    """What zstd packed, of `MAX_INFO_BYTES` at most. Raises InvalidInputError or TooLargeError."""
    try:
        with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
            data = bytes(reader.read(MAX_INFO_BYTES + 1))
    except zstandard.ZstdError as error:
        raise InvalidInputError(f"{sender} sent torrent metadata that cannot be unpacked") from error
    if len(data) > MAX_INFO_BYTES:
        raise TooLargeError(f"{sender} sent torrent metadata of more than {MAX_INFO_BYTES} bytes")
    return data
