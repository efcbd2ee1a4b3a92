"""Updates as bytes.

Owns the compact form in which an update travels; the key is sent apart, since a link names a key once. Keeps the rule
that any bytes either decode to an update or raise InvalidInputError.
"""

from __future__ import annotations

import struct

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.documents.chain import VALUE_BYTES
from peat_p2p.documents.rules import CERTIFICATES
from peat_p2p.documents.types import Beat, BeatUpdate, CertificateUpdate, PartKey, PartUpdate, Update

_CERTIFICATE, _BEAT, _PART, _PART_WITH_BEAT = 1, 2, 3, 4
_PART_HEAD = struct.Struct(">QQ64s")
_MAX_SINCE = 1 << 32


def encode_update(update: Update) -> bytes:
    """The update without its key. A proof of life has about 20 bytes."""
    if isinstance(update, CertificateUpdate):
        return bytes((_CERTIFICATE,)) + update.certificate
    if isinstance(update, BeatUpdate):
        return bytes((_BEAT,)) + _beat_bytes(update.beat)
    kind = _PART if update.beat is None else _PART_WITH_BEAT
    beat = b"" if update.beat is None else _beat_bytes(update.beat)
    head = _PART_HEAD.pack(update.generation, update.version, update.signature)
    return b"".join((bytes((kind,)), head, _varint(update.since), beat, update.payload))


def decode_update(key: PartKey, data: bytes) -> Update:
    """Read what `encode_update` made. Raises InvalidInputError."""
    kind, at = data[:1], 1
    if kind == bytes((_CERTIFICATE,)):
        if key.collection != CERTIFICATES:
            raise InvalidInputError(f"a certificate came as a part of {key.collection[:140]!r}")
        return CertificateUpdate(key, data[at:])
    if kind == bytes((_BEAT,)):
        beat, at = _read_beat(data, at)
        if at != len(data):
            raise InvalidInputError("an update has bytes left over")
        return BeatUpdate(key, beat)
    if kind not in (bytes((_PART,)), bytes((_PART_WITH_BEAT,))):
        raise InvalidInputError("an update is of no known kind")
    try:
        generation, version, signature = _PART_HEAD.unpack_from(data, at)
    except struct.error:
        raise InvalidInputError("an update is cut short") from None
    since, at = _read_varint(data, at + _PART_HEAD.size)
    shown = None
    if kind == bytes((_PART_WITH_BEAT,)):
        shown, at = _read_beat(data, at)
    return PartUpdate(key, generation, version, since, data[at:], signature, shown)


def _beat_bytes(beat: Beat) -> bytes:
    return _varint(beat.position) + beat.preimage


def _read_beat(data: bytes, at: int) -> tuple[Beat, int]:
    position, at = _read_varint(data, at)
    preimage = data[at : at + VALUE_BYTES]
    if len(preimage) != VALUE_BYTES:
        raise InvalidInputError("a proof of life is cut short")
    return Beat(position, preimage), at + VALUE_BYTES


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data):
            raise InvalidInputError("an update is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 28:
            raise InvalidInputError("a number in an update is too large")
    if value >= _MAX_SINCE:
        raise InvalidInputError("a number in an update is too large")
    return value, at
