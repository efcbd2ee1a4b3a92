"""rsync, from a daemon on the holder."""

from __future__ import annotations

from typing import ClassVar

from bench.rivals.base import Fetch, Rival, ended

PORT = 8730


class Rsync(Rival):
    name: ClassVar[str] = "rsync"
    settings: ClassVar[str] = "rsync:// --partial --inplace --timeout=60 --contimeout=20, repeated until it succeeds"
    programs: ClassVar[tuple[str, ...]] = ("rsync",)

    def prepare(self) -> None:
        place = self.place
        folder = place.folder(place.holder)
        config = folder / "rsyncd.conf"
        config.write_text(
            f"use chroot = no\nuid = root\ngid = root\npid file = {folder}/rsyncd.pid\n"
            f"[files]\npath = {place.package.parent}\nread only = yes\n"
        )
        self.start(
            place.holder,
            ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={PORT}"],
        )
        self.wait_for_port(place.holder, PORT)

    def begin(self, host: str) -> Fetch:
        target = self.place.folder(host) / "package"
        source = f"rsync://{self.place.net.address(self.place.holder)}:{PORT}/files/{self.place.package.name}"
        words = ["rsync", "--partial", "--inplace", "--timeout=60", "--contimeout=20", source, str(target)]
        return Fetch(target, ended(self.until_success(host, words), self.name))
