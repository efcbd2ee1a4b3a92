"""The hub, put together: a sidecar, the following of its documents, the history, the HTTP API.

The only place of this room where parts are chosen and wired. The sidecar itself comes from the caller: services do not
import each other.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import web

from peat_p2p.client.client import SidecarClient
from peat_p2p.core.address import HostPort
from peat_p2p.core.clock import Clock, SystemClock
from peat_p2p.core.config import Endpoints
from peat_p2p.core.errors import ConfigError, ConflictError, UnavailableError
from peat_p2p.hub.config import HubConfig
from peat_p2p.hub.history import History
from peat_p2p.hub.http import make_app
from peat_p2p.hub.service import HubService
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.formation import dev_credentials

SHUTDOWN_SECONDS = 1.0
FIRST_SNAPSHOT_SECONDS = 30.0


@asynccontextmanager
async def open_hub(
    config: HubConfig, sidecar: AbstractAsyncContextManager[Endpoints], clock: Clock | None = None
) -> AsyncGenerator[Endpoints, None]:
    """Run `sidecar` and the hub over it; yields the sidecar's endpoints with the hub's added."""
    token = None if config.token_file is None else _read_token(config.token_file)
    async with AsyncExitStack() as stack:
        history = stack.enter_context(History(config.history_file, limit=config.history_events))
        endpoints = await stack.enter_async_context(sidecar)
        address = own_api(endpoints)
        # The sidecar has checked that this is what it runs with; a throw-away formation exists by now.
        credentials = _credentials(config, endpoints.node_id)
        tls = credentials.client_context() if address.startswith("https:") else None
        client = await stack.enter_async_context(SidecarClient(address, token=token, tls=tls))
        service = HubService(client, history, clock or SystemClock(), credentials)
        await stack.enter_async_context(
            _beside({"hub-follow": service.follow(), "hub-history": service.write_history()})
        )
        try:
            async with asyncio.timeout(FIRST_SNAPSHOT_SECONDS):
                await service.wait_complete()
        except TimeoutError:
            raise UnavailableError(
                f"the hub's own sidecar gave no documents within {FIRST_SNAPSHOT_SECONDS:g} s"
            ) from None
        app = make_app(
            service,
            node_id=endpoints.node_id,
            token=token,
            loopback=config.node.http_listen.is_loopback,
            max_body_bytes=config.max_body_bytes,
        )
        url = await stack.enter_async_context(_serving(app, config.node.http_listen))
        yield replace(endpoints, hub=url, http=endpoints.http or url)


def own_api(endpoints: Endpoints) -> str:
    """The address by which the hub calls its own sidecar: a Unix socket if there is one, guarded by its file mode."""
    addresses = endpoints.apis or (endpoints.api,)
    return next((a for a in addresses if a.startswith("unix://")), addresses[0])


@asynccontextmanager
async def _beside(works: Mapping[str, Coroutine[Any, Any, None]]) -> AsyncGenerator[None, None]:
    """Run `works` while the context is open; if one fails, so does the context."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work, name=name) for name, work in works.items()]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
    except BaseExceptionGroup as failures:
        # One failure alone is what callers look for, whether it came from the work or from what it ran beside.
        if len(failures.exceptions) == 1:
            raise failures.exceptions[0] from None
        raise


@asynccontextmanager
async def _serving(app: web.Application, where: HostPort) -> AsyncGenerator[str, None]:
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=SHUTDOWN_SECONDS, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, where.host, where.port).start()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConflictError(
                    f"the hub's HTTP port {where} is in use by another process; choose another (--http-listen), or"
                    " port 0 for any"
                ) from None
            raise ConfigError(f"the hub cannot listen on {where}: {error.strerror or error}") from None
        name = runner.addresses[0]
        yield f"http://{HostPort(name[0], name[1])}"
    finally:
        await runner.cleanup()


def _credentials(config: HubConfig, node_id: str) -> NodeCredentials:
    node = config.node
    if node.formation is None:
        return dev_credentials(node.data_dir / "formation", node_id, ())
    return NodeCredentials.load(node.formation)


def _read_token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {path} cannot be read: {error}") from error
    if len(token) < 16:
        raise ConfigError(f"the token in {path} is too short to be a secret: at least 16 characters")
    return token
