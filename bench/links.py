"""One package over every kind of link: to one agent and to a site of three, beside what a user would pick instead.

Owns how a transfer is measured; what a link does is bench/net's, how a tool is run is bench/rivals'. Every run has a
network of its own. Columns of a row:

seconds     from the user's command to the last byte verified (SHA-256 of the whole where the tool checks nothing)
on_disk     the same, with the file made durable (fsync) where the tool has not: a power cut would take nothing back
fill        package bits / (seconds x rate x (1 - loss)): 1 is a link that never idled and carried nothing else
link_ratio  bytes that the link carried, both ways, / package bytes; of a site of three, one package is the least
waste       bytes delivered towards the site beyond the package / package: protocol, repeats, what others fetched too
refetched   the same without 40 bytes of headers a packet: what came again, and the tool's own framing
windows     of a schedule: how many times the link was up until the package was there
cpu         processor seconds of the tool at both ends per GB
ping_rise   median and 95th percentile of a foreground ping during the transfer above its idle median, ms
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.manners import manners
from bench.net import Network, pair
from bench.net.profiles import PROFILES
from bench.net.shape import Outage
from bench.net.state import start_time
from bench.net.topology import Topology
from bench.ping import Pinger
from bench.result import Bench, Run, Scenario
from bench.rivals import RIVALS, Fetch, Place, Rival, RivalError
from peat_p2p.core.atomic import sync_file

STEADY = ("lan", "lte", "leo", "geo", "lossy-geo", "manet", "radio")
SCHEDULED = ("ship", "window", "split")
# Hours become seconds. What is up keeps its proportion to the round trip; of what is down, in which nothing moves, only
# as much is kept as makes every tool's timeouts fire.
SCHEDULES = {"ship": Outage(12.0, 60.0), "window": Outage(12.0, 60.0), "split": Outage(15.0, 45.0, offset=14.5)}
FILL_BARS = {"lte": 0.85, "leo": 0.85, "geo": 0.85, "lossy-geo": 0.85, "manet": 0.85, "radio": 0.7}
PING_BARS = {"geo": 150.0, "lte": 150.0}
WASTE_BAR = 0.02
OURS = "peat"
# Links at these rates need no processor, whatever the tool; where a tool fills a faster one it has the machine alone.
SLOW = ("geo", "lossy-geo", "manet", "radio", "ship", "window")
BUSY_TOOLS = {"lte": (OURS, "curl+bearer"), "leo": (OURS, "curl+bearer", "aria2")}
SPLITS_AT_ONCE = 3
# Both ends of ours are Python: more of them than this at once wait for the processor, not for the link.
OURS_AT_ONCE = 3 * (os.cpu_count() or 1)
SETUP_SECONDS = 10.0
EXTRA = ("curl+bearer",)  # shows a part of ours; only when asked for
MIB = 1 << 20
HEADERS = 40
# Nobody waits longer than this for a tool: what it had by then is its share, and the cell is marked.
PATIENCE = 2.5
SCRATCH = "peat-bench-links-"
# Run once more alone after the company has gone: does running side by side change what is measured?
ALONE = (("geo", OURS), ("geo", "aria2"), ("lte", "aria2"))
FIGURES = (
    "seconds",
    "on_disk",
    "share",
    "fill",
    "link_ratio",
    "waste",
    "refetched",
    "cpu_per_gb",
    "ping_rise_ms",
    "ping_rise_p95_ms",
    "windows",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A tool on a profile, to so many agents. `seed`, of what the link loses, differs by run and not by tool."""

    profile: str
    tool: str
    agents: int
    congestion: str
    size: int
    deadline: float
    schedule: Outage | None
    seed: int

    @property
    def topology(self) -> Topology:
        extra: dict[str, Any] = {}
        if self.schedule is not None:
            extra["outage"] = {"up": self.schedule.up, "down": self.schedule.down, "offset": self.schedule.offset}
        far = [f"agent{number}" for number in range(1, self.agents + 1)]
        return pair(self.profile, near=("holder",), far=far, congestion=self.congestion, seed=self.seed, **extra)


