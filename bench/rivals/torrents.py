"""transmission with a tracker on the holder, and libtorrent as it comes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from bench.net.network import ROOT
from bench.rivals.base import Arrived, Fetch, Rival, RivalError

TRACKER = 8000
RPC = 9091
PEERS = 51413


class Transmission(Rival):
    name: ClassVar[str] = "transmission"
    settings: ClassVar[str] = (
        "tracker on the holder, uTP off (it starves, see the findings), DHT, PEX, LPD off, 256 KiB pieces, "
        "daemons up and the holder seeding before the clock starts"
    )
    programs: ClassVar[tuple[str, ...]] = ("transmission-daemon", "transmission-remote", "transmission-create")

    def prepare(self) -> None:
        place = self.place
        holder = place.net.address(place.holder)
        words = [sys.executable, "-m", "bench.rivals.server", holder, str(TRACKER), str(place.package.parent)]
        self.start(place.holder, words, cwd=ROOT)
        self.wait_for_port(place.holder, TRACKER)
        self._torrent = place.root / "package.torrent"
        tracker = f"http://{holder}:{TRACKER}/announce"
        create = ["transmission-create", "-s", "256", "-t", tracker, "-o", str(self._torrent), str(place.package)]
        subprocess.run(create, check=True, capture_output=True)
        self._daemons = {host: self._daemon(host) for host in (place.holder, *place.wanting)}
        for host in self._daemons:
            self.wait_for_port(host, RPC, address="127.0.0.1")
        self._remote(place.holder, "-a", str(self._torrent), "-w", str(place.package.parent))
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if "100%" in self._remote(place.holder, "-l") and "Verifying" not in self._remote(place.holder, "-l"):
                time.sleep(1)  # its announce is with the tracker
                return
            time.sleep(0.2)
        raise RivalError("transmission's holder did not find its file within 60 s")

    def begin(self, host: str) -> Fetch:
        folder = self.place.folder(host) / "got"
        folder.mkdir(exist_ok=True)
        self._remote(host, "-a", str(self._torrent), "-w", str(folder))
        target = folder / self.place.package.name
        return Fetch(target, Arrived(target, self.place.package.stat().st_size, self._daemons[host], self.name))

    def _daemon(self, host: str) -> subprocess.Popen[Any]:
        home = self.place.folder(host) / "transmission"
        home.mkdir()
        settings = {
            "bind-address-ipv4": "0.0.0.0",
            "cache-size-mb": 16,
            "dht-enabled": False,
            "download-queue-enabled": False,
            "encryption": 1,
            "lpd-enabled": False,
            "peer-port": PEERS,
            "pex-enabled": False,
            "port-forwarding-enabled": False,
            "rename-partial-files": True,
            "rpc-bind-address": "127.0.0.1",
            "rpc-port": RPC,
            "rpc-whitelist-enabled": False,
            "seed-queue-enabled": False,
            "utp-enabled": False,
        }
        (home / "settings.json").write_text(json.dumps(settings))
        return self.start(host, ["transmission-daemon", "-f", "-g", str(home)])

    def _remote(self, host: str, *words: str) -> str:
        done = self.place.net.run(host, ["transmission-remote", f"127.0.0.1:{RPC}", *words], timeout=30)
        return done.stdout


class Libtorrent(Rival):
    name: ClassVar[str] = "libtorrent"
    settings: ClassVar[str] = "default settings of the library, v1 torrent, connect_peer to every other, hosts at cubic"

    @classmethod
    def version(cls) -> str:
        import libtorrent

        return f"libtorrent {libtorrent.version}"

    def prepare(self) -> None:
        place = self.place
        self._torrent = place.root / "package.torrent"
        make = [sys.executable, "-m", "bench.rivals.plain", "make", str(place.package), str(self._torrent)]
        subprocess.run(make, check=True, capture_output=True, cwd=ROOT)
        self._run(place.holder, place.package.parent, [])
        self.wait_for_port(place.holder, PEERS)

    def begin(self, host: str) -> Fetch:
        place = self.place
        folder = place.folder(host) / "got"
        folder.mkdir(exist_ok=True)
        others = [place.net.address(other) for other in (place.holder, *place.wanting) if other != host]
        self._run(host, folder, others)
        done = folder.parent / "done"
        return Fetch(folder / place.package.name, done.exists)

    def _run(self, host: str, folder: Path, others: list[str]) -> subprocess.Popen[Any]:
        words = [sys.executable, "-m", "bench.rivals.plain", "run", str(self._torrent), str(folder)]
        done = self.place.folder(host) / "done"
        return self.start(host, [*words, self.place.net.address(host), str(PEERS), str(done), *others], cwd=ROOT)
