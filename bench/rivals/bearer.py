"""The bearer alone: curl as above, but through local ports instead of the network. Shows what the link gives, without
torrents, manifests and TLS on top.

Run as `python -m bench.rivals.bearer ADDRESS PORT HTTP_ADDRESS HTTP_PORT [PEER_ADDRESS PEER_PORT PORT_FILE]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from pathlib import Path
from typing import ClassVar

from bench.net.network import ROOT
from bench.rivals.base import Fetch, RivalError, ended
from bench.rivals.http import PORT, Http
from peat_p2p.core.address import HostPort
from peat_p2p.swarm.bearers.relay import Service, open_bearers

BEARER = 4400


class CurlOverBearer(Http):
    name: ClassVar[str] = "curl+bearer"
    settings: ClassVar[str] = "curl to a local port of our bearer (UDP, paced by delivery rate); both ends up before"
    programs: ClassVar[tuple[str, ...]] = ("curl",)
    verifies: ClassVar[bool] = False

    def prepare(self) -> None:
        super().prepare()
        net = self.place.net
        holder = net.address(self.place.holder)
        module = [sys.executable, "-m", "bench.rivals.bearer"]
        self.start(self.place.holder, [*module, holder, str(BEARER), holder, str(PORT)], cwd=ROOT)
        self._ports: dict[str, int] = {}
        for host in self.place.wanting:
            file = self.place.folder(host) / "port"
            own = [net.address(host), str(BEARER), "127.0.0.1", "9", holder, str(BEARER), str(file)]
            self.start(host, [*module, *own], cwd=ROOT)
            until = time.monotonic() + 20
            while not file.exists():
                if time.monotonic() > until:
                    raise RivalError(f"no bearer in {host}")
                time.sleep(0.05)
            self._ports[host] = int(file.read_text())

    def begin(self, host: str) -> Fetch:
        target = self.place.folder(host) / "package"
        url = f"http://127.0.0.1:{self._ports[host]}/files/{self.place.package.name}"
        return Fetch(target, ended(self.until_success(host, [*self.words, "-o", str(target), url]), self.name))


async def main(words: list[str]) -> None:
    services = {Service.METADATA: HostPort(words[2], int(words[3]))}
    async with open_bearers(HostPort(words[0], int(words[1])), services) as bearers:
        if len(words) > 4:
            local = await bearers.port_to(HostPort(words[4], int(words[5])), Service.METADATA)
            await asyncio.to_thread(Path(words[6]).write_text, str(local.port))
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1:]))
