"""Typed messages and the JSON they are stored as.

Owns the mapping between Platform, Cell, Track and Command and their documents: keys are the proto field names, enums
are integers, int64 are JSON numbers. Writing states every field that has no presence, since a default is a value like
any other, and leaves an absent optional field out, so that merging keeps what the document has. Reading never fails: a
missing or wrongly typed field is its default, unknown keys are dropped, and the id is the document's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from protobuf import DescFieldValueEnum, DescFieldValueList, DescFieldValueScalar, Message, ScalarType

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.wire.gen.peat.sidecar.v1.sidecar_pb import Cell, Command, Platform, Track

M = TypeVar("M", bound=Message[Any])

# Where each message lives.
COLLECTIONS: dict[type[Message[Any]], str] = {
    Platform: "platforms",
    Cell: "cells",
    Track: "tracks",
    Command: "commands",
}

_MISSING = object()


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    optional: bool
    read: Callable[[object], object]
    write: Callable[[Any], object]


def to_fields(message: Message[Any]) -> dict[str, str]:
    """The document's fields as JSON text, by key. Raises InvalidInputError for what JSON cannot say."""
    fields: dict[str, str] = {}
    for field in _PLANS[type(message)]:
        if field.optional and not message.has_field(field.name):
            continue
        value = field.write(getattr(message, field.name))
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidInputError(f"{field.name} is {value}: a document holds finite numbers only")
        fields[field.name] = json.dumps(value, ensure_ascii=False)
    return fields


def to_json(message: Message[Any]) -> str:
    """The document as one JSON object. Raises InvalidInputError for what JSON cannot say."""
    return "{" + ",".join(f'"{key}":{text}' for key, text in to_fields(message).items()) + "}"


def from_json(kind: type[M], doc_id: str, text: str) -> M:
    """Read the document `doc_id` as a `kind`. Never raises: what cannot be read is left at its default."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = {}
    return from_mapping(kind, doc_id, value if isinstance(value, dict) else {})


def from_mapping(kind: type[M], doc_id: str, document: Mapping[str, object]) -> M:
    """Like `from_json`, for an object that is parsed already."""
    values: dict[str, Any] = {}
    for field in _PLANS[kind]:
        raw = document.get(field.name, _MISSING)
        value = _MISSING if raw is _MISSING else field.read(raw)
        if value is not _MISSING:
            values[field.name] = value
    values["id"] = doc_id
    return kind(**values)


def _integers(low: int, high: int) -> Callable[[object], object]:
    def read(raw: object) -> object:
        if isinstance(raw, float) and raw.is_integer():
            raw = int(raw)
        return raw if isinstance(raw, int) and not isinstance(raw, bool) and low <= raw <= high else _MISSING

    return read


def _double(raw: object) -> object:
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return _MISSING
    try:
        number = float(raw)
    except OverflowError:
        return _MISSING
    return number if math.isfinite(number) else _MISSING


def _string(raw: object) -> object:
    return raw if isinstance(raw, str) and _is_utf8(raw) else _MISSING


def _strings(raw: object) -> object:
    if not isinstance(raw, list) or any(_string(item) is _MISSING for item in raw):
        return _MISSING
    return list(raw)


def _is_utf8(text: str) -> bool:
    """A lone surrogate is legal in JSON text and cannot be sent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_SCALARS: dict[ScalarType, tuple[Callable[[object], object], Callable[[Any], object]]] = {
    ScalarType.STRING: (_string, str),
    ScalarType.DOUBLE: (_double, float),
    ScalarType.INT64: (_integers(-(2**63), 2**63 - 1), int),
    ScalarType.UINT32: (_integers(0, 2**32 - 1), int),
}


_PRESENT = 1  # what a field descriptor's `presence` says of proto3 `optional`


def _kind(value: object) -> tuple[Callable[[object], object], Callable[[Any], object]]:
    """How a field's value is read from and written to JSON."""
    if isinstance(value, DescFieldValueEnum):
        return _integers(-(2**31), 2**31 - 1), int
    if isinstance(value, DescFieldValueList):
        return _strings, list
    if isinstance(value, DescFieldValueScalar) and value.scalar in _SCALARS:
        return _SCALARS[value.scalar]
    raise TypeError(f"no document has a field of the kind {value!r}")


_PLANS: dict[type[Message[Any]], tuple[_Field, ...]] = {
    kind: tuple(_Field(field.name, field.presence == _PRESENT, *_kind(field.value)) for field in kind.desc().fields)
    for kind in COLLECTIONS
}
