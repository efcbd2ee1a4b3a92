import pytest
from hypothesis import given
from hypothesis import strategies as st
from protobuf import Oneof

from peat_p2p.client.queries import MAX_DEPTH, from_proto, to_proto
from peat_p2p.core.errors import InvalidInputError
from peat_p2p.documents.query import All, And, Eq, Greater, Less, Not, Or
from peat_p2p.wire.gen.peat.sidecar.v1.sidecar_pb import SubscriptionQuery

text = st.text(max_size=8)
queries = st.recursive(
    st.builds(Eq, text, text) | st.builds(Less, text, text) | st.builds(Greater, text, text) | st.just(All()),
    lambda inner: (
        st.builds(And, st.lists(inner, max_size=3).map(tuple))
        | st.builds(Or, st.lists(inner, max_size=3).map(tuple))
        | st.builds(Not, inner)
    ),
    max_leaves=10,
)


@given(queries)
def test_a_query_reads_back_as_it_was(query):
    message = to_proto(query)
    assert from_proto(SubscriptionQuery.from_binary(message.to_binary())) == query
    assert from_proto(SubscriptionQuery.from_json(message.to_json())) == query


def test_an_empty_query_is_refused_at_any_depth():
    empty = SubscriptionQuery()
    for query in (empty, SubscriptionQuery(q=Oneof("not", empty))):
        with pytest.raises(InvalidInputError, match="empty"):
            from_proto(query)


def test_a_query_nested_without_end_is_refused():
    query = All()
    for _ in range(MAX_DEPTH + 2):
        query = Not(query)
    with pytest.raises(InvalidInputError, match="nests"):
        from_proto(to_proto(query))
