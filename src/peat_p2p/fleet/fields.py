"""Reading documents that anybody may have written.

Owns the tolerant readers: a missing or wrongly typed field is its default, never an error, because one bad document
must not hide the others. Must not know what the fields mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

Fields: TypeAlias = Mapping[str, object]
NOTHING: Mapping[str, str] = MappingProxyType({})
_INT64 = 1 << 63


def parse(document: Fields | str) -> Fields:
    """The document's fields; text that is no JSON object has none."""
    if not isinstance(document, str):
        return document
    try:
        parsed = json.loads(document)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def text(fields: Fields, key: str, default: str = "") -> str:
    """The field's text."""
    value = fields.get(key)
    return value if isinstance(value, str) else default


def whole(fields: Fields, key: str, default: int = 0) -> int:
    """The field's integer, within 64 bits; a number with a fraction counts as its whole part."""
    value = fields.get(key)
    if isinstance(value, float) and value == value and abs(value) < _INT64:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64:
        return value
    return default


def number(fields: Fields, key: str, default: float = 0.0) -> float:
    """The field's finite number."""
    value = fields.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300:
        return float(value)
    return default


def table(fields: Fields, key: str) -> Fields:
    """The field's JSON object."""
    value = fields.get(key)
    return value if isinstance(value, Mapping) else {}


def texts_by_name(fields: Fields, key: str) -> Mapping[str, str]:
    """The field's JSON object, as far as its values are text."""
    return {name: value for name, value in table(fields, key).items() if isinstance(value, str)}


def texts(fields: Fields, key: str) -> tuple[str, ...]:
    """The field's list, as far as it is of texts."""
    value = fields.get(key)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list | tuple) else ()
