"""Queries of a subscription, as the wire says them and as the replica answers them.

Owns the translation between SubscriptionQuery and `documents.query`, for the SDK and for the sidecar.
"""

from __future__ import annotations

from typing import Any

from protobuf import Oneof

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.documents.query import All, And, Eq, Greater, Less, Not, Or, Query
from peat_p2p.wire.gen.peat.sidecar.v1 import sidecar_pb as pb

MAX_DEPTH = 32


def to_proto(query: Query) -> pb.SubscriptionQuery:
    """The query as it is sent."""
    match query:
        case Eq(field, value):
            return _wire(Oneof("eq", pb.QueryEq(field=field, value=value)))
        case Less(field, value):
            return _wire(Oneof("lt", pb.QueryCmp(field=field, value=value)))
        case Greater(field, value):
            return _wire(Oneof("gt", pb.QueryCmp(field=field, value=value)))
        case And(clauses):
            return _wire(Oneof("and", pb.QueryAnd(clauses=[to_proto(c) for c in clauses])))
        case Or(clauses):
            return _wire(Oneof("or", pb.QueryOr(clauses=[to_proto(c) for c in clauses])))
        case Not(clause):
            return _wire(Oneof("not", to_proto(clause)))
        case All():
            return _wire(Oneof("all", pb.QueryAll()))


def _wire(q: Any) -> pb.SubscriptionQuery:
    # The generated constructor wants each literal's own type, which the type checker does not see through Oneof().
    return pb.SubscriptionQuery(q=q)


def from_proto(query: pb.SubscriptionQuery, depth: int = 0) -> Query:
    """Read a query that came in. Raises InvalidInputError."""
    if depth > MAX_DEPTH:
        raise InvalidInputError(f"the query nests deeper than {MAX_DEPTH}")
    match query.q:
        case Oneof("eq", pb.QueryEq() as it):
            return Eq(it.field, it.value)
        case Oneof("lt", pb.QueryCmp() as it):
            return Less(it.field, it.value)
        case Oneof("gt", pb.QueryCmp() as it):
            return Greater(it.field, it.value)
        case Oneof("and", pb.QueryAnd() as it):
            return And(tuple(from_proto(clause, depth + 1) for clause in it.clauses))
        case Oneof("or", pb.QueryOr() as it):
            return Or(tuple(from_proto(clause, depth + 1) for clause in it.clauses))
        case Oneof("not", pb.SubscriptionQuery() as it):
            return Not(from_proto(it, depth + 1))
        case Oneof("all", _):
            return All()
        case _:
            raise InvalidInputError("the query is empty: set one of eq, lt, gt, and, or, not, all")
