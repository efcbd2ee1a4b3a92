"""syncthing: one folder, sent by the holder, received by the others; the clock starts when the file is put into it."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from typing import Any, ClassVar

from bench.rivals.base import Arrived, Fetch, Rival, RivalError

PORT = 22000
API = 8384


class Syncthing(Rival):
    name: ClassVar[str] = "syncthing"
    settings: ClassVar[str] = (
        "static tcp:// addresses, all devices know each other and one of each pair calls, send-only at the holder, "
        "no discovery, relays or NAT; "
        "reconnectionIntervalS 5, compression never, lan bandwidth unlimited; connected before the clock starts"
    )
    programs: ClassVar[tuple[str, ...]] = ("syncthing",)

    def prepare(self) -> None:
        place = self.place
        hosts = (place.holder, *place.wanting)
        devices = {host: self._generate(host) for host in hosts}
        daemons = {}
        for host in hosts:
            self._configure(host, devices)
            home = str(place.folder(host) / "home")
            words = ["syncthing", "serve", f"--home={home}", "--no-browser", "--no-restart", "--no-upgrade"]
            daemons[host] = self.start(host, words, env={"STNODEFAULTFOLDER": "1"})
        self._daemons = daemons
        for host in hosts:
            self.wait_for_port(host, API, address="127.0.0.1")
        until = time.monotonic() + 120
        while time.monotonic() < until:
            found = self._rest(place.holder, "GET", "/rest/system/connections").get("connections", {})
            if sum(bool(one.get("connected")) for one in found.values()) == len(place.wanting):
                break
            time.sleep(0.5)
        else:
            raise RivalError("syncthing's devices did not connect within 120 s")
        time.sleep(3)  # indexes of the empty folder have been exchanged
        self._put = False

    def begin(self, host: str) -> Fetch:
        place = self.place
        if not self._put:
            shared = place.folder(place.holder) / "shared"
            shutil.copyfile(place.package, shared / ".stignore-me")
            (shared / ".stignore-me").rename(shared / place.package.name)
            self._rest(place.holder, "POST", "/rest/db/scan?folder=p")
            self._put = True
        target = place.folder(host) / "shared" / place.package.name
        return Fetch(target, Arrived(target, place.package.stat().st_size, self._daemons[host], self.name))

    def _generate(self, host: str) -> str:
        home = self.place.folder(host) / "home"
        subprocess.run(
            ["syncthing", "generate", f"--home={home}", "--no-default-folder"],
            check=True,
            capture_output=True,
            env={"HOME": str(self.place.folder(host)), "PATH": "/usr/bin:/bin"},
        )
        tree = ElementTree.parse(home / "config.xml")
        device = tree.find("device")
        if device is None:
            raise RivalError("syncthing generate wrote no device")
        return device.attrib["id"]

    def _configure(self, host: str, devices: dict[str, str]) -> None:
        place = self.place
        shared = place.folder(host) / "shared"
        shared.mkdir()
        (shared / ".stfolder").mkdir()
        path = place.folder(host) / "home" / "config.xml"
        tree = ElementTree.parse(path)
        root = tree.getroot()
        for name in ("device", "folder"):
            for element in root.findall(name):
                root.remove(element)
        kind = "sendonly" if host == place.holder else "receiveonly"
        folder = ElementTree.SubElement(root, "folder", id="p", label="p", path=str(shared), type=kind)
        folder.set("rescanIntervalS", "3600")
        folder.set("fsWatcherEnabled", "false")
        for other, identity in devices.items():
            ElementTree.SubElement(folder, "device", id=identity)
            device = ElementTree.SubElement(root, "device", id=identity, name=other, compression="never")
            # One side of each pair calls: when both do on a slow link, each closes the other's connection again.
            calls = list(devices).index(other) < list(devices).index(host)
            address = f"tcp://{place.net.address(other)}:{PORT}" if calls else "tcp://127.0.0.1:9"
            ElementTree.SubElement(device, "address").text = address
        options = root.find("options")
        gui = root.find("gui")
        if options is None or gui is None:
            raise RivalError("syncthing generate wrote no options")
        wanted = {
            "listenAddress": f"tcp://0.0.0.0:{PORT}",
            "globalAnnounceEnabled": "false",
            "localAnnounceEnabled": "false",
            "relaysEnabled": "false",
            "natEnabled": "false",
            "startBrowser": "false",
            "urAccepted": "-1",
            "crashReportingEnabled": "false",
            "reconnectionIntervalS": "5",
            "autoUpgradeIntervalH": "0",
        }
        for name, value in wanted.items():
            found = options.find(name)
            (ElementTree.SubElement(options, name) if found is None else found).text = value
        key = gui.find("apikey")
        if key is None:
            key = ElementTree.SubElement(gui, "apikey")
        key.text = "bench"
        tree.write(path)

    def _rest(self, host: str, method: str, path: str) -> dict[str, Any]:
        with self.place.net.inside(host):
            connection = http.client.HTTPConnection("127.0.0.1", API, timeout=30)
            connection.connect()
        try:
            connection.request(method, path, headers={"X-API-Key": "bench"})
            body = connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            raise RivalError(f"syncthing in {host} does not answer: {error}") from error
        finally:
            connection.close()
        return dict(json.loads(body)) if body else {}
