"""peat-p2p itself: real `peat up` nodes of one formation in the hosts, a published package, `peat pull`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, ClassVar

from bench.net.network import ROOT
from bench.rivals.base import Fetch, Rival, RivalError, ended
from peat_p2p import __version__
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role

MESH = 7400
PEAT = str(ROOT / ".venv" / "bin" / "peat")


class Peat(Rival):
    name: ClassVar[str] = "peat"
    settings: ClassVar[str] = (
        "`peat up` with defaults at every host, agents linked with the holder's sidecar; the package is published and "
        "known to the agents before the clock starts; `peat pull --to`, its own start included"
    )

    @classmethod
    def version(cls) -> str:
        return f"peat-p2p {__version__}"

    def prepare(self) -> None:
        place = self.place
        formation = Formation.init(place.root / "formation", "bench")
        roles = (Role.AGENT, Role.PUBLISHER, Role.OPERATOR)
        holder = formation.issue(place.holder, roles, place.root / "node-holder")
        self._up(place.holder, "near", place.root / "node-holder", [])
        self._ready(place.holder)
        peer = f"{holder.endpoint_id}@{place.net.address(place.holder)}:{MESH}"
        for host in place.wanting:
            formation.issue(host, (Role.AGENT,), place.root / f"node-{host}")
            self._up(host, "far", place.root / f"node-{host}", ["--peer", peer])
        for host in place.wanting:
            self._ready(host)
        self._peat(place.holder, "publish", str(place.package), "--name", "package", "--version", "1.0")
        for host in place.wanting:
            self._known(host)

    def begin(self, host: str) -> Fetch:
        place = self.place
        target = place.folder(host) / "got"
        words = [PEAT, "pull", "package:1.0", "--json", "--to", str(target), "--data-dir", str(self._data(host))]
        process = self.start(host, words)
        return Fetch(target / place.package.name, ended(process, self.name))

    def notes(self) -> dict[str, Any]:
        """What each pull says about itself."""
        said = {}
        for host in self.place.wanting:
            text = (self.place.folder(host) / f"{self.name}.log").read_text(errors="replace")
            start = text.rfind("\n{")
            try:
                # The node's own log goes on behind it.
                said[host] = json.JSONDecoder().raw_decode(text[start + 1 :])[0] if start >= 0 else text[-500:]
            except ValueError:
                said[host] = text[-500:]
        return said

    def _data(self, host: str) -> Path:
        return self.place.folder(host) / "data"

    def _up(self, host: str, site: str, credentials: Path, more: list[str]) -> None:
        address = self.place.net.address(host)
        words = [PEAT, "up", "--formation", str(credentials), "--data-dir", str(self._data(host)), "--site", site]
        words += ["--mesh-listen", f"{address}:{MESH}", "--swarm-listen", f"{address}:0"]
        words += ["--metadata-listen", f"{address}:0", "--no-mdns", "--log-level", "info", *more]
        self.start(host, words)

    def _ready(self, host: str) -> None:
        until = time.monotonic() + 60
        while not (self._data(host) / "node.json").exists():
            if time.monotonic() > until:
                raise RivalError(f"peat up in {host} is not ready: {self._log(host)}")
            time.sleep(0.05)

    def _known(self, host: str) -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            done = self.place.net.run(
                host, [PEAT, "packages", "--json", "--data-dir", str(self._data(host))], check=False, timeout=60
            )
            if done.returncode == 0 and '"package"' in done.stdout:
                time.sleep(2.0)  # who holds it has come too
                return
            time.sleep(0.5)
        raise RivalError(f"{host} did not hear of the package: {self._log(host)}")

    def _peat(self, host: str, *words: str) -> None:
        done = self.place.net.run(host, [PEAT, *words, "--data-dir", str(self._data(host))], check=False, timeout=600)
        if done.returncode:
            raise RivalError(f"peat {words[0]} in {host}: {done.stderr[-1000:]}")

    def _log(self, host: str) -> str:
        return (self.place.folder(host) / f"{self.name}.log").read_text(errors="replace")[-2000:]
