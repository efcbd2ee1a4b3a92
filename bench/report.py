"""`python -m bench report`: one report of all result files, as Markdown and HTML, with plots.

Owns how results are shown; it measures nothing and invents nothing: a figure that no file holds is a dash. When two
files have the same cell the newer one counts. The README's table between its markers is refreshed too.
"""

from __future__ import annotations

import argparse
import base64
import html
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.links import OURS, PING_BARS, SCHEDULED, STEADY
from bench.net.profiles import PROFILES
from bench.plots import draw, plots_of
from bench.result import RESULTS, ROOT, Command, Plot, load
from peat_p2p.core.atomic import write_atomic

BEGIN, END = "<!-- links table: python -m bench report -->", "<!-- end of links table -->"
ORDER = (OURS, "curl", "aria2", "rsync", "syncthing", "transmission", "libtorrent", "iroh", "curl+bearer")


@dataclass(frozen=True, slots=True)
class Table:
    """The cells of the links bench for one number of agents and one congestion control."""

    agents: int
    congestion: str
    cells: dict[tuple[str, str], dict[str, Any]]
    quick: bool

    @property
    def profiles(self) -> list[str]:
        return [name for name in (*STEADY, *SCHEDULED) if any(profile == name for profile, _ in self.cells)]

    @property
    def tools(self) -> list[str]:
        there = {tool for _, tool in self.cells}
        return [tool for tool in ORDER if tool in there]


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All result files, oldest first."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            document = load(path)
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        document["file"] = path.name
        found.append(document)
    return sorted(found, key=lambda document: str(document["started"]))


def link_tables(documents: Iterable[dict[str, Any]]) -> list[Table]:
    """The links bench's rows of all files, put together."""
    tables: dict[tuple[int, str], Table] = {}
    for document in documents:
        if document["bench"] != "links":
            continue
        for scenario in document["scenarios"]:
            for row in scenario["results"].get("rows", ()):
                key = (row["agents"], row["congestion"])
                table = tables.setdefault(key, Table(*key, {}, document["quick"]))
                table.cells[row["profile"], row["tool"]] = row
    return [tables[key] for key in sorted(tables)]


def fill_text(row: dict[str, Any] | None) -> str:
    """A cell of the overview: the fill, with a mark when runs were cut off."""
    if row is None:
        return "-"
    if row["completed"] == 0 and row["share"] is not None:
        return f"{row['fill']:.2f}*" if row["fill"] else "nothing"
    return f"{row['fill']:.2f}" + ("" if row["completed"] == len(row["runs"]) else "*")


def time_text(row: dict[str, Any] | None) -> str:
    """A cell of the outage table: seconds, or how far it came."""
    if row is None:
        return "-"
    if row["seconds"] is None:
        return f"cut off at {100 * (row['share'] or 0):.0f} %"
    text = f"{row['seconds']:.0f} s"
    if row.get("windows") is not None:
        text += f", {row['windows']:.0f} windows"
    if row.get("refetched") is not None:
        text += f", {100 * row['refetched']:.1f} % again"
    return text


def overview(table: Table) -> list[list[str]]:
    """Fill by profile and tool, ours against the best of the others."""
    rows = [["link", *table.tools, "ours / best other"]]
    for profile in table.profiles:
        if profile in SCHEDULED:
            continue
        cells = {tool: table.cells.get((profile, tool)) for tool in table.tools}
        rows.append([profile, *(fill_text(cells[tool]) for tool in table.tools), _ratio(cells)])
    return rows


def schedules(table: Table) -> list[list[str]]:
    """Time to verified through outages."""
    rows = [["link", "least possible", *table.tools]]
    for profile in table.profiles:
        if profile in SCHEDULED:
            cells = {tool: table.cells.get((profile, tool)) for tool in table.tools}
            ideal = next(row["ideal_seconds"] for row in cells.values() if row)
            rows.append([profile, f"{ideal:.0f} s", *(time_text(cells[tool]) for tool in table.tools)])
    return rows


