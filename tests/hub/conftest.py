import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from peat_p2p.client.model import Deleted, Event, Gap, SnapshotComplete, Upserted
from peat_p2p.core.clock import ManualClock
from peat_p2p.core.errors import UnavailableError
from peat_p2p.fleet.commands import Command
from peat_p2p.hub.history import History
from peat_p2p.hub.service import HubService
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.formation import dev_credentials
from peat_p2p.trust.identity import Role

NOW = 1_800_000_000.0


class FakeSidecar:
    """A sidecar in memory: documents, and events to whoever follows."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str], dict[str, Any]] = {}
        self.queue: asyncio.Queue[Event] = asyncio.Queue()
        self.down = False

    def put(self, collection: str, doc_id: str, **fields: Any) -> None:
        document = {**self.documents.get((collection, doc_id), {}), **fields}
        self.documents[collection, doc_id] = document
        self.queue.put_nowait(Upserted(collection, doc_id, json.dumps(document), document))

    def delete(self, collection: str, doc_id: str) -> None:
        del self.documents[collection, doc_id]
        self.queue.put_nowait(Deleted(collection, doc_id))

    def snapshot(self) -> list[Event]:
        told: list[Event] = [Upserted(c, d, json.dumps(doc), doc) for (c, d), doc in self.documents.items()]
        return [*told, SnapshotComplete()]

    def lag(self) -> None:
        self.queue.put_nowait(Gap("the test says so"))
        for event in self.snapshot():
            self.queue.put_nowait(event)

    async def subscribe(self, collections: Sequence[str] = ()) -> AsyncGenerator[Event, None]:
        while not self.queue.empty():  # a subscription starts with the state, not with what led there
            self.queue.get_nowait()
        for event in self.snapshot():
            yield event
        while True:
            yield await self.queue.get()

    async def get_document_text(self, collection: str, doc_id: str) -> str | None:
        if self.down:
            raise UnavailableError("sidecar: Connection refused")
        found: Mapping[str, Any] | None = self.documents.get((collection, doc_id))
        return None if found is None else json.dumps(found)

    async def put_document(self, collection: str, doc_id: str, document: Mapping[str, object]) -> None:
        self.put(collection, doc_id, **json.loads(json.dumps(document)))

    async def delete_document(self, collection: str, doc_id: str) -> None:
        self.delete(collection, doc_id)

    async def put_command(self, command: Command) -> None:
        if self.down:
            raise UnavailableError("sidecar: Connection refused")
        self.put("commands", command.id, **command.to_fields(), envelope={"payload": "signed"})


@pytest.fixture
def sidecar() -> FakeSidecar:
    return FakeSidecar()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history.sqlite", limit=1000)


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> NodeCredentials:
    return dev_credentials(tmp_path_factory.mktemp("trust"), "hub-1", [Role.HUB], at=NOW)


@pytest.fixture
async def service(
    sidecar: FakeSidecar, history: History, clock: ManualClock, credentials: NodeCredentials
) -> AsyncGenerator[HubService, None]:
    """A service that follows the fake sidecar."""
    made = HubService(sidecar, history, clock, credentials)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(made.follow()), group.create_task(made.write_history())]
        await made.wait_complete()
        yield made
        for task in tasks:
            task.cancel()
