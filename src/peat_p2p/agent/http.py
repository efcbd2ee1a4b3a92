"""The agent's HTTP face.

Owns what a polling sidecar or a tool in the field asks an agent (`/status`, ListPackages, ListPulledPackages: shapes
fixed, see the README), and the mount of the control service. Rules: numbers are JSON numbers; control is for this
machine alone; a request whose Host is another site's name is refused, so that no web page can speak to a loopback port
through its visitor's browser.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from peat_p2p.agent.broadcasts import Broadcasts
from peat_p2p.agent.control import ControlService
from peat_p2p.agent.documents import REGISTRY
from peat_p2p.agent.service import Agent
from peat_p2p.agent.upkeep import Upkeep
from peat_p2p.core.clock import Clock
from peat_p2p.fleet.holdings import PullStatus
from peat_p2p.wire.asgi import mount
from peat_p2p.wire.errors import ErrorInterceptor
from peat_p2p.wire.gen.peat.agent.v1.agent_connect import PeatAgentASGIApplication

LIST_PACKAGES = "/zarfapi.v1.ZarfAPIService/ListPackages"
LIST_PULLED = "/registryapi.v1.RegistryService/ListPulledPackages"
DEPLOYED = 1

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_application(agent: Agent, upkeep: Upkeep, broadcasts: Broadcasts, clock: Clock) -> web.Application:
    """The application with everything the agent answers."""
    app = web.Application(middlewares=[_guard])

    async def stopping(_app: web.Application) -> None:
        agent.stop()

    app.on_shutdown.append(stopping)
    face = _Face(agent, clock)
    app.router.add_get("/status", face.status)
    app.router.add_post(LIST_PACKAGES, face.list_packages)
    app.router.add_post(LIST_PULLED, face.list_pulled)
    mount(app, PeatAgentASGIApplication(ControlService(agent, upkeep, broadcasts), interceptors=[ErrorInterceptor()]))
    return app


class _Face:
    def __init__(self, agent: Agent, clock: Clock) -> None:
        self._agent = agent
        self._clock = clock

    async def status(self, _request: web.Request) -> web.Response:
        beat = self._agent.facts.heartbeat()
        return web.json_response(
            {
                "version": beat.get("version", ""),
                "architecture": beat.get("architecture", ""),
                "classification": beat.get("classification", ""),
                "k8sVersion": beat.get("k8s_version", ""),
                "k8sNodeStatus": beat.get("k8s_node_status", ""),
                "zarfVersion": beat.get("zarf_version", ""),
                "runMode": beat.get("run_mode", ""),
                "systemTime": int(self._clock.wall()),
            }
        )

    async def list_packages(self, request: web.Request) -> web.Response:
        await _check_body(request)
        packages = [
            {
                "name": deployment.package,
                "version": deployment.version,
                "status": DEPLOYED,
                "flavor": "",
                "namespaceOverride": "",
                "annotations": {"arch": deployment.arch, "manifest": deployment.manifest},
            }
            for deployment in self._agent.facts.in_force()
        ]
        return web.json_response({"packages": packages})

    async def list_pulled(self, request: web.Request) -> web.Response:
        await _check_body(request)
        tags: dict[str, list[dict[str, Any]]] = {}
        for summary in self._agent.facts.held():
            manifest = summary.manifest
            tags.setdefault(manifest.name, []).append(_tag(manifest, PullStatus.COMPLETE, manifest.total_bytes))
        for ticket in self._agent.transfers.active():
            if self._agent.facts.summary(ticket.digest) is None:
                status = ticket.transfer.status()
                tags.setdefault(ticket.manifest.name, []).append(
                    _tag(ticket.manifest, PullStatus.PULLING, status.verified)
                )
        packages = [{"repoName": name, "packageName": name, "tags": found} for name, found in sorted(tags.items())]
        registry = {"name": REGISTRY, "host": str(self._agent.engine.metadata_address), "packages": packages}
        return web.json_response({"registries": [registry]})


def _tag(manifest: Any, status: PullStatus, downloaded: int) -> dict[str, Any]:
    return {
        "reference": manifest.reference,
        "arch": manifest.arch,
        "version": manifest.version,
        "totalBytes": manifest.total_bytes,
        "pullInfo": {"downloadedBytes": downloaded, "status": int(status)},
    }


async def _check_body(request: web.Request) -> None:
    """The calls take an empty object; anything else but nothing at all is the caller's mistake."""
    if request.headers.get("Content-Encoding"):
        return
    body = await request.read()
    try:
        good = not body or isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        good = False
    if not good:
        error = json.dumps({"code": "invalid_argument", "message": "the body is not a JSON object"})
        raise web.HTTPBadRequest(text=error, content_type="application/json")


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    local = _is_loopback(request.remote or "")
    if local and not _is_plain_host(request.host):
        return _denied(f"Host {request.host!r} is not an address of this machine")
    if request.path.startswith("/peat.agent.v1.") and not local:
        return _denied("the agent takes orders only from its own machine")
    return await handler(request)


def _denied(message: str) -> web.Response:
    return web.json_response({"code": "permission_denied", "message": message}, status=403)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _is_plain_host(host: str) -> bool:
    """Whether a Host header names an address or localhost, rather than a name that anybody may point anywhere."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