def details(table: Table) -> list[list[str]]:
    """Every column of every cell."""
    head = [
        "link",
        "tool",
        "MB",
        "runs done",
        "seconds",
        "on disk",
        "fill",
        "link bytes / package",
        "waste",
        "refetched",
        "CPU s / GB",
    ]
    rows = [[*head, "ping rise ms, median / p95"]]
    for profile in table.profiles:
        for tool in table.tools:
            row = table.cells.get((profile, tool))
            if row is None:
                continue
            done = f"{row['completed']}/{len(row['runs'])}"
            figures = [_spread(row, "seconds", ".1f"), _figure(row.get("on_disk"), ".1f"), _spread(row, "fill", ".2f")]
            figures += [
                _figure(row["link_ratio"], ".2f"),
                _figure(row["waste"], ".3f"),
                _figure(row.get("refetched"), ".3f"),
                _figure(row["cpu_per_gb"], ".0f"),
            ]
            pings = f"{_figure(row['ping_rise_ms'], '.0f')} / {_figure(row['ping_rise_p95_ms'], '.0f')}"
            rows.append([profile, tool, f"{row['bytes'] / 1e6:.1f}", done, *figures, pings])
    return rows


def all_bars(documents: Iterable[dict[str, Any]]) -> list[list[str]]:
    """Every bar of every bench; of the same bench and scenario the newest file counts."""
    newest: dict[tuple[str, str, str], list[str]] = {}
    for document in documents:
        for scenario in document["scenarios"]:
            for bar in scenario["bars"]:
                value = "not measured" if bar["value"] is None else f"{bar['value']:.4g}"
                limit = f"{bar['relation']} {bar['limit']:g} {bar['unit']}".strip()
                holds = "yes" if bar["holds"] else "**no**"
                where = f"{document['bench']} {scenario['scenario']}"
                newest[document["bench"], scenario["scenario"], bar["name"]] = [where, bar["name"], value, limit, holds]
    return [["bench", "bar", "value", "limit", "holds"], *newest.values()]


def _ratio(cells: dict[str, dict[str, Any] | None]) -> str:
    ours = cells.get(OURS)
    rivals = {tool: row for tool, row in cells.items() if row and not tool.endswith("+bearer") and tool != OURS}
    others = {tool: row["fill"] for tool, row in rivals.items() if row["fill"]}
    if ours is None or not ours["fill"] or not others:
        return "-"
    best = max(others, key=lambda tool: others[tool])
    return f"{ours['fill'] / others[best]:.2f} x {best}"


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _spread(row: dict[str, Any], name: str, form: str) -> str:
    spread = row.get(f"{name}_spread")
    if row[name] is None or spread is None:
        return _figure(row[name], form)
    text = format(row[name], form)
    low, high = (format(value, form) for value in spread)
    return text if low == high else f"{text} ({low}-{high})"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body]
    return "\n".join(lines)


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """The same as HTML."""

    def cells(row: Sequence[str], tag: str) -> str:
        texts = (html.escape(cell).replace("**no**", "<strong>no</strong>") for cell in row)
        return "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in texts) + "</tr>"

    head, *body = rows
    return (
        f"<table><thead>{cells(head, 'th')}</thead><tbody>{''.join(cells(row, 'td') for row in body)}</tbody></table>"
    )


def plot_fill(table: Table) -> Plot:
    """Fill by link and tool."""
    profiles = [name for name in table.profiles if name not in SCHEDULED]
    series = {tool: _points(table, profiles, tool, "fill") for tool in table.tools}
    title = f"How much of the link a package gets: {_of(table)}"
    limits = {"bar": 0.85, "bar, radio": 0.7} if table.agents == 1 else {}
    return Plot("fill", title, "", "goodput / (rate x (1 - loss))", series, kind="bars", limits=limits)


def plot_outages(table: Table) -> Plot:
    """Time to verified through outages; what did not end has no bar."""
    profiles = [name for name in table.profiles if name in SCHEDULED]
    series = {tool: _points(table, profiles, tool, "seconds") for tool in table.tools}
    rows = {profile: row for (profile, _), row in table.cells.items() if profile in profiles}
    series["least possible"] = [(profile, row["ideal_seconds"]) for profile, row in rows.items()]
    return Plot("outages", f"Through outages: {_of(table)}", "", "s until verified", series, kind="bars")


def plot_pings(table: Table) -> Plot:
    """What a foreground user feels."""
    profiles = [name for name in table.profiles if name not in SCHEDULED]
    series = {tool: _points(table, profiles, tool, "ping_rise_ms") for tool in table.tools}
    limits = {"bar, geo and lte": PING_BARS["geo"]}
    title = f"Added latency of a foreground ping, median: {_of(table)}"
    return Plot("pings", title, "", "ms", series, kind="bars", limits=limits)


def _points(table: Table, profiles: Sequence[str], tool: str, name: str) -> list[tuple[Any, ...]]:
    points: list[tuple[Any, ...]] = []
    for profile in profiles:
        row = table.cells.get((profile, tool))
        value = row[name] if row else None
        spread = row.get(f"{name}_spread") if row else None
        points.append((profile, value, *spread) if value is not None and spread else (profile, value))
    return points


