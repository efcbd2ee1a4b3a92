"""The sockets a service answers on.

Owns binding: a TCP port in use and a Unix socket somebody still answers on are refused in words, a stale socket file is
replaced, and a Unix socket is never open to others, not for a moment. Must not know what is served.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peat_p2p.core.address import HostPort, ListenAddress
from peat_p2p.core.errors import ConfigError, ConflictError
from peat_p2p.wire.transport import short_socket_path

BACKLOG = 256


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens, and the address it came to (with the port the system chose)."""

    socket: socket.socket
    address: ListenAddress

    def url(self, *, tls: bool = False) -> str:
        """The URL on which clients on this machine reach it."""
        where = self.address.host_port
        if where is None:
            return str(self.address)
        # Nobody can call "every address": loopback is one of them.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(where.host, where.host)  # noqa: S104
        return f"{'https' if tls else 'http'}://{HostPort(host, where.port)}"


@contextlib.contextmanager
def listening(address: ListenAddress) -> Iterator[Listener]:
    """Listen on `address`; the socket is closed, and its file removed, at the end.

    Raises ConflictError when somebody else is there, ConfigError when the address cannot be used.
    """
    if address.path is not None:
        with _unix(address.path) as sock:
            yield Listener(sock, address)
    elif address.host_port is not None:
        with contextlib.closing(_tcp(address.host_port)) as sock:
            host, port = sock.getsockname()[:2]
            yield Listener(sock, ListenAddress(host_port=HostPort(host, port)))


def _tcp(where: HostPort) -> socket.socket:
    try:
        found = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from None
    family, kind, protocol, _, name = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind(name)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConflictError(
                f"cannot listen on {where}: the port is in use by another process;"
                " stop it, choose another port, or port 0 for any"
            ) from None
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from None
    return sock


@contextlib.contextmanager
def _unix(path: Path) -> Iterator[socket.socket]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Bound under a passing name, closed to others, listening, and only then moved to where callers look: a stale file
    # is replaced in one step and the socket is never reachable with the wrong mode.
    passing = path.with_name(f".{secrets.token_hex(4)}")
    try:
        sock.setblocking(False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _refuse_if_alive(path)
            with short_socket_path(passing) as name:
                sock.bind(str(name))
            passing.chmod(0o600)
            sock.listen(BACKLOG)
            inode = passing.stat().st_ino
            passing.replace(path)
        except OSError as error:
            raise ConfigError(f"cannot listen on unix://{path}: {error.strerror or error}") from None
        try:
            yield sock
        finally:
            # Another process may have taken the name over since.
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()
    finally:
        sock.close()
        with contextlib.suppress(OSError):
            passing.unlink()


def _refuse_if_alive(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConflictError(f"cannot listen on unix://{path}: there is a file that is no socket; move it away")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.settimeout(1.0)
        try:
            with short_socket_path(path) as name:
                probe.connect(str(name))
        except (ConnectionRefusedError, FileNotFoundError):
            return  # whoever made it is gone
        except OSError as error:
            raise ConflictError(
                f"cannot listen on unix://{path}: {error.strerror or error}; choose another path"
            ) from None
    raise ConflictError(
        f"cannot listen on unix://{path}: another process answers there; stop it or choose another path"
    )
