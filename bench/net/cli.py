"""`python -m bench net ...`: the emulator by hand."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.net import state
from bench.net.network import Control, Network, NetworkError, command
from bench.net.profiles import PROFILES
from bench.net.shape import parse_rate
from bench.net.topology import BACKENDS, TopologyError, load


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; `exec` does not return at all."""
    parser = argparse.ArgumentParser(prog="python -m bench net", description="Emulated networks, by hand. Needs root.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="build the network of a topology file and leave it running")
    up.add_argument("file", type=Path)
    run = commands.add_parser("exec", help="run a command in a host")
    run.add_argument("host")
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    down = commands.add_parser("down", help="take the network down and end what runs in it")
    listing = commands.add_parser("list", help="show the networks that run")
    stats = commands.add_parser("stats", help="show what the links have carried, as JSON")
    change = commands.add_parser("change", help="change a link: change LINK loss=0.1 rate=2M cut=true")
    change.add_argument("link")
    change.add_argument("values", nargs="+", metavar="NAME=VALUE")
    for one in (run, down, stats, change):
        one.add_argument("--name", help="which network, when several run")
    commands.add_parser("profiles", help="list the link profiles")
    test = commands.add_parser("selftest", help="measure the emulator itself")
    test.add_argument("--json", type=Path)
    test.add_argument("--seconds", type=float, default=3.0, help="length of each measurement")
    test.add_argument("--backend", choices=BACKENDS, default="auto", help="what makes the links (default: auto)")
    test.add_argument(
        "--fastest",
        type=parse_rate,
        default=float("inf"),
        metavar="RATE",
        help="leave out faster links, on a machine that cannot send that fast: 3M",
    )
    options = parser.parse_args(list(argv))
    try:
        return _do(options, listing.prog)
    except (NetworkError, TopologyError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _do(options: argparse.Namespace, _prog: str) -> int:
    match options.command:
        case "up":
            network = Network(load(options.file), detached=True)
            network.up()
            for host in network.topology.hosts:
                print(f"{host.name:<16} {network.address(host.name):<14} site {host.site}")
        case "list":
            for directory, one in state.running().items():
                print(f"{one.name:<16} relay {one.pid}  {directory}  hosts: {', '.join(one.addresses)}")
        case "profiles":
            for profile in PROFILES.values():
                print(f"{profile.name:<10} {profile.stands_for}\n  down {profile.down}\n  up   {profile.up}")
        case "selftest":
            from bench.net.selftest import selftest

            found = selftest(options.seconds, lambda text: print(text, flush=True), options.backend, options.fastest)
            if options.json is not None:
                options.json.write_text(json.dumps(found, indent=1) + "\n")
            return 0 if found["holds"] else 1
        case _:
            return _on_running(options)
    return 0


def _on_running(options: argparse.Namespace) -> int:
    directory, one = _the_one(options.name)
    match options.command:
        case "exec":
            if not options.words:
                raise NetworkError("exec needs a command")
            words = command(one, directory, options.host, options.words)
            os.execvp(words[0], words)
        case "stats":
            print(json.dumps(Control(directory).ask("stats"), indent=1))
        case "change":
            values = {}
            for word in options.values:
                name, _, value = word.partition("=")
                try:
                    values[name] = json.loads(value)
                except ValueError:
                    values[name] = value
            Control(directory).ask("change", link=options.link, values=values)
        case "down":
            Control(directory).ask("stop")
    return 0


def _the_one(name: str | None) -> tuple[Path, state.State]:
    found = {path: one for path, one in state.running().items() if name in (None, one.name)}
    if len(found) != 1:
        names = ", ".join(one.name for one in state.running().values()) or "none"
        raise NetworkError(f"which network? {len(found)} match; running: {names}")
    return next(iter(found.items()))
