"""The demo's processes: real `peat` commands, each with a data folder, a log and a ready file of its own.

Owns starting, waiting for readiness, killing and clean-up by process id. Knows nothing of the story.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from peat_p2p.core.config import Endpoints
from peat_p2p.core.errors import NotFoundError, UnavailableError
from peat_p2p.core.lifecycle import read_endpoints

READY_SECONDS = 40.0


@dataclass(slots=True)
class Running:
    """One `peat` process: how it was started, where it answers."""

    name: str
    arguments: tuple[str, ...]
    process: Process
    endpoints: Endpoints
    log: Path


class Processes:
    """Starts and stops `peat` processes below `root`; whatever still runs at the end is killed, by id."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._running: dict[str, Running] = {}

    async def start(self, name: str, arguments: Sequence[str]) -> Running:
        """Run `peat ARGUMENTS` as `name` until it is ready. Raises UnavailableError with the end of its log."""
        ready = self.root / "run" / f"{name}.json"
        log = self.root / "log" / f"{name}.log"
        for folder in (ready.parent, log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        ready.unlink(missing_ok=True)
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "peat_p2p.cli.main",
                *arguments,
                "--ready-file",
                str(ready),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                # A Ctrl-C at the terminal is for the demo, which stops its processes itself.
                start_new_session=True,
            )
        try:
            endpoints = await self._wait_ready(name, process, ready, log)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        running = Running(name, tuple(arguments), process, endpoints, log)
        self._running[name] = running
        return running

    async def _wait_ready(self, name: str, process: Process, ready: Path, log: Path) -> Endpoints:
        try:
            async with asyncio.timeout(READY_SECONDS):
                while process.returncode is None:
                    with contextlib.suppress(NotFoundError):
                        return read_endpoints(ready)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise UnavailableError(f"{name} was not ready after {READY_SECONDS:.0f} s\n{_tail(log)}") from None
        raise UnavailableError(f"{name} ended with exit status {process.returncode} before it was ready\n{_tail(log)}")

    async def kill(self, name: str) -> None:
        """Send SIGKILL to `name` and wait for its end."""
        running = self._running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            running.process.kill()
        await running.process.wait()

    async def restart(self, running: Running) -> Running:
        """Start a process that was killed again, with the arguments it had."""
        return await self.start(running.name, running.arguments)

    async def stop_all(self) -> list[str]:
        """Stop what still runs with SIGTERM; return what went wrong: processes that died, stuck or exited non-zero."""
        problems = []
        for running in self._running.values():
            if running.process.returncode is not None:
                problems.append(f"{running.name} had died with exit status {running.process.returncode}")
                continue
            with contextlib.suppress(ProcessLookupError):
                running.process.send_signal(signal.SIGTERM)
        for running in self._running.values():
            try:
                async with asyncio.timeout(10):
                    status = await running.process.wait()
            except TimeoutError:
                running.process.kill()
                await running.process.wait()
                problems.append(f"{running.name} did not stop within 10 s of SIGTERM")
                continue
            if status != 0 and not any(p.startswith(f"{running.name} ") for p in problems):
                problems.append(f"{running.name} stopped with exit status {status}")
        self._running.clear()
        return problems

    async def kill_all(self) -> None:
        """Kill what still runs."""
        for name in list(self._running):
            await self.kill(name)


@contextlib.asynccontextmanager
async def processes(root: Path) -> AsyncIterator[Processes]:
    """Give a Processes below `root` whose members do not outlive the block."""
    started = Processes(root)
    try:
        yield started
    finally:
        await asyncio.shield(started.kill_all())


def _tail(log: Path, lines: int = 15) -> str:
    with contextlib.suppress(OSError):
        return f"the end of {log}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return f"its log is {log}"
