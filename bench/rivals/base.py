"""The face every tool has: get ready, begin, say when the whole package is there."""

from __future__ import annotations

import abc
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from bench.net import Network


class RivalError(RuntimeError):
    """A tool could not be set up or gave up."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tool works: a network, the host that has the package, the hosts that want it, a folder for each."""

    net: Network
    holder: str
    wanting: tuple[str, ...]
    package: Path
    root: Path

    def folder(self, host: str) -> Path:
        path = self.root / host
        path.mkdir(parents=True, exist_ok=True)
        return path


@dataclass(slots=True)
class Fetch:
    """One host's fetch under way. `is_done` may raise RivalError when the tool gave up."""

    target: Path
    is_done: Callable[[], bool]


class Rival(abc.ABC):
    """One tool. `prepare` is not timed (daemons start, the holder is ready to give); `begin` is the user's command."""

    name: ClassVar[str]
    settings: ClassVar[str]
    programs: ClassVar[tuple[str, ...]] = ()
    verifies: ClassVar[bool] = True  # whether what it says it has is checked; otherwise a SHA-256 is part of its time

    def __init__(self, place: Place) -> None:
        self.place = place
        self.processes: list[subprocess.Popen[Any]] = []

    @classmethod
    def missing(cls) -> list[str]:
        """Programs that are not installed."""
        return [program for program in cls.programs if shutil.which(program) is None]

    @classmethod
    def version(cls) -> str:
        """What the first of its programs says it is."""
        if not cls.programs:
            return ""
        done = subprocess.run([cls.programs[0], "--version"], capture_output=True, text=True, check=False, timeout=20)
        return ((done.stdout or done.stderr).strip().splitlines() or ["?"])[0]

    @abc.abstractmethod
    def prepare(self) -> None: ...

    @abc.abstractmethod
    def begin(self, host: str) -> Fetch: ...

    def seconds_of_cpu(self) -> float:
        """Processor time used so far by what this tool runs, ended children included."""
        return sum(_cpu(process) for process in self.processes)

    def notes(self) -> dict[str, Any]:
        """Figures that only the tool itself knows."""
        return {}

    # -- for subclasses ------------------------------------------------------------------------------------------

    def start(self, host: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in a host with its output in the host's folder."""
        log = (self.place.folder(host) / f"{self.name}.log").open("ab")
        options.setdefault("stdin", subprocess.DEVNULL)
        environment = {**os.environ, "HOME": str(self.place.folder(host)), **options.pop("env", {})}
        with log:
            process = self.place.net.start(host, argv, stdout=log, stderr=log, env=environment, **options)
        self.processes.append(process)
        return process

    def until_success(self, host: str, argv: Sequence[str]) -> subprocess.Popen[Any]:
        """Repeat a command until it succeeds, as a user's script on such a link would."""
        return self.start(host, ["sh", "-c", 'until "$@"; do sleep 1; done', "retry", *argv])

    def wait_for_port(self, host: str, port: int, seconds: float = 30.0, address: str | None = None) -> None:
        """Wait until something in a host listens on a TCP port."""
        until = time.monotonic() + seconds
        where = (address or self.place.net.address(host), port)
        while time.monotonic() < until:
            with self.place.net.inside(host):
                probe = socket.socket()
            with probe:
                probe.settimeout(1.0)
                if probe.connect_ex(where) == 0:
                    return
            time.sleep(0.05)
        raise RivalError(f"{self.name} does not listen on port {port} of {host}; see {self.place.folder(host)}")


def ended(process: subprocess.Popen[Any], name: str) -> Callable[[], bool]:
    """Done when the process has ended well."""

    def check() -> bool:
        code = process.poll()
        if code:
            raise RivalError(f"{name} ended with {code}")
        return code == 0

    return check


@dataclass(slots=True)
class Arrived:
    """Done when a file of the right size has its final name: for daemons, which write under another name until then."""

    path: Path
    size: int
    process: subprocess.Popen[Any]
    name: str = field(default="")

    def __call__(self) -> bool:
        if self.process.poll() is not None:
            raise RivalError(f"{self.name} ended with {self.process.returncode}")
        try:
            return self.path.stat().st_size == self.size
        except OSError:
            return False


def _cpu(process: subprocess.Popen[Any]) -> float:
    """Seconds used by a process and its ended children; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    total = sum(int(value) for value in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except OSError:
        children = []
    for child in children:
        try:
            below = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(value) for value in below[11:15]) / os.sysconf("SC_CLK_TCK")
    return total
