"""Run by bench/net/network.py as `python -m bench.net.process STATE_DIR [--detached]`, with the topology on stdin.

Unless detached it lives no longer than its standard input, that is: than the process that started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from bench.net.emulator import Emulator
from bench.net.netem import Netem, why_not
from bench.net.relay import Relay
from bench.net.topology import Topology, from_table


def emulator(topology: Topology, directory: Path) -> Emulator:
    """The backend that the topology asks for: by itself netem where it can do it. Raises RuntimeError."""
    if topology.backend == "tun":
        return Relay(topology, directory)
    reason = why_not(topology)
    if reason is None:
        return Netem(topology, directory)
    if topology.backend == "netem":
        raise RuntimeError(f"netem cannot do it: {reason}")
    return Relay(topology, directory)


def main() -> int:
    """Build, say "ready", run, clean up."""
    detached = "--detached" in sys.argv[2:]
    network: Emulator | None = None

    def stop(_number: int, _frame: object) -> None:
        if network is not None:
            network.stopping = True

    signal.signal(signal.SIGTERM, stop)
    # Ctrl-C in a terminal reaches the whole group; the owner decides, and closes our input when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    try:
        network = emulator(from_table(json.loads(sys.stdin.readline())), Path(sys.argv[1]))
        network.build()
        network.run((wake_read,) if detached else (wake_read, sys.stdin.fileno()))
    except (RuntimeError, OSError) as error:
        print(" ".join(str(error).split()), flush=True)  # whoever waits for "ready" says it
        return 1
    finally:
        if network is not None:
            network.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
