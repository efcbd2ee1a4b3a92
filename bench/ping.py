"""A foreground user of a link, whose round trips show what a transfer does to it."""

from __future__ import annotations

import re
import statistics
import subprocess
import threading

from bench.net import Network


class Pinger:
    """A foreground user: a ping from an agent to the holder, before and during the transfer."""

    def __init__(self, net: Network, host: str, target: str, interval: float) -> None:
        words = ["ping", "-n", "-D", "-i", str(interval), net.address(target)]
        self._process = net.start(host, words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._seen: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._read, name="pinger")
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = re.match(r"\[([0-9.]+)\].* time=([0-9.]+) ms", line)
            if found:
                self._seen.append((float(found[1]), float(found[2])))

    def finish(self, began: float) -> tuple[float | None, float | None, float | None]:
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        idle = [ms for at, ms in self._seen if at < began]
        busy = sorted(ms for at, ms in self._seen if at >= began + 1.0)
        if not idle or len(busy) < 3:
            return (statistics.median(idle) if idle else None), None, None
        base = statistics.median(idle)
        return base, statistics.median(busy) - base, busy[int(len(busy) * 0.95)] - base