def _of(table: Table) -> str:
    return f"{table.agents} agent{'s' if table.agents > 1 else ''}, hosts at {table.congestion}"


def newest_plots(documents: Iterable[dict[str, Any]]) -> list[tuple[str, Plot]]:
    """The pictures of all benches but links; of the same bench, scenario and name the newest file's."""
    found: dict[tuple[str, str, str], Plot] = {}
    for document in documents:
        if document["bench"] == "links":
            continue
        try:
            plots = plots_of(document)
        except (TypeError, ValueError, KeyError) as error:
            print(f"no pictures of {document['file']}: {error!r}", file=sys.stderr)
            continue
        mark = " (quick)" if document["quick"] else ""
        for scenario, plot in plots:
            found[document["bench"], scenario, plot.name] = replace(plot, title=plot.title + mark)
    return [
        (f"{bench} {scenario}", plot) for (bench, scenario, _), plot in sorted(found.items(), key=lambda one: one[0])
    ]


def _origin(documents: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["file", "made", "commit", "machine", "kernel", "load before", "seed", "quick", "command"]]
    for one in documents:
        commit = str(one["git"]["commit"] or "?")[:10] + (" + changes" if one["git"]["changed"] else "")
        facts = one["machine"]
        machine = f"{facts['cpus']} x {facts['cpu']}, {facts.get('memory_mib', 0) >> 10} GiB, Python {facts['python']}"
        figures = [
            facts["kernel"],
            str(facts.get("load_before", "-")),
            str(one["seed"]),
            "yes" if one["quick"] else "no",
        ]
        rows.append([one["file"], one["started"], commit, machine, *figures, " ".join(one["argv"])])
    return rows


def _versions(documents: Sequence[dict[str, Any]]) -> list[list[str]]:
    names = sorted({name for one in documents for name in one["versions"]})
    return [
        ["file", *names],
        *([one["file"], *(one["versions"].get(name, "-") for name in names)] for one in documents),
    ]


