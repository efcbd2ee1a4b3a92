"""The sidecar put together.

Owns the one place where a sidecar's parts are chosen and wired: credentials, replica, mesh, API, watcher. Parts open in
the order they need each other and close in reverse; yielding means that all of them answer.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from peat_p2p.core.clock import Clock, SystemClock
from peat_p2p.core.config import Endpoints, NodeConfig
from peat_p2p.core.errors import ConfigError
from peat_p2p.documents.replica import Replica
from peat_p2p.documents.types import Limits
from peat_p2p.fleet.fields import parse
from peat_p2p.fleet.ids import REVOCATIONS
from peat_p2p.mesh.service import Mesh
from peat_p2p.mesh.types import MeshConfig
from peat_p2p.sidecar.config import SidecarConfig
from peat_p2p.sidecar.expiry import watch_expiry
from peat_p2p.sidecar.feed import Feeds
from peat_p2p.sidecar.node import NodeService
from peat_p2p.sidecar.policy import accept
from peat_p2p.sidecar.server import read_token, serving
from peat_p2p.sidecar.service import SidecarService
from peat_p2p.sidecar.watcher import Watcher
from peat_p2p.trust.access import require_caller
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.formation import dev_credentials
from peat_p2p.trust.identity import Role
from peat_p2p.trust.revocation import RevocationSet
from peat_p2p.wire.gen.peat.sidecar.v1.sidecar_pb import NodePhase

DATABASE = "sidecar.db"


@asynccontextmanager
async def open_sidecar(config: SidecarConfig, clock: Clock | None = None) -> AsyncIterator[Endpoints]:
    """A running sidecar; gives the addresses it answers on. Raises PeatError when it cannot start."""
    node = config.node
    time = clock or SystemClock()
    token = read_token(config.token_file) if config.token_file is not None else None
    node.data_dir.mkdir(parents=True, exist_ok=True)
    credentials = load_credentials(node)
    phase = NodePhase.INITIALIZING

    def revoked() -> RevocationSet:
        documents = {it.doc_id: parse(it.json) for it in replica.read(REVOCATIONS)}
        return RevocationSet.read(documents, credentials.anchor)

    def stopping() -> None:
        nonlocal phase
        phase = NodePhase.SHUTTING_DOWN
        feeds.close()

    async with AsyncExitStack() as stack:
        stack.enter_context(_one_failure())
        replica = await stack.enter_async_context(
            Replica.open(
                node.data_dir / DATABASE,
                credentials,
                time,
                Limits(document_bytes=config.max_document_bytes),
                policy=accept,
                key=config.store_key,
            )
        )
        mesh = await stack.enter_async_context(Mesh.open(replica, credentials, mesh_config(config), time))
        feeds = Feeds(replica, max_pending=config.max_pending_changes)
        urls = await stack.enter_async_context(
            serving(
                node.api_listen,
                SidecarService(replica, mesh, credentials, feeds, time, lambda: phase),
                NodeService(replica, mesh, node),
                token=token,
                tls=credentials.server_context() if config.tls else None,
                admit=lambda secured: require_caller(secured, credentials, time.wall(), revoked()),
                max_message_bytes=config.max_message_bytes,
                on_stop=stopping,
            )
        )
        if config.tls:
            stack.callback(replica.on_commit(_when_revoked(replica, feeds)))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        expiring = group.create_task(watch_expiry(credentials.identity, credentials.directory, time), name="expiry")
        stack.callback(expiring.cancel)
        if config.watch_agent:
            agent_id = config.watch_agent_id or credentials.identity.node_id
            watcher = Watcher(config.watch_agent, agent_id, replica, time, interval=config.watch_interval_s)
            watching = group.create_task(watcher.run(), name="watcher")
            stack.callback(watching.cancel)
        phase = NodePhase.READY
        yield Endpoints(
            node_id=credentials.identity.node_id,
            endpoint_id=credentials.identity.endpoint_id,
            pid=os.getpid(),
            api=urls[0],
            apis=urls,
            mesh=str(mesh.address),
        )


def _when_revoked(replica: Replica, feeds: Feeds) -> Callable[[frozenset[int]], None]:
    """What ends the open streams at a new revocation: callers are looked at when they begin one, so all begin anew."""

    def ids() -> frozenset[str]:
        return frozenset(replica.ids(REVOCATIONS))

    known = ids()

    def committed(classes: frozenset[int]) -> None:
        nonlocal known
        if replica.rules.of(REVOCATIONS).klass in classes and (now := ids()) != known:
            known = now
            feeds.interrupt("who may call has changed; subscribe again")

    return committed


def load_credentials(node: NodeConfig) -> NodeCredentials:
    """The node's certificate and key, or those of a throw-away formation. Raises ConfigError or UntrustedError."""
    if node.formation is None:
        name = node.node_id or re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-._")[:63] or "node"
        return dev_credentials(node.data_dir / "formation", name, list(Role))
    credentials = NodeCredentials.load(node.formation)
    issued_to = credentials.identity.node_id
    if node.node_id and node.node_id != issued_to:
        raise ConfigError(
            f"the certificate in {node.formation} was issued to {issued_to!r}, not to {node.node_id!r}:"
            " leave --node-id out, or give the folder of that node"
        )
    return credentials


def mesh_config(config: SidecarConfig) -> MeshConfig:
    """The mesh's part of the settings."""
    node = config.node
    return MeshConfig(
        listen=node.mesh_listen, peers=node.peers, mdns=node.mdns, site=node.site, link_budget=config.link_budget
    )


@contextmanager
def _one_failure() -> Iterator[None]:
    """Let one failure out as itself: each TaskGroup on its way has wrapped it, and callers look for its class."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, BaseExceptionGroup):
            raise
        raise error from None
