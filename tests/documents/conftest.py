"""Credentials of one formation, and replicas of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest

from peat_p2p.core.clock import ManualClock, SystemClock
from peat_p2p.documents.replica import Replica
from peat_p2p.documents.types import Outcome, Update
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role

Open = Callable[..., AbstractAsyncContextManager[Replica]]


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NodeCredentials]:
    """Nodes of a formation, by name; `stranger` is of another."""
    root = tmp_path_factory.mktemp("formation")
    both = [Role.AGENT, Role.OPERATOR]
    roles = dict.fromkeys(("alpha", "bravo", "charlie"), both)
    roles |= {"hub": [Role.HUB], "edge": [Role.AGENT], "captive": [Role.AGENT]}
    formation = Formation.init(root / "ca", "test")
    for name in roles:
        formation.issue(name, roles[name], root / name)
    Formation.init(root / "other", "other").issue("stranger", both, root / "stranger")
    return {name: NodeCredentials.load(root / name) for name in (*roles, "stranger")}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=SystemClock().wall())


@pytest.fixture
async def make(nodes: dict[str, NodeCredentials], clock: ManualClock) -> AsyncIterator[Callable[..., object]]:
    """Opens replicas (`await make("alpha", path=None)`) that close with the test."""
    async with AsyncExitStack() as stack:

        async def open_replica(name: str, path: Path | None = None, **options: object) -> Replica:
            return await stack.enter_async_context(Replica.open(path, nodes[name], clock, **options))

        yield open_replica


@pytest.fixture
def sync() -> Callable[..., object]:
    """Brings everything one replica has changed since `cursors` to another, as a link would."""

    async def bring(source: Replica, target: Replica, cursors: dict[int, int] | None = None) -> list[Outcome]:
        cursors = {} if cursors is None else cursors
        outcomes: list[Outcome] = []
        me, other = source.node.endpoint_id, target.node.endpoint_id
        for klass in range(4):
            since = cursors.get(klass, 0)
            updates: list[Update] = []
            for _seq, key in source.changed_since(klass, since, 1_000_000, peer=other):
                proof = source.make_update(source.certificate_key(key.origin))
                if proof is not None:
                    updates.append(proof)
                update = source.make_update(key, since)
                if update is not None:
                    updates.append(update)
            outcomes += await target.apply(updates, me)
            cursors[klass] = source.head(klass)
        await target.caught_up(me)
        return outcomes

    return bring
