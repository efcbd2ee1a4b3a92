"""The face of the emulator for tests and benches.

    with Network(pair("geo")) as net:
        server = net.start("a", ["python", "-m", "http.server", "8000"])
        net.run("b", ["curl", f"http://{net.address('a')}:8000/"], timeout=60)
        net.stats()["links"]["link"]["near>far"]["sent_bytes"]
        net.change("link", loss=0.3); net.cut("link"); net.mend("link")

Needs root. Everything runs in namespaces of its own and ends with the context, or with this process if it is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Self

from bench.net import kernel, state
from bench.net.topology import Topology, as_table

ROOT = Path(__file__).resolve().parent.parent.parent


class NetworkError(RuntimeError):
    """The network could not be built or does not answer."""


def why_not() -> str | None:
    """The reason why no network can be made here, or None."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun is missing"
    return None


class Control:
    """Talks to the relay of a running network; of this process or of another."""

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10.0)
        try:
            self._socket.connect(str(directory / "control"))
        except OSError as error:
            raise NetworkError(f"the relay of {directory.name} does not answer: {error}") from error
        self._file = self._socket.makefile("rb")
        self._lock = threading.Lock()

    def ask(self, do: str, **rest: Any) -> dict[str, Any]:
        """Have the relay do something; raises NetworkError with its reason when it cannot."""
        with self._lock:
            try:
                self._socket.sendall(json.dumps({"do": do, **rest}).encode() + b"\n")
                line = self._file.readline()
            except OSError as error:
                raise NetworkError(f"the relay does not answer: {error}") from error
        if not line:
            raise NetworkError("the relay has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NetworkError(str(answer["error"]))
        return answer

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Network:
    """A topology, up. A context manager; one at a time or several. `made` says whether this process made any."""

    made: ClassVar[bool] = False

    def __init__(self, topology: Topology, *, detached: bool = False) -> None:
        self.topology = topology
        self._detached = detached
        self._relay: subprocess.Popen[str] | None = None
        self._control: Control | None = None
        self._state: state.State | None = None
        self._started: list[subprocess.Popen[Any]] = []
        self.directory = Path()

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def up(self) -> None:
        """Build it; returns when packets flow."""
        reason = why_not()
        if reason:
            raise NetworkError(f"no network can be made here: {reason}")
        Network.made = True
        self.directory = state.new_directory(self.topology.name)
        words = [
            sys.executable,
            "-m",
            "bench.net.process",
            str(self.directory),
            *(["--detached"] if self._detached else []),
        ]
        errors = self.directory / "relay.log"
        with errors.open("w") as log:
            self._relay = subprocess.Popen(
                words,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._relay.stdin is not None and self._relay.stdout is not None
        try:
            self._relay.stdin.write(json.dumps(as_table(self.topology)) + "\n")
            self._relay.stdin.flush()
            said = self._relay.stdout.readline()
        except OSError:
            said = ""
        if said != "ready\n":
            reason = said.strip() or (errors.read_text().strip() if errors.exists() else "")
            self.down()
            raise NetworkError(f"the relay did not start: {reason or 'it ended without a word'}")
        self._state = state.read(self.directory)
        self._control = Control(self.directory)

    def down(self) -> None:
        """Take it down, and end what was started in it."""
        relay, self._relay = self._relay, None
        if self._control is not None:
            self._control.close()
            self._control = None
        if relay is None:
            return
        relay.terminate()
        for stream in (relay.stdin, relay.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            relay.wait(timeout=10)
        except subprocess.TimeoutExpired:
            relay.kill()
            relay.wait()
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        self._started.clear()
        if self._state is not None:
            state.end_processes({inode for _, inode in self._state.namespaces.values()})
        state.remove(self.directory)

    # -- hosts ---------------------------------------------------------------------------------------------------

    def address(self, host: str) -> str:
        """The IPv4 address of a host."""
        return self.topology.address(host)

    def command(self, host: str, argv: Sequence[str]) -> list[str]:
        """What to execute so that `argv` runs in a host, for `subprocess` and asyncio alike; the pid stays the same."""
        if self._state is None:
            raise NetworkError("the network is not up")
        return command(self._state, self.directory, host, argv)

    def start(self, host: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process in a host; it is ended with the network at the latest."""
        process: subprocess.Popen[Any] = subprocess.Popen(self.command(host, argv), **options)
        self._started.append(process)
        return process

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        timeout: float = 60.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        stdout: int | IO[Any] | None = subprocess.PIPE,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in a host to its end."""
        words = self.command(host, argv)
        done = subprocess.run(
            words, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=timeout, check=False, env=env
        )
        if check and done.returncode:
            raise NetworkError(
                f"{' '.join(argv)} in {host} ended with {done.returncode}: {done.stderr.strip()[-2000:]}"
            )
        return done

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Sockets that this thread makes within the block are the host's."""
        if self._state is None:
            raise NetworkError("the network is not up")
        fd = os.open(self._state.namespaces[host][0], os.O_RDONLY | os.O_CLOEXEC)
        try:
            with kernel.inside(fd):
                yield
        finally:
            os.close(fd)

    # -- links ---------------------------------------------------------------------------------------------------

    @property
    def control(self) -> Control:
        if self._control is None:
            raise NetworkError("the network is not up")
        return self._control

    def stats(self) -> dict[str, Any]:
        """Counters of every direction of every link, the schedules' clock, the relay's CPU seconds."""
        return self.control.ask("stats")

    def change(self, link: str, direction: str | None = None, **values: Any) -> None:
        """Change properties of a link (both directions, or "down" or "up") from now on."""
        self.control.ask("change", link=link, direction=direction, values=values)

    def cut(self, link: str) -> None:
        """Take a link down until `mend`."""
        self.change(link, cut=True)

    def mend(self, link: str) -> None:
        self.change(link, cut=False)

    def restart(self) -> None:
        """Set counters and the clock of outages and cuts to zero: the measurement begins now."""
        self.control.ask("restart")


def command(network: state.State, directory: Path, host: str, argv: Sequence[str]) -> list[str]:
    """The words that run `argv` in a host of a network that any process may have started."""
    if host not in network.namespaces:
        raise NetworkError(f"there is no host {host!r}; there are {', '.join(network.namespaces)}")
    path = network.namespaces[host][0]
    return ["nsenter", f"--net={path}", "--", "env", f"{state.MARK}={directory.name}", *argv]
