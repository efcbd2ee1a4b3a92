"""Owns what a bench is and what its result file holds.

A bench is a module of this package with a constant `BENCH`; `python -m bench` finds it by name:

    async def cold_start(run: Run) -> None:              # plain functions work too
        seconds = ...
        run.record("seconds", seconds, unit="s")          # a figure; a dict or a list of rows is fine too
        run.baseline("curl", {"seconds": 12.1})           # what is not ours, measured in the same run
        run.at_most("seconds", seconds, 10.0, unit="s")   # a bar: missed bars make the exit code 1
    run.plot("growth", "Seconds until all know", x="nodes", y="s", log="xy",
             series={"ours": [(100, 0.1), (1000, 0.4)], "naive": [(100, 0.2)]}, limits={"aim": 5.0})

    BENCH = Bench("store", "the chunk store", (Scenario("cold-start", "open a store of 1,000 packages", cold_start),))

A result says where it came from (machine, library versions, git revision, seed), so that two files can be compared
or refused. It is written atomically, and also when a scenario fails: what was measured before is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from peat_p2p.core.atomic import write_atomic

SCHEMA = "peat-bench/1"
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
LIBRARIES = (
    "aiohttp",
    "blake3",
    "connectrpc",
    "cryptography",
    "libtorrent",
    "protobuf-py",
    "pycrdt",
    "pyfastcdc",
    "zstandard",
)


_SEEDS_APART = 1000


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that was promised: `value` against `limit`, in the direction of `relation`."""

    name: str
    value: float | None
    relation: str
    limit: float
    unit: str
    holds: bool

    def line(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.4g}"
        mark = "holds " if self.holds else "MISSED"
        return f"{mark}  {self.name}: {value} {self.relation} {self.limit:g} {self.unit}".rstrip()


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture that the report draws of a scenario's own figures: the result file holds the points, not the picture.

    `series` maps a label to points (x, y), or (x, y, lowest, highest) for a spread. x is a number with `kind` "line"
    or "points", and a text with "bars" (groups in the order they first come); a y of None is a gap. `log` names the
    axes with a logarithmic scale ("", "x", "y", "xy"). `limits` draws a level across under a label.
    """

    name: str
    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[Sequence[Any]]]
    kind: str = "line"
    log: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in ("line", "points", "bars"):
            raise ValueError(f"plot {self.name}: there are line, points and bars, not {self.kind!r}")
        if self.log not in ("", "x", "y", "xy"):
            raise ValueError(f"plot {self.name}: log is '', 'x', 'y' or 'xy', not {self.log!r}")
        for label, points in self.series.items():
            if any(len(point) not in (2, 4) for point in points):
                raise ValueError(f"plot {self.name}: {label} has a point that is neither (x, y) nor (x, y, low, high)")
            if self.kind != "bars" and any(isinstance(point[0], str) for point in points):
                raise ValueError(f"plot {self.name}: {label} has a text as x; only bars have names")


@dataclass(slots=True)
class Run:
    """What a scenario gets: its seed and options, and where its figures go."""

    bench: str
    scenario: str
    seed: int
    quick: bool
    options: argparse.Namespace = field(default_factory=argparse.Namespace)
    parameters: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    baselines: dict[str, Any] = field(default_factory=dict)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plots: dict[str, Plot] = field(default_factory=dict)
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.seed}:{self.bench}:{self.scenario}")

    def seeds(self, runs: int) -> list[int]:
        """One for each of so many runs, beginning with the scenario's; other `--seed`s have others."""
        return [self.seed + _SEEDS_APART * number for number in range(runs)]

    def parameter(self, **values: Any) -> None:
        """Write down what the scenario was run with."""
        self.parameters.update(values)

    def record(self, name: str, value: Any, unit: str = "") -> None:
        """Keep a figure under its name, and show it."""
        self.results[name] = value
        if unit:
            self.units[name] = unit
        shown = value if isinstance(value, int | float | str) else "(see the result file)"
        self.say(
            f"{name} = {shown:.6g} {unit}".rstrip() if isinstance(shown, float) else f"{name} = {shown} {unit}".rstrip()
        )

    def spread(self, name: str, values: Sequence[float], unit: str = "") -> float:
        """Keep several measurements of one figure as median, lowest and highest; return the median."""
        middle = statistics.median(values)
        self.results[name] = {"median": middle, "min": min(values), "max": max(values), "runs": list(values)}
        if unit:
            self.units[name] = unit
        self.say(f"{name} = {middle:.6g} {unit} ({min(values):.6g} to {max(values):.6g}, {len(values)} runs)")
        return middle

    def baseline(self, name: str, figures: Mapping[str, Any]) -> None:
        """Keep what something that is not ours did under the same conditions."""
        self.baselines[name] = dict(figures)

    def plot(
        self,
        name: str,
        title: str,
        *,
        x: str,
        y: str,
        series: Mapping[str, Sequence[Sequence[Any]]],
        kind: str = "line",
        log: str = "",
        limits: Mapping[str, float] | None = None,
    ) -> None:
        """Have the report draw this (see Plot); a second plot of the same name takes the place of the first."""
        self.plots[name] = Plot(name, title, x, y, series, kind, log, dict(limits or {}))

    def note(self, text: str) -> None:
        """Say something about the run that a reader of its figures must know."""
        self.notes.append(text)
        self.say(text)

    def at_most(self, name: str, value: float | None, limit: float, unit: str = "") -> bool:
        """A bar that holds when the value is no more than the limit; a value of None is a miss."""
        return self._bar(Bar(name, value, "<=", limit, unit, _measured(value) and value is not None and value <= limit))

    def at_least(self, name: str, value: float | None, limit: float, unit: str = "") -> bool:
        """A bar that holds when the value is no less than the limit; a value of None is a miss."""
        return self._bar(Bar(name, value, ">=", limit, unit, _measured(value) and value is not None and value >= limit))

    def say(self, text: str) -> None:
        """Progress for whoever watches; never part of the result."""
        print(f"[{self.bench}/{self.scenario}] {text}", file=sys.stderr, flush=True)

    def _bar(self, bar: Bar) -> bool:
        self.bars.append(bar)
        self.say(bar.line())
        return bar.holds

    def as_json(self) -> dict[str, Any]:
        return {
            "scenario": self.scenario,
            "parameters": self.parameters,
            "results": self.results,
            "units": self.units,
            "baselines": self.baselines,
            "bars": [
                {
                    "name": bar.name,
                    "value": bar.value,
                    "relation": bar.relation,
                    "limit": bar.limit,
                    "unit": bar.unit,
                    "holds": bar.holds,
                }
                for bar in self.bars
            ],
            "notes": self.notes,
            "plots": [dataclasses.asdict(plot) for plot in self.plots.values()],
        }


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing a bench measures. `run` may be a coroutine function."""

    name: str
    summary: str
    run: Callable[[Run], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class Bench:
    """A module's scenarios. `arguments` adds options of the bench's own; they arrive in `Run.options`."""

    name: str
    summary: str
    scenarios: tuple[Scenario, ...]
    arguments: Callable[[argparse.ArgumentParser], None] | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A tool that is no measurement (`net`, `report`); a module names it `COMMAND`. `main` returns the exit code."""

    name: str
    summary: str
    main: Callable[[Sequence[str]], int]


