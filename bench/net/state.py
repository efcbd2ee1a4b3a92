"""What is written down about a running network, so that others can find it and a killed one can be tidied up.

A network has a folder with `state.json` and its control socket. Processes are only ever ended by the network namespace
they are in, and only namespaces that this state names: nothing of anyone else's is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

BASE = Path("/run/peat-bench-net")
MARK = "PEAT_BENCH_NET"


@dataclass(frozen=True, slots=True)
class State:
    """A running network: its relay, and for each node the path and inode of its namespace."""

    name: str
    pid: int
    started: int
    namespaces: dict[str, tuple[str, int]]
    addresses: dict[str, str]

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.started


def start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot: with the pid it names one process for good.

    None when there is none, or only its exit code still to be fetched."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def write(directory: Path, state: State) -> None:
    temporary = directory / "state.json.new"
    temporary.write_text(json.dumps(asdict(state)))
    temporary.replace(directory / "state.json")


def read(directory: Path) -> State | None:
    try:
        fields = json.loads((directory / "state.json").read_text())
    except (OSError, ValueError):
        return None
    fields["namespaces"] = {node: (path, inode) for node, (path, inode) in fields["namespaces"].items()}
    return State(**fields)


def remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def new_directory(name: str) -> Path:
    """A folder for a network about to start; tidies up after killed ones first."""
    BASE.mkdir(mode=0o700, parents=True, exist_ok=True)
    tidy()
    for number in range(10_000):
        directory = BASE / f"{name}.{os.getpid()}.{number}"
        with contextlib.suppress(FileExistsError):
            directory.mkdir()
            return directory
    raise RuntimeError(f"{BASE} is full of networks that were never taken down")


def running() -> dict[Path, State]:
    """Every network that runs now."""
    found = {}
    for directory in sorted(BASE.glob("*/")):
        state = read(directory)
        if state is not None and state.alive:
            found[directory] = state
    return found


def tidy() -> None:
    """End what a killed relay left behind. Its namespaces are gone unless a process still sits in one."""
    for directory in sorted(BASE.glob("*/")):
        state = read(directory)
        if state is None:
            owner = directory.name.rsplit(".", 2)[-2]
            if not owner.isdigit() or start_time(int(owner)) is None:
                remove(directory)
        elif not state.alive:
            # An inode number may have been given to somebody else's namespace since: the mark must be there too.
            end_processes({inode for _, inode in state.namespaces.values()}, mark=directory.name)
            remove(directory)


def processes_in(inodes: set[int], mark: str | None = None) -> list[int]:
    """The processes whose network namespace is one of these (and whose environment carries the mark)."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            if os.stat(f"/proc/{entry.name}/ns/net").st_ino not in inodes:  # noqa: PTH116 - a hot loop
                continue
            if mark is not None and f"{MARK}={mark}".encode() not in Path(
                f"/proc/{entry.name}/environ"
            ).read_bytes().split(b"\0"):
                continue
        except OSError:
            continue
        found.append(int(entry.name))
    return found


def end_processes(inodes: set[int], mark: str | None = None, patience: float = 2.0) -> int:
    """Ask the processes in these namespaces to end, then make them; the number of them."""
    first = processes_in(inodes, mark)
    for pid in first:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + patience
    while (left := processes_in(inodes, mark)) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return len(first)
