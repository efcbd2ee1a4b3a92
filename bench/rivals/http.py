"""curl and aria2, from an HTTP server that knows ranges."""

from __future__ import annotations

import sys
from typing import ClassVar

from bench.net.network import ROOT
from bench.rivals.base import Fetch, Rival, ended

PORT = 8000


class Http(Rival):
    verifies: ClassVar[bool] = False

    def prepare(self) -> None:
        place = self.place
        words = [sys.executable, "-m", "bench.rivals.server", place.net.address(place.holder), str(PORT)]
        self.start(place.holder, [*words, str(place.package.parent)], cwd=ROOT)
        self.wait_for_port(place.holder, PORT)

    words: ClassVar[tuple[str, ...]] = (
        *("curl", "-sS", "-f", "-C", "-", "--connect-timeout", "20"),
        *("--speed-limit", "1", "--speed-time", "30"),
    )

    @property
    def url(self) -> str:
        return f"http://{self.place.net.address(self.place.holder)}:{PORT}/files/{self.place.package.name}"


class Curl(Http):
    name: ClassVar[str] = "curl"
    settings: ClassVar[str] = "-C - --connect-timeout 20 --speed-limit 1 --speed-time 30, repeated until it succeeds"
    programs: ClassVar[tuple[str, ...]] = ("curl",)

    def begin(self, host: str) -> Fetch:
        target = self.place.folder(host) / "package"
        return Fetch(target, ended(self.until_success(host, [*self.words, "-o", str(target), self.url]), self.name))


class Aria2(Http):
    name: ClassVar[str] = "aria2"
    settings: ClassVar[str] = (
        "-x16 -s16 -k1M -c --max-tries=0 --retry-wait=1 --timeout=30 --connect-timeout=20 --file-allocation=none"
    )
    programs: ClassVar[tuple[str, ...]] = ("aria2c",)

    def begin(self, host: str) -> Fetch:
        target = self.place.folder(host) / "package"
        words = [
            "aria2c",
            "-q",
            "--no-conf",
            *self.settings.split(),
            "-d",
            str(target.parent),
            "-o",
            target.name,
            self.url,
        ]
        return Fetch(target, ended(self.until_success(host, words), self.name))