def load(path: Path) -> dict[str, Any]:
    """Read a result file back; one of another schema is refused."""
    document = json.loads(path.read_text())
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a result file of schema {SCHEMA}")
    return document


def machine_facts() -> dict[str, Any]:
    """What a reader needs to judge whether two results may be compared."""
    return {
        "system": platform.system(),
        "kernel": platform.release(),
        "arch": platform.machine(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "memory_mib": psutil.virtual_memory().total >> 20,
        "python": platform.python_version(),
        "congestion_controls": _congestion_controls(),
    }


def library_versions() -> dict[str, str]:
    """Versions of the libraries whose speed shows in our figures."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def git_revision() -> dict[str, Any]:
    """The commit measured, and whether files of src/ or bench/ differed from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "src", "bench")
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed": None}
    return {"commit": commit, "changed": bool(changed)}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _congestion_controls() -> list[str]:
    try:
        return Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    except OSError:
        return []


def _finite(value: Any) -> Any:
    """JSON has no infinity: what never ended or was never measured is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def _measured(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


@dataclass(slots=True)
class ResultFile:
    """The file one invocation writes: where it was made, and its scenarios."""

    bench: str
    seed: int
    quick: bool
    argv: tuple[str, ...]
    started: float = field(default_factory=time.time)
    facts: dict[str, Any] = field(default_factory=machine_facts)
    revision: dict[str, Any] = field(default_factory=git_revision)
    scenarios: list[dict[str, Any]] = field(default_factory=list)

    def add(self, run: Run, seconds: float, error: str | None = None) -> None:
        entry = run.as_json()
        entry["seconds"] = round(seconds, 3)
        entry["error"] = error
        self.scenarios.append(entry)

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        document = {
            "schema": SCHEMA,
            "bench": self.bench,
            "seed": self.seed,
            "quick": self.quick,
            "argv": list(self.argv),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "seconds": round(time.time() - self.started, 3),
            "machine": self.facts,
            "versions": library_versions(),
            "git": self.revision,
            "scenarios": self.scenarios,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_finite(document), indent=1, default=str, allow_nan=False)
        write_atomic(path, (text + "\n").encode())
