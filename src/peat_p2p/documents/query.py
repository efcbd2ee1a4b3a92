"""Queries over documents.

Owns the query tree of subscriptions and what matches. Keeps the rules: a field that is missing matches nothing but
through Not; less and greater hold only between two numbers or two strings; numbers compare by value, exactly (1
equals 1.0). Must not know where queries come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from peat_p2p.core.errors import InvalidInputError

MAX_DEPTH = 64
MAX_NODES = 1024
# Longer numbers compare as text of digits at great cost, for no use.
_MAX_DIGITS = 400

Scalar = str | bool | None | Decimal


@dataclass(frozen=True, slots=True)
class Eq:
    """The field is the scalar `value` (JSON text)."""

    field: str
    value: str


@dataclass(frozen=True, slots=True)
class Less:
    """The field is less than the scalar `value` (JSON text) and of its kind."""

    field: str
    value: str


@dataclass(frozen=True, slots=True)
class Greater:
    """The field is greater than the scalar `value` (JSON text) and of its kind."""

    field: str
    value: str


@dataclass(frozen=True, slots=True)
class And:
    """Every clause matches (so none is a match)."""

    clauses: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Some clause matches (so none is no match)."""

    clauses: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The clause does not match."""

    clause: Query


@dataclass(frozen=True, slots=True)
class All:
    """Every document."""


Query = Eq | Less | Greater | And | Or | Not | All


class _NotScalar:
    """Stands for objects, arrays and what is no JSON at all: equal to nothing, in no order with anything."""


_NOT_SCALAR = _NotScalar()


def check(query: Query) -> None:
    """Raises InvalidInputError for a query that cannot be asked: a value that is no JSON scalar, too deep, too
    large."""
    nodes = 0
    pending: list[tuple[Query, int]] = [(query, 1)]
    while pending:
        node, depth = pending.pop()
        nodes += 1
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            raise InvalidInputError(f"a query has at most {MAX_NODES} clauses, nested at most {MAX_DEPTH} deep")
        if isinstance(node, Eq | Less | Greater):
            if isinstance(_scalar(node.value), _NotScalar):
                raise InvalidInputError(
                    f"the value {node.value[:80]!r} of a query on {node.field!r} is not a JSON scalar: write a number,"
                    ' true, false, null or a string in double quotes, such as "ready"'
                )
        elif isinstance(node, And | Or):
            pending += [(clause, depth + 1) for clause in node.clauses]
        elif isinstance(node, Not):
            pending.append((node.clause, depth + 1))


def matches(query: Query, fields: Mapping[str, str]) -> bool:
    """Whether a document with these fields (JSON text by name) matches."""
    if isinstance(query, All):
        return True
    if isinstance(query, And):
        return all(matches(clause, fields) for clause in query.clauses)
    if isinstance(query, Or):
        return any(matches(clause, fields) for clause in query.clauses)
    if isinstance(query, Not):
        return not matches(query.clause, fields)
    text = fields.get(query.field)
    if text is None:
        return False
    have, want = _scalar(text), _scalar(query.value)
    if isinstance(query, Eq):
        return type(have) is type(want) and not isinstance(have, _NotScalar) and have == want
    if isinstance(have, Decimal) and isinstance(want, Decimal):
        return have < want if isinstance(query, Less) else have > want
    if isinstance(have, str) and isinstance(want, str):
        return have < want if isinstance(query, Less) else have > want
    return False


def _scalar(text: str) -> Scalar | _NotScalar:
    if text.lstrip()[:1] in {"{", "["}:
        return _NOT_SCALAR
    try:
        value = json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _NOT_SCALAR
    return value if value is None or isinstance(value, str | bool | Decimal) else _NOT_SCALAR


def _number(text: str) -> Decimal:
    if len(text) > _MAX_DIGITS:
        raise ValueError("too many digits")
    value = Decimal(text)
    if value and abs(value.adjusted()) > _MAX_DIGITS:
        raise ValueError("too large or too small")
    return value


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is not JSON")
