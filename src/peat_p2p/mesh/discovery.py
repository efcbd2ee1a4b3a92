"""Finding peers on the local network by multicast DNS.

Owns the service `_peat-mesh._tcp.local.`: announcing this node and reporting others of the same formation. What is
found is only a hint where to dial; who answers is proved by TLS. A node that listens on loopback announces and looks
on loopback only, so that fleets on one machine do not leak out of it. Must not dial.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import ifaddr
from zeroconf import InterfaceChoice, IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from peat_p2p.core.address import HostPort, check_endpoint_id
from peat_p2p.core.errors import ConfigError

SERVICE = "_peat-mesh._tcp.local."
_LOG = logging.getLogger(__name__)
_RESOLVE_MS = 3000


@dataclass(frozen=True, slots=True)
class Found:
    """A node seen on the local network (`addresses` empty: it said goodbye)."""

    endpoint_id: str
    addresses: tuple[HostPort, ...]
    site: str


def local_addresses(listen: HostPort) -> tuple[HostPort, ...]:
    """Where others can reach a socket bound to `listen`: itself, or this machine's addresses if bound to all."""
    if listen.host not in ("0.0.0.0", "::"):  # noqa: S104  (a comparison)
        return (listen,)
    ips = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if ip.is_IPv4]
    hosts = [ip for ip in ips if isinstance(ip, str) and not ip.startswith(("127.", "169.254."))]
    return tuple(HostPort(host, listen.port) for host in hosts or ["127.0.0.1"])


@asynccontextmanager
async def announce(
    endpoint_id: str, formation: str, site: str, listen: HostPort, on_found: Callable[[Found], None]
) -> AsyncIterator[None]:
    """Announce this node and report others until the context ends. Without multicast it only logs that it is off."""
    loopback = listen.is_loopback
    interfaces = ["127.0.0.1"] if loopback else InterfaceChoice.Default
    addresses = [HostPort("127.0.0.1", listen.port)] if loopback else list(local_addresses(listen))
    try:
        zeroconf = AsyncZeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only)
    except OSError as error:
        _LOG.warning("finding peers on the local network is off: multicast is not available (%s)", error)
        yield
        return
    info = AsyncServiceInfo(
        SERVICE,
        f"{endpoint_id[:32]}.{SERVICE}",
        addresses=[socket.inet_aton(a.host) for a in addresses if _is_ipv4(a.host)],
        port=listen.port,
        properties={"id": endpoint_id, "formation": formation, "site": site},
        server=f"{endpoint_id[:32]}.local.",
    )
    try:
        async with asyncio.TaskGroup() as group:
            browser = _Browser(zeroconf, endpoint_id, formation, on_found, group)
            browsing = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[browser.changed])
            group.create_task(_register(zeroconf, info), name="mesh announce")
            try:
                yield
            finally:
                await browsing.async_cancel()
                browser.stop()
    finally:
        try:
            async with asyncio.timeout(2.0):
                await zeroconf.async_unregister_all_services()
                await zeroconf.async_close()
        except TimeoutError:
            zeroconf.zeroconf.close()


async def _register(zeroconf: AsyncZeroconf, info: AsyncServiceInfo) -> None:
    try:
        await (await zeroconf.async_register_service(info, allow_name_change=True))
    except OSError as error:
        _LOG.warning("this node cannot be announced on the local network: %s", error)


class _Browser:
    def __init__(
        self,
        zeroconf: AsyncZeroconf,
        endpoint_id: str,
        formation: str,
        on_found: Callable[[Found], None],
        group: asyncio.TaskGroup,
    ) -> None:
        self._zeroconf = zeroconf
        self._own = endpoint_id
        self._formation = formation
        self._on_found = on_found
        self._group = group
        self._ids: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """A service appeared, changed or went away."""
        if self._stopped:
            return
        if state_change is ServiceStateChange.Removed:
            if (endpoint_id := self._ids.pop(name, None)) is not None:
                self._on_found(Found(endpoint_id, (), ""))
            return
        task = self._group.create_task(self._resolve(service_type, name), name="mesh resolve")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Give up what is being resolved."""
        self._stopped = True
        for task in list(self._tasks):
            task.cancel()

    async def _resolve(self, service_type: str, name: str) -> None:
        info = AsyncServiceInfo(service_type, name)
        if not await info.async_request(self._zeroconf.zeroconf, _RESOLVE_MS):
            return
        properties = info.decoded_properties
        endpoint_id = properties.get("id") or ""
        try:
            check_endpoint_id(endpoint_id)
        except ConfigError:
            return
        if endpoint_id == self._own or properties.get("formation") != self._formation or info.port is None:
            return
        self._ids[name] = endpoint_id
        addresses = tuple(HostPort(host, info.port) for host in info.parsed_addresses(IPVersion.V4Only))
        if addresses:
            self._on_found(Found(endpoint_id, addresses, properties.get("site") or ""))


def _is_ipv4(host: str) -> bool:
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return True