@dataclass(slots=True)
class Outcome:
    """What one run showed. `seconds` and `on_disk` are None when it was cut off; `share` says how far it had come."""

    seconds: float | None
    share: float
    fill: float
    link_ratio: float
    waste: float
    cpu_per_gb: float
    on_disk: float | None = None
    refetched: float | None = None
    ping_idle_ms: float | None = None
    ping_rise_ms: float | None = None
    ping_rise_p95_ms: float | None = None
    windows: int | None = None
    seed: int = 0
    error: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)


def package_size(profile: str, quick: bool) -> int:
    """About a minute (a third of that when quick) at the link's rate; radio has one MB, fast links what fits here."""
    if profile == "radio":
        return 128 << 10 if quick else 1_000_000
    down = PROFILES[profile].down
    if profile in SCHEDULES and profile != "split":
        return int(down.rate / 8 * (1 - down.mean_loss) * SCHEDULES[profile].up * (1.4 if quick else 2.4))
    seconds = 20 if quick else 60
    size = int(down.rate / 8 * (1 - down.mean_loss) * seconds)
    # After a partition a long transfer would hide how soon a tool noticed that it is over.
    return min(size, (64 if quick else 256 if profile == "split" else 2048) * MIB)


def ideal_seconds(profile: str, size: int) -> float:
    """The time a sender that never idles and never repeats would take, outages included."""
    down = PROFILES[profile].down
    need = size * 8 / (down.rate * (1 - down.mean_loss))
    schedule = SCHEDULES.get(profile)
    if schedule is None:
        return need
    first = schedule.up - schedule.offset
    if need <= first:
        return need
    whole, rest = divmod(need - first, schedule.up)
    return first + schedule.down + whole * (schedule.up + schedule.down) + rest


def measure(case: Case, package: Path, digest: str, rivals: dict[str, type[Rival]]) -> Outcome:
    """One run of one tool in a network of its own, and in a folder beside the package that is left empty."""
    root = Path(tempfile.mkdtemp(prefix=f"{case.profile}-{case.tool}-", dir=package.parent))
    try:
        with Network(case.topology) as net:
            wanting = tuple(host.name for host in case.topology.hosts[1:])
            place = Place(net, "holder", wanting, package, root)
            return _measure(case, place, digest, rivals[case.tool](place))
    finally:
        _empty(root)


def _empty(root: Path) -> None:
    """Give back the space of a run, but not its files yet.

    ext4 without a journal passes over each inode that was freed in the last minutes when it looks for one: the next run
    would pay for it with as much as a second a thousand files.
    """
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink():
                os.truncate(path, 0)


