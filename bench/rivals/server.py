"""A small HTTP server for the holder: files with ranges (aiohttp), and a BitTorrent tracker for tools that need one.

Run as `python -m bench.rivals.server ADDRESS PORT FOLDER`.
"""

from __future__ import annotations

import socket
import sys
import urllib.parse
from pathlib import Path

from aiohttp import web


class Tracker:
    """Knows who is in which swarm; answers in the compact form."""

    def __init__(self) -> None:
        self._swarms: dict[str, dict[tuple[str, int], None]] = {}

    async def announce(self, request: web.Request) -> web.Response:
        raw = dict(part.partition("=")[::2] for part in request.query_string.split("&"))
        swarm = self._swarms.setdefault(urllib.parse.unquote(raw["info_hash"], "latin-1"), {})
        own = (request.remote or "", int(raw["port"]))
        swarm[own] = None
        peers = b"".join(
            socket.inet_aton(address) + port.to_bytes(2, "big") for address, port in swarm if (address, port) != own
        )
        return web.Response(body=b"d8:intervali30e12:min intervali5e5:peers%d:%se" % (len(peers), peers))


def main() -> None:
    """Serve until killed."""
    address, port, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    app = web.Application()
    app.router.add_get("/announce", Tracker().announce)
    app.router.add_static("/files", folder)
    web.run_app(app, host=address, port=port, print=None, access_log=None)


if __name__ == "__main__":
    main()
