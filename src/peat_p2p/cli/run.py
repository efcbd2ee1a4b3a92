"""Running a long-lived service from a command: logging, the event loop, the ready file.

Owns what `peat sidecar`, `agent`, `hub` and `up` do alike around their service.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

from peat_p2p.core.config import Endpoints, NodeConfig
from peat_p2p.core.lifecycle import run_until_stopped
from peat_p2p.core.logs import configure_logging


def run_service(
    service: AbstractAsyncContextManager[Endpoints], node: NodeConfig, *, endpoints_name: str, log_level: str
) -> None:
    """Run `service` until SIGTERM; its addresses stand in `node.data_dir / endpoints_name` meanwhile."""
    configure_logging(node.log_format, level=log_level.upper(), node_id=node.node_id)
    node.data_dir.mkdir(parents=True, exist_ok=True)
    asyncio.run(run_until_stopped(service, endpoints_file=node.data_dir / endpoints_name, ready_file=node.ready_file))
