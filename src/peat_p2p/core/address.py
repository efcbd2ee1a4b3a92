"""Addresses: where a service listens and where a peer is.

Owns the textual forms `tcp://HOST:PORT`, `unix://PATH`, `HOST:PORT` and `ENDPOINT_ID@HOST:PORT`. Must not open sockets.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from peat_p2p.core.errors import ConfigError

_ENDPOINT_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class HostPort:
    """A TCP or UDP address. `host` is a name or an IP address without brackets; `port` 0 means: the system chooses."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, default_port: int | None = None) -> HostPort:
        """Read `HOST:PORT`, `[V6]:PORT` or, with `default_port`, `HOST`. Raises ConfigError."""
        host, port_text = text, ""
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket or (rest and not rest.startswith(":")):
                raise ConfigError(f"{text!r} is not HOST:PORT (an IPv6 address goes in brackets: [::1]:7000)")
            port_text = rest[1:]
        elif text.count(":") == 1:
            host, _, port_text = text.partition(":")
        elif text.count(":") > 1:
            raise ConfigError(f"{text!r} is not HOST:PORT (an IPv6 address goes in brackets: [::1]:7000)")
        if not host:
            raise ConfigError(f"{text!r} names no host; write HOST:PORT")
        if not port_text:
            if default_port is None:
                raise ConfigError(f"{text!r} names no port; write HOST:PORT")
            return cls(host, default_port)
        if not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65535:
            raise ConfigError(f"{port_text!r} in {text!r} is not a port number from 0 to 65535")
        return cls(host, int(port_text))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address. A name other than localhost counts as reachable."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where a service listens: TCP (`host_port`) or a Unix socket (`path`); exactly one of the two is set."""

    host_port: HostPort | None = None
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """Read `tcp://HOST:PORT`, `unix://PATH` or a bare `HOST:PORT`. Raises ConfigError."""
        if text.startswith("unix://"):
            path = Path(text.removeprefix("unix://"))
            if not path.is_absolute():
                raise ConfigError(f"{text!r}: the path of a Unix socket must be absolute (unix:///run/peat.sock)")
            return cls(path=path)
        if "://" in text and not text.startswith("tcp://"):
            raise ConfigError(f"{text!r}: an address is tcp://HOST:PORT or unix:///PATH")
        return cls(host_port=HostPort.parse(text.removeprefix("tcp://")))

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.path is not None else f"tcp://{self.host_port}"


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """A configured mesh peer: who it must prove to be, and where it is."""

    endpoint_id: str
    host_port: HostPort

    @classmethod
    def parse(cls, text: str) -> PeerAddress:
        """Read `ENDPOINT_ID@HOST:PORT`. Raises ConfigError."""
        endpoint_id, at, rest = text.partition("@")
        if not at:
            raise ConfigError(f"peer {text!r}: write ENDPOINT_ID@HOST:PORT (`peat formation show` prints endpoint ids)")
        return cls(check_endpoint_id(endpoint_id), HostPort.parse(rest))

    def __str__(self) -> str:
        return f"{self.endpoint_id}@{self.host_port}"


def check_endpoint_id(text: str) -> str:
    """Return `text` if it is 64 lower-case hex digits (SHA-256 of the node's public key). Raises ConfigError."""
    if not _ENDPOINT_ID.fullmatch(text):
        raise ConfigError(f"endpoint id {text!r} is not 64 lower-case hex digits")
    return text
