"""A network emulator: namespaces, and one process that is every link between them.

`shape` says what a link does, `profiles` names the links that matter, `topology` says who is joined to whom (all pure);
`emulator` is the process that does it, with TUN devices and a loop (`relay`) or with tc (`netem`), `network` the face
for tests and benches, `cli` the one by hand, `selftest` the proof. `python -m bench net --help`.
"""

from bench.net.cli import main
from bench.net.network import Network, NetworkError, why_not
from bench.net.topology import Topology, load, pair, parse
from bench.result import Command

COMMAND = Command("net", "emulated networks by hand: up, exec, down, stats, selftest", main)

__all__ = ["COMMAND", "Network", "NetworkError", "Topology", "load", "pair", "parse", "why_not"]
