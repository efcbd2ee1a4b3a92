"""JSON objects as text per top-level field.

Owns taking an object apart and putting it together without touching a value: what was written comes back, character
for character, so 64-bit integers and decimals survive. Keeps the rule that what is stored is valid JSON (RFC 8259) with
no name twice. Must not interpret values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed leaves it out

from peat_p2p.core.errors import InvalidInputError

# Python's own limit depends on who calls, so replicas could differ in what they accept.
MAX_DEPTH = 100
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
# Most values are one of these, and a parser takes four times as long.
_SIMPLE = re.compile(r'"[^"\\\x00-\x1f\ud800-\udfff]*"|-?(?:0|[1-9][0-9]*)|true|false|null')
_BLANK = " \t\n\r"
_SPACE = re.compile(r"[ \t\n\r]*")


class _NameTwiceError(ValueError):
    """An object inside a value has a name twice."""


def _no_constant(name: str) -> str:
    raise ValueError(f"{name} is not a JSON value")


def _unique(pairs: list[tuple[str, object]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise _NameTwiceError(f"{twice!r} stands twice in one object")


# Numbers stay text: nothing is rounded, and a number of a million digits costs nothing.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_no_constant, object_pairs_hook=_unique)
_SCAN = _DECODER.scan_once  # type: ignore[attr-defined]  # typeshed leaves it out


def split_object(text: str) -> dict[str, str]:
    """The JSON text of each field of the object `text`. Raises InvalidInputError saying what is wrong and where."""
    _encodable(text, "the JSON")
    fields: dict[str, str] = {}
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        raise _bad(text, at, "a document is a JSON object, in braces")
    at = _skip(text, at + 1)
    if text[at : at + 1] == "}":
        at += 1
    else:
        while True:
            if text[at : at + 1] != '"':
                raise _bad(text, at, "a field's name in double quotes is missing")
            start = at
            try:
                name, at = scanstring(text, at + 1, True)
            except json.JSONDecodeError as error:
                raise _bad(text, error.pos, error.msg) from None
            if name in fields:
                raise _bad(text, start, f"field {name!r} stands twice")
            _encodable(name, "a field's name")
            at = _skip(text, at)
            if text[at : at + 1] != ":":
                raise _bad(text, at, f"a colon is missing after {name!r}")
            begin = _skip(text, at + 1)
            end = _value_end(text, begin, name)
            fields[name] = text[begin:end]
            at = _skip(text, end)
            if text[at : at + 1] == ",":
                at = _skip(text, at + 1)
                continue
            if text[at : at + 1] == "}":
                at += 1
                break
            raise _bad(text, at, "a comma or the closing brace is missing")
    at = _skip(text, at)
    if at != len(text):
        raise _bad(text, at, "there is something after the object")
    return fields


def check_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """Check fields given apart: each value one JSON value as text. Raises InvalidInputError."""
    checked: dict[str, str] = {}
    for name, text in fields.items():
        _encodable(name, "a field's name")
        if _SIMPLE.fullmatch(text):
            checked[name] = text
            continue
        _encodable(text, "the value of a field")
        if text[:1] not in _BLANK and _is_value(text):
            checked[name] = text
            continue
        begin = _skip(text, 0)
        end = _value_end(text, begin, name)
        if _skip(text, end) != len(text):
            raise _bad(text, end, f"there is something after the value of {name!r}")
        checked[name] = text[begin:end]
    return checked


def join_object(fields: Mapping[str, str]) -> str:
    """One JSON object of the fields, names sorted so that equal documents are equal text."""
    return "{" + ",".join(f"{_quoted(name)}:{fields[name]}" for name in sorted(fields)) + "}"


@lru_cache(maxsize=4096)
def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _value_end(text: str, begin: int, name: str) -> int:
    try:
        _, end = _DECODER.raw_decode(text, begin)
    except json.JSONDecodeError as error:
        raise _bad(text, error.pos, error.msg) from None
    except RecursionError:
        raise _bad(text, begin, f"the value of {name!r} is nested too deeply") from None
    except ValueError as error:
        raise _bad(text, begin, f"in the value of {name!r}: {error}") from None
    if _is_deep(text[begin:end]):
        raise _bad(text, begin, f"the value of {name!r} is nested too deeply: {MAX_DEPTH} levels are allowed")
    return end


def _is_value(text: str) -> bool:
    """Whether the text is exactly one value; the way that most take."""
    try:
        return bool(_SCAN(text, 0)[1] == len(text)) and not _is_deep(text)
    except (StopIteration, ValueError, RecursionError):
        return False


def _is_deep(value: str) -> bool:
    """Whether a JSON value is nested deeper than allowed."""
    if value.count("[") + value.count("{") <= MAX_DEPTH:
        return False
    depth = deepest = 0
    for character in _STRING.sub("", value):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest > MAX_DEPTH


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _encodable(text: str, what: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{what} holds half of a surrogate pair at character {error.start}") from None


def _bad(text: str, at: int, what: str) -> InvalidInputError:
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    return InvalidInputError(f"bad JSON at line {line} column {column}: {what}")
