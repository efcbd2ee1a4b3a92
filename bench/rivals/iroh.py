"""iroh's blobs, by its own command line `sendme`: QUIC with BLAKE3-verified ranges, by direct address alone.

Built from crates.io by `make bench-deps` where there is a Rust compiler. No relay and no look-up service: an emulated
network has none, and a ticket of addresses needs none.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import ClassVar

from bench.net.network import ROOT
from bench.rivals.base import Fetch, Rival, RivalError, ended

OWN = ROOT / ".make" / "cargo" / "bin" / "sendme"
PORT = 4500


def program() -> str | None:
    """Where sendme is: what `make bench-deps` built, or one on the path."""
    return str(OWN) if OWN.exists() else shutil.which("sendme")


class Iroh(Rival):
    name: ClassVar[str] = "iroh"
    settings: ClassVar[str] = (
        "sendme (iroh-blobs), --relay disabled, a ticket of addresses; the holder offers before the clock starts; "
        "receive repeated until it succeeds, which goes on where it was"
    )
    programs: ClassVar[tuple[str, ...]] = ("sendme",)

    @classmethod
    def missing(cls) -> list[str]:
        return [] if program() else ["sendme, built by cargo"]

    @classmethod
    def version(cls) -> str:
        done = subprocess.run([program() or "sendme", "--version"], capture_output=True, text=True, check=False)
        return done.stdout.strip() or "?"

    def prepare(self) -> None:
        place = self.place
        address = place.net.address(place.holder)
        words = [program() or "sendme", "send", "--no-progress", "--relay", "disabled", "--ticket-type", "addresses"]
        words += ["--magic-ipv4-addr", f"{address}:{PORT}", str(place.package)]
        self.start(place.holder, words, cwd=place.folder(place.holder))
        log = place.folder(place.holder) / f"{self.name}.log"
        until = time.monotonic() + 60
        while time.monotonic() < until:
            found = re.search(r"sendme receive (blob\w+)", log.read_text(errors="replace"))
            if found:
                self._ticket = found[1]
                return
            time.sleep(0.1)
        raise RivalError(f"sendme gave no ticket: {log.read_text(errors='replace')[-500:]}")

    def begin(self, host: str) -> Fetch:
        folder = self.place.folder(host)
        words = [program() or "sendme", "receive", "--no-progress", "--relay", "disabled", self._ticket]
        process = self.start(host, ["sh", "-c", 'until "$@"; do sleep 1; done', "retry", *words], cwd=folder)
        return Fetch(folder / Path(self.place.package).name, ended(process, self.name))