def _measure(case: Case, place: Place, digest: str, tool: Rival) -> Outcome:
    net = place.net
    down = case.topology.link("link").down
    if case.schedule is not None:
        net.change("link", outage=None)  # setting up is not what is measured
    tool.prepare()
    interval = 1.0 if down.rate < 500e3 or case.profile == "manet" else 0.2
    pinger = Pinger(net, place.wanting[0], place.holder, interval) if case.schedule is None else None
    time.sleep(max(2.0, 5 * interval) if pinger else 0.0)
    if case.schedule is not None:
        up, out, offset = case.schedule.up, case.schedule.down, case.schedule.offset
        net.change("link", outage={"up": up, "down": out, "offset": offset})
    cpu_before = tool.seconds_of_cpu()
    net.restart()
    began_wall, began = time.time(), time.monotonic()
    fetches = {host: tool.begin(host) for host in place.wanting}
    error: str | None = None
    seconds: float | None = None
    durable: float | None = None
    ends: list[_End] = []
    try:
        _attend(fetches, ends, began, case.deadline)
    except RivalError as failure:
        error = str(failure)
    elapsed = time.monotonic() - began
    cpu = tool.seconds_of_cpu() - cpu_before
    pings = pinger.finish(began_wall) if pinger else (None, None, None)
    try:
        # Only now: a check takes seconds and would hold up who is not done yet.
        checks = [_check(end, tool, digest) for end in ends]
        if len(ends) == len(fetches):
            seconds = elapsed = max(end.done + check for end, check in zip(ends, checks, strict=True))
            durable = max(end.done + end.syncing + check for end, check in zip(ends, checks, strict=True))
    except RivalError as failure:
        error = str(failure)
    ways = net.stats()["links"]["link"]
    delivered = ways["near>far"]["delivered_bytes"]
    payload = delivered - HEADERS * ways["near>far"]["delivered_packets"]
    carried = sum(way["sent_bytes"] for way in ways.values())
    share = 1.0 if seconds is not None else min(0.999, delivered * 0.95 / case.size / case.agents)
    period = case.schedule.up + case.schedule.down if case.schedule else None
    return Outcome(
        seconds=seconds,
        on_disk=durable,
        share=share,
        fill=case.size * share * 8 / (elapsed * down.rate * (1 - down.mean_loss)),
        link_ratio=carried / case.size,
        waste=(delivered - case.size * share) / case.size,
        refetched=max(0.0, payload - case.size * share) / case.size,
        cpu_per_gb=cpu / (case.size * share * case.agents / 1e9) if share else 0.0,
        ping_idle_ms=pings[0],
        ping_rise_ms=pings[1],
        ping_rise_p95_ms=pings[2],
        windows=int((elapsed + (case.schedule.offset if case.schedule else 0)) // period) + 1 if period else None,
        error=error,
        notes=tool.notes(),
    )


@dataclass(slots=True)
class _End:
    """A fetch that is done, and when; then so many seconds of having its file on disk."""

    host: str
    target: Path
    done: float
    syncing: float = 0.0

    def sync(self) -> None:
        began = time.monotonic()
        sync_file(self.target)
        self.syncing = time.monotonic() - began


def _attend(fetches: Mapping[str, Fetch], ends: list[_End], began: float, deadline: float) -> None:
    """Take note of each fetch that ends, until all have or it takes too long. Raises RivalError."""
    waiting = dict(fetches)
    with ThreadPoolExecutor(len(waiting)) as pool:
        syncing = []
        while waiting and time.monotonic() - began < deadline:
            for host, fetch in list(waiting.items()):
                if fetch.is_done():
                    ends.append(_End(host, fetch.target, time.monotonic() - began))
                    syncing.append(pool.submit(ends[-1].sync))
                    del waiting[host]
            time.sleep(0.02)
        for one in syncing:
            one.result()


def _check(end: _End, tool: Rival, digest: str) -> float:
    """Seconds of checking what arrived, which are the tool's where it does not check itself. Raises RivalError."""
    began = time.monotonic()
    if _sha256(end.target) != digest:
        raise RivalError(f"what {tool.name} delivered to {end.host} is not the package")
    return 0.0 if tool.verifies else time.monotonic() - began


def _tidy() -> None:
    """Remove the folders of runs that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        owner = folder.name.removeprefix(SCRATCH).partition("-")[0]
        if owner.isdigit() and start_time(int(owner)) is None:
            shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _row(case: Case, outcomes: Sequence[Outcome], settings: str, version: str) -> dict[str, Any]:
    """Median and spread of a cell's runs."""
    row: dict[str, Any] = {
        "profile": case.profile,
        "tool": case.tool,
        "agents": case.agents,
        "congestion": case.congestion,
        "bytes": case.size,
        "ideal_seconds": round(ideal_seconds(case.profile, case.size), 3),
        "completed": sum(one.seconds is not None for one in outcomes),
        "runs": [asdict(one) for one in outcomes],
        "settings": settings,
        "version": version,
    }
    for name in FIGURES:
        values = [value for one in outcomes if (value := getattr(one, name)) is not None]
        row[name] = statistics.median(values) if values else None
        row[f"{name}_spread"] = [min(values), max(values)] if values else None
    if row["completed"] < len(outcomes):
        row["seconds"] = None
    return row


def _cases(run: Run, agents: int, tools: Iterable[str]) -> list[Case]:
    cases = []
    for profile in run.options.profile or [*STEADY, *SCHEDULED]:
        size = package_size(profile, run.quick)
        ideal = ideal_seconds(profile, size)
        schedule = SCHEDULES.get(profile)
        limit = ideal + 2 * (schedule.up + schedule.down) if schedule else ideal * PATIENCE + 20
        cases += [
            Case(profile, tool, agents, run.options.congestion, size, limit * agents**0.5, schedule, run.seed)
            for tool in tools
        ]
    return cases


def _table(run: Run, agents: int) -> None:
    rivals = dict(RIVALS)
    wanted = run.options.tool or [name for name in rivals if name not in EXTRA]
    tools = [name for name in wanted if not rivals[name].missing()]
    for name in wanted:
        if name not in tools:
            run.note(f"{name} is not installed ({', '.join(rivals[name].missing())}): run make bench-deps")
    runs = run.options.runs or (1 if run.quick else 3)
    cases = _cases(run, agents, tools)
    run.parameter(agents=agents, runs=runs, congestion=run.options.congestion, tools=tools)
    versions = {name: rivals[name].version() for name in tools}
    packages: dict[int, tuple[Path, str]] = {}
    _tidy()
    with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-package-") as folder:
        for size in sorted({case.size for case in cases}):
            path = Path(folder) / f"package-{size}.bin"
            with path.open("wb") as file:
                for start in range(0, size, MIB):
                    file.write(run.random.randbytes(min(MIB, size - start)))
            packages[size] = (path, _sha256(path))
        found: dict[Case, list[Outcome]] = {case: [] for case in cases}

        def one(case: Case) -> None:
            path, digest = packages[case.size]
            try:
                outcome = measure(case, path, digest, rivals)
            except Exception as error:
                outcome = Outcome(None, 0.0, 0.0, 0.0, 0.0, 0.0, error=f"{type(error).__name__}: {error}")
            outcome.seed = case.seed
            found[replace(case, seed=run.seed)].append(outcome)
            took = "cut off" if outcome.seconds is None else f"{outcome.seconds:.1f} s"
            run.say(
                f"{case.profile:<9} {case.tool:<12} {took:>9}  fill {outcome.fill:.2f}  share {outcome.share:.2f}  "
                f"link {outcome.link_ratio:.2f}  waste {outcome.waste:.3f}  "
                f"ping +{outcome.ping_rise_ms or 0:.0f}/{outcome.ping_rise_p95_ms or 0:.0f} ms"
                + (f"  {outcome.error}" if outcome.error else "")
            )

        longest_first = sorted(cases, key=lambda case: -case.deadline)
        every = [replace(case, seed=seed) for seed in run.seeds(runs) for case in longest_first]
        groups = _groups(every, run.options.jobs, run.options.ours_at_once)
        total = sum(_expected_seconds(among, width) for width, among in groups)
        run.say(f"{len(every)} transfers, about {total / 60:.0f} minutes")
        for width, among in groups:
            if among:
                minutes = _expected_seconds(among, width) / 60
                run.say(f"next: {len(among)} transfers, {width} at once, about {minutes:.0f} minutes")
            with ThreadPoolExecutor(max_workers=width) as pool:
                list(pool.map(one, among))
        if run.options.jobs > 1 and len(groups[0][1]) > 1:
            _check_company(run, found, lambda case: measure(case, *packages[case.size], rivals))
    rows = [_row(case, found[case], rivals[case.tool].settings, versions[case.tool]) for case in cases]
    run.record("rows", rows)
    _bars(run, rows)


def _company(case: Case) -> str:
    """What a cell may run beside: other slow ones, a few of ours, a few that mostly wait for the link, or nothing."""
    if case.profile in SLOW and case.tool in (OURS, *EXTRA):
        return "ours"
    if case.profile in SLOW or (case.profile in BUSY_TOOLS and case.tool not in BUSY_TOOLS[case.profile]):
        return "slow"
    return "split" if case.profile == "split" and case.tool not in (OURS, *EXTRA) else "alone"


def _groups(every: Sequence[Case], jobs: int, ours: int) -> list[tuple[int, list[Case]]]:
    """The cells in the groups that run one after the other, each with how many of it run at once."""
    widths = {"slow": jobs, "ours": min(jobs, ours), "split": min(jobs, SPLITS_AT_ONCE), "alone": 1}
    return [(max(1, width), [c for c in every if _company(c) == name]) for name, width in widths.items()]


def _expected_seconds(among: Sequence[Case], width: int) -> float:
    """Of a group: ours comes near the ideal, most others are cut off at their deadline."""
    each = [
        SETUP_SECONDS + (1.3 * ideal_seconds(case.profile, case.size) if case.tool in (OURS, *EXTRA) else case.deadline)
        for case in among
    ]
    return max(*each, sum(each) / width) if each else 0.0


def _check_company(run: Run, found: dict[Case, list[Outcome]], alone: Callable[[Case], Outcome]) -> None:
    """Repeat a cell or two with nothing beside them and write down how far that is from what they had in company."""
    rows = []
    for case, outcomes in found.items():
        if (case.profile, case.tool) not in ALONE:
            continue
        company = [one.fill for one in outcomes]
        fill = alone(case).fill
        middle = statistics.median(company)
        rows.append(
            {
                "profile": case.profile,
                "tool": case.tool,
                "fill_alone": fill,
                "fill_in_company": middle,
                "fill_in_company_spread": [min(company), max(company)],
                "company / alone": middle / fill if fill else None,
            }
        )
        run.note(
            f"{case.profile}, {case.tool}: fill {fill:.3f} alone, {middle:.3f} with {run.options.jobs} side by side"
        )
    run.record("side_by_side_check", rows)


def _bars(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    for profile in dict.fromkeys(row["profile"] for row in rows):
        here = {row["tool"]: row for row in rows if row["profile"] == profile}
        ours = here.get(OURS)
        if ours is None:
            continue
        where = f"{profile}, {ours['agents']} agent{'s' if ours['agents'] > 1 else ''}, {ours['congestion']}"
        if profile in FILL_BARS and ours["agents"] == 1:
            run.at_least(f"fill, {where}", ours["fill"], FILL_BARS[profile])
        if profile in PING_BARS:
            run.at_most(f"ping rise, {where}", ours["ping_rise_ms"], PING_BARS[profile], "ms")
        if profile in SCHEDULED:
            run.at_least(f"completed, {where}", ours["completed"], len(ours["runs"]))
            run.at_most(f"refetched by the agents' account / package, {where}", _own_waste(ours), WASTE_BAR)
            if ours["agents"] == 1:
                run.at_most(f"refetched / package as the link counts it, {where}", ours["refetched"], WASTE_BAR)
        others = [row for name, row in here.items() if name != OURS]
        if others:
            best = max(others, key=lambda row: row["fill"] or 0.0)
            ratio = ours["fill"] / best["fill"] if best["fill"] else None
            run.at_least(f"beats {best['tool']}, {where}", ratio, 1.0, "x")
            soonest = min((row for row in others if row["on_disk"]), key=lambda row: row["on_disk"], default=None)
            if soonest is not None and ours["on_disk"]:
                on_disk = soonest["on_disk"] / ours["on_disk"]
                run.at_least(f"beats {soonest['tool']} with all on disk, {where}", on_disk, 1.0, "x")


def _own_waste(row: dict[str, Any]) -> float | None:
    """The worst share of bytes that an agent says it fetched in vain; None unless every run of every agent says it."""
    said = [
        one.get("wasted_bytes") if isinstance(one, dict) else None for r in row["runs"] for one in r["notes"].values()
    ]
    if len(said) < len(row["runs"]) * row["agents"] or any(one is None for one in said):
        return None
    return max(float(one) for one in said if one is not None) / float(row["bytes"])


def one_agent(run: Run) -> None:
    _table(run, 1)


def site_of_three(run: Run) -> None:
    _table(run, 3)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile", action="append", choices=[*STEADY, *SCHEDULED], help="this profile alone; repeatable"
    )
    parser.add_argument("--tool", action="append", choices=list(RIVALS), help="this tool alone; repeatable")
    parser.add_argument("--runs", type=int, help="runs of each cell (default 3, 1 when quick)")
    parser.add_argument("--congestion", choices=["cubic", "bbr", "reno"], default="cubic", help="of every host")
    parser.add_argument(
        "--jobs", type=int, default=20 * (os.cpu_count() or 1), help="networks at once, slow links only"
    )
    parser.add_argument(
        "--ours-at-once", type=int, default=OURS_AT_ONCE, help="networks at once that carry peat, slow links only"
    )


BENCH = Bench(
    "links",
    "a package over every kind of link, beside curl, aria2, rsync, syncthing, transmission and plain libtorrent",
    (
        Scenario("one-agent", "from one holder to one agent", one_agent),
        Scenario("site-of-three", "from one holder to a site of three agents behind one link", site_of_three),
        Scenario("manners", "what a transfer does to a mesh command and a ping on the same link", manners),
    ),
    _arguments,
)
