"""The life of a process: open, say it is ready, wait for a signal, close.

Owns signal handling, the ready file and the endpoints file in the data folder, and the bound on how long a stop may
take. A service is an async context manager that yields its Endpoints; if one of its tasks fails while it runs, its
TaskGroup cancels the wait here and the failure comes out as an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from pathlib import Path

from peat_p2p.core.atomic import write_atomic
from peat_p2p.core.config import Endpoints
from peat_p2p.core.errors import ConfigError, NotFoundError

log = logging.getLogger(__name__)

STOP_SECONDS = 4.5  # SIGTERM must be done within 5 s


# The cyclic collector looks after so many new objects: a document received makes hundreds and no cycles, and at
# CPython's 700 it took a tenth of the time in which a sidecar fills (`python -m bench mesh scale`).
_COLLECT_AFTER = (20_000, 20, 20)


def collect_rarely() -> None:
    """Run the cyclic garbage collector less often, and never over what is there by now (a loaded store)."""
    gc.set_threshold(*_COLLECT_AFTER)
    gc.collect()
    gc.freeze()


async def run_until_stopped(
    service: AbstractAsyncContextManager[Endpoints], *, endpoints_file: Path, ready_file: Path | None
) -> None:
    """Run `service` until SIGTERM or SIGINT, then close it within STOP_SECONDS.

    `endpoints_file` (and `ready_file`, when given) appear once everything answers and go away at the end. Raises what
    the service raises; TimeoutError when it would not close in time.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    files = [endpoints_file, *([ready_file] if ready_file is not None else [])]
    for file in files:
        # What an earlier process that was killed left behind would send readers to addresses nobody answers on.
        # One that lives keeps its file: the data folder is in use, and the service is about to say so.
        if not _written_by_another(file):
            file.unlink(missing_ok=True)
    async with asyncio.timeout(None) as deadline:
        try:
            async with service as endpoints:
                data = json.dumps(asdict(endpoints), indent=2).encode() + b"\n"
                collect_rarely()
                for file in files:
                    write_atomic(file, data)
                log.info("ready: %s", " ".join(f"{k}={v}" for k, v in asdict(endpoints).items() if v and k != "apis"))
                await stop.wait()
                log.info("stopping")
                deadline.reschedule(loop.time() + STOP_SECONDS)
        finally:
            for file in files:
                if not _written_by_another(file):
                    with contextlib.suppress(OSError):
                        file.unlink()


def read_endpoints(file: Path) -> Endpoints:
    """Read the addresses of a running process. Raises NotFoundError (none runs) or ConfigError (unreadable)."""
    try:
        raw = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise NotFoundError(
            f"nothing is running with the data folder {file.parent} ({file.name} is not there)"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    try:
        endpoints = Endpoints(**{**raw, "apis": tuple(raw.get("apis", ()))})
    except (TypeError, AttributeError):
        raise ConfigError(f"{file} does not hold the addresses of a process") from None
    if endpoints.pid and not _alive(endpoints.pid):
        raise NotFoundError(f"the process of {file} (pid {endpoints.pid}) is gone; start it again")
    return endpoints


def _written_by_another(file: Path) -> bool:
    """Whether `file` holds the addresses of a process that lives and is not this one."""
    try:
        endpoints = read_endpoints(file)
    except (NotFoundError, ConfigError):
        return False
    return endpoints.pid not in (0, os.getpid())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