def _calibration(documents: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The newest self-test of each kind of emulation."""
    newest: dict[str, tuple[str, dict[str, Any]]] = {}
    for document in documents:
        for scenario in document["scenarios"]:
            found = scenario["results"].get("calibration")
            if isinstance(found, dict) and "checks" in found:
                newest[str(found["backend"])] = (document["file"], found)
    rows = [["emulation", "file", "check", "target", "measured", "error", "limit", "holds"]]
    for backend, (file, found) in newest.items():
        for check in found["checks"]:
            figures = [f"{check[name]:.4g}" for name in ("target", "value", "error", "limit")]
            rows.append([backend, file, check["name"], *figures, "yes" if check["holds"] else "**no**"])
    return rows


def _settings(tables: Sequence[Table]) -> list[list[str]]:
    rows: dict[str, list[str]] = {}
    for table in tables:
        for (_, tool), row in table.cells.items():
            rows[tool] = [tool, row["version"], row["settings"]]
    return [["tool", "version", "settings"], *(rows[tool] for tool in ORDER if tool in rows)]


def _links(tables: Sequence[Table]) -> list[list[str]]:
    rows = [["link", "down", "up", "one-way delay", "loss", "stands for"]]
    for name in dict.fromkeys(profile for table in tables for profile in table.profiles):
        one = PROFILES[name]
        delay = f"{one.down.delay * 1e3:g} ms" + (f" ± {one.down.jitter * 1e3:g}" if one.down.jitter else "")
        loss = f"{one.down.loss:.1%}" + (" and bursts" if one.down.episodes else "")
        rates = [f"{shape.rate / 1e6:g} Mbit/s" for shape in (one.down, one.up)]
        rows.append([name, *rates, delay, loss, one.stands_for])
    return rows


@dataclass(slots=True)
class Page:
    """A report being written: the same parts as Markdown and as HTML, pictures beside the one and inside the other."""

    folder: Path
    markdown: list[str] = field(default_factory=lambda: ["# Measurements"])
    html: list[str] = field(default_factory=lambda: ["<h1>Measurements</h1>"])
    pictures: set[str] = field(default_factory=set)

    def title(self, text: str) -> None:
        self.markdown.append(f"## {text}")
        self.html.append(f"<h2>{html.escape(text)}</h2>")

    def words(self, text: str) -> None:
        self.markdown.append(text)
        self.html.append(f"<p>{html.escape(text)}</p>")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        self.markdown.append(markdown_table(rows))
        self.html.append(html_table(rows))

    def picture(self, place: str, plot: Plot) -> None:
        picture = draw(plot)
        name = "report-" + re.sub(r"[^a-z0-9]+", "-", f"{place} {plot.name}".lower()).strip("-") + ".png"
        write_atomic(self.folder / name, picture)
        self.pictures.add(name)
        self.markdown.append(f"![{plot.title}]({name})")
        encoded = base64.b64encode(picture).decode()
        self.html.append(f'<img alt="{html.escape(plot.title)}" src="data:image/png;base64,{encoded}">')

    def whole(self) -> tuple[str, str]:
        style = "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}"
        style += "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2rem .5rem;text-align:left}"
        style += "img{max-width:100%}"
        head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Measurements</title><style>{style}</style>'
        return "\n\n".join(self.markdown) + "\n", head + "\n".join(self.html) + "</html>\n"


def build(folder: Path) -> tuple[str, str, str | None]:
    """The report of a folder of results: Markdown, HTML, and the README's table if there is one to show."""
    documents = read_results(folder)
    tables = link_tables(documents)
    page = Page(folder)
    readme = None
    for table in tables:
        title = f"Links: {_of(table)}" + (" (quick)" if table.quick else "")
        place = f"links {table.agents} {table.congestion}"
        steady, outages = overview(table), schedules(table)
        if len(steady) > 1:
            words = (
                "Goodput / (rate x (1 - loss)), median; 1 is a full link. *: cut off before the end, with the share of "
                "the link it had until then. -: not run."
            )
            page.title(title)
            page.words(words)
            page.table(steady)
            page.picture(place, plot_fill(table))
            page.picture(place, plot_pings(table))
            if table.agents == 1 and table.congestion == "cubic":
                readme = f"{words}\n\n{markdown_table(steady)}"
        if len(outages) > 1:
            page.title(f"{title}, through outages")
            page.words("Time until the package is verified, the windows it took, and bytes fetched more than once.")
            page.table(outages)
            page.picture(place, plot_outages(table))
        page.title(f"{title}, all figures")
        page.table(details(table))
    if tables:
        page.title("The links")
        page.table(_links(tables))
        page.title("The tools and their settings")
        page.table(_settings(tables))
    last = ""
    for place, plot in newest_plots(documents):
        if place != last:
            page.title(f"{place[0].upper()}{place[1:]}")
            last = place
        page.picture(place, plot)
    bars = all_bars(documents)
    if len(bars) > 1:
        page.title("Bars")
        missed = sum(row[-1] != "yes" for row in bars[1:])
        page.words(f"{len(bars) - 1 - missed} held, {missed} missed.")
        page.table(bars)
    calibration = _calibration(documents)
    if len(calibration) > 1:
        page.title("The emulator, measured with its own words")
        page.table(calibration)
    page.title("Where the figures come from")
    page.table(_origin(documents))
    page.table(_versions(documents))
    notes = [
        f"{one['file']}, {scenario['scenario']}: {note}"
        for one in documents
        for scenario in one["scenarios"]
        for note in [*scenario.get("notes", ()), *([f"failed: {scenario['error']}"] if scenario.get("error") else ())]
    ]
    for note in notes:
        page.words(note)
    for stale in folder.glob("report-*.png"):
        if stale.name not in page.pictures:
            stale.unlink()
    return *page.whole(), readme


def refresh_readme(path: Path, table: str) -> bool:
    """Put the table between the README's markers; False when it has none."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if BEGIN not in text or END not in text:
        return False
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    write_atomic(path, f"{before}{BEGIN}\n{table}\n{END}{after}".encode())
    return True


def main(argv: Sequence[str]) -> int:
    """Write the report; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench report", description="One report of all result files.")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results are, and the report goes")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(list(argv))
    if not any(options.folder.glob("*.json")):
        print(f"there are no results in {options.folder}; make some: python -m bench links --json ...", file=sys.stderr)
        return 1
    markdown, page, table = build(options.folder)
    write_atomic(options.folder / "report.md", markdown.encode())
    write_atomic(options.folder / "report.html", page.encode())
    if table is not None and not refresh_readme(options.readme, table):
        print(f"{options.readme} has no place for the table (a line {BEGIN!r} and a line {END!r})", file=sys.stderr)
    print(f"wrote {options.folder / 'report.md'} and {options.folder / 'report.html'}")
    return 0


COMMAND = Command("report", "a report of bench/results with plots; refreshes the README's table", main)
