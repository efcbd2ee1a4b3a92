"""`python -m bench NAME [SCENARIO]`: runs a bench and says whether its bars hold.

Owns the command line alone. Benches are found by name: the module `bench/NAME.py` (dashes become underscores) with a
constant `BENCH`, or `COMMAND` for a tool. One that cannot be imported is listed with its reason and spoils no other.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import pkgutil
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import bench as package
from bench.net.calibration import calibration
from bench.net.network import Network
from bench.result import Bench, Command, ResultFile, Run, Scenario


def registered() -> dict[str, Bench | Command | str]:
    """Every bench and command by name; a string is the reason why one could not be loaded."""
    found: dict[str, Bench | Command | str] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("_"):
            continue
        try:
            entry = _entry(module.name)
        except Exception as error:
            found[module.name.replace("_", "-")] = f"cannot be loaded: {error!r}"
            continue
        if entry is not None:
            found[entry.name] = entry
    return found


def _entry(module_name: str) -> Bench | Command | None:
    module = importlib.import_module(f"bench.{module_name}")
    entry = getattr(module, "BENCH", None) or getattr(module, "COMMAND", None)
    return entry if isinstance(entry, Bench | Command) else None


def _find(name: str) -> Bench | Command | None:
    if re.fullmatch(r"[a-z][a-z0-9-]*", name) and any(
        module.name == name.replace("-", "_") for module in pkgutil.iter_modules(package.__path__)
    ):
        entry = _entry(name.replace("-", "_"))
        if entry is not None:
            return entry
    found = registered().get(name)
    return found if isinstance(found, Bench | Command) else None


def _listing() -> str:
    lines = [
        "usage: python -m bench NAME [SCENARIO] [--json FILE] [--quick] [--seed N]",
        "",
        "Without SCENARIO every scenario of the bench is run. Exit code: 0 when all bars hold, 1 when one is missed",
        "or a scenario fails, 2 for wrong usage.",
        "",
    ]
    for name, entry in sorted(registered().items()):
        if isinstance(entry, str):
            lines.append(f"{name:<12} {entry}")
            continue
        lines.append(f"{name:<12} {entry.summary}")
        if isinstance(entry, Bench):
            lines.extend(f"  {scenario.name:<20} {scenario.summary}" for scenario in entry.scenarios)
    return "\n".join(lines)


def _parser(bench: Bench) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {bench.name}",
        description=bench.summary,
        epilog="scenarios:\n" + "\n".join(f"  {one.name:<20} {one.summary}" for one in bench.scenarios),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenario", nargs="?", choices=[one.name for one in bench.scenarios], metavar="SCENARIO")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--quick", action="store_true", help="smaller inputs and fewer runs, for a first look")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of everything random (default 1)")
    parser.add_argument("--no-calibration", action="store_true", help="do not measure the emulator of links, if used")
    if bench.arguments is not None:
        bench.arguments(parser)
    return parser


def _measure(scenario: Scenario, run: Run) -> None:
    outcome = scenario.run(run)
    if inspect.isawaitable(outcome):

        async def until_done() -> None:
            await outcome

        asyncio.run(until_done())


def run_bench(bench: Bench, argv: Sequence[str]) -> int:
    """Run what `argv` asks for; the exit code says whether all bars hold."""
    options = _parser(bench).parse_args(argv)
    chosen = [one for one in bench.scenarios if options.scenario in (None, one.name)]
    file = ResultFile(bench.name, options.seed, options.quick, ("python", "-m", "bench", bench.name, *argv))
    good = True
    for scenario in chosen:
        run = Run(bench.name, scenario.name, options.seed, options.quick, options)
        started = time.monotonic()
        error = None
        try:
            _measure(scenario, run)
        except Exception:
            error = traceback.format_exc()
            print(error, file=sys.stderr)
        good = good and error is None and all(bar.holds for bar in run.bars)
        seconds = time.monotonic() - started
        if Network.made and not options.no_calibration:
            run.record("calibration", calibration(run.say, quick=run.quick))
        file.add(run, seconds, error)
        if options.json is not None:
            file.write(options.json)
    for entry in file.scenarios:
        missed = [bar["name"] for bar in entry["bars"] if not bar["holds"]]
        state = "failed" if entry["error"] else f"missed {', '.join(missed)}" if missed else "all bars hold"
        print(f"{bench.name}/{entry['scenario']}: {state} ({len(entry['bars'])} bars, {entry['seconds']:.1f} s)")
    return 0 if good else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to a bench or a command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_listing())
        return 0 if words else 2
    entry = _find(words[0])
    if entry is None:
        print(f"no bench is called {words[0]!r}; `python -m bench --help` lists them", file=sys.stderr)
        return 2
    if isinstance(entry, Command):
        return entry.main(words[1:])
    return run_bench(entry, words[1:])


if __name__ == "__main__":
    sys.exit(main())
