"""`python -m bench report`: one report of all result files, as Markdown and HTML, with plots.

Owns how results are shown; it measures nothing and invents nothing: a figure that no file holds is a dash. When two
files have the same cell the newer one counts. The README's table between its markers is refreshed too.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.links import FILL_BARS, OURS, SCHEDULED, STEADY
from bench.net.profiles import PROFILES
from bench.result import RESULTS, ROOT, Command, load
from peat_p2p.core.atomic import write_atomic

BEGIN, END = "<!-- links table: python -m bench report -->", "<!-- end of links table -->"
ORDER = (OURS, "curl", "aria2", "rsync", "syncthing", "transmission", "libtorrent", "curl+bearer")
COLOURS = {OURS: "#c2410c", "curl+bearer": "#fdba74"}


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
    return f"{row['seconds']:.0f} s"


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
    head = ["link", "tool", "MB", "runs done", "seconds", "fill", "link bytes / package", "waste", "CPU s / GB"]
    rows = [[*head, "ping rise ms, median / p95"]]
    for profile in table.profiles:
        for tool in table.tools:
            row = table.cells.get((profile, tool))
            if row is None:
                continue
            done = f"{row['completed']}/{len(row['runs'])}"
            figures = [_spread(row, "seconds", ".1f"), _spread(row, "fill", ".2f"), _figure(row["link_ratio"], ".2f")]
            figures += [_figure(row["waste"], ".3f"), _figure(row["cpu_per_gb"], ".0f")]
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


def plot_fill(table: Table) -> bytes:
    """Fill by link and tool, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    profiles = [name for name in table.profiles if name not in SCHEDULED]
    figure, axes = pyplot.subplots(figsize=(11, 4.2))
    width = 0.85 / max(len(table.tools), 1)
    for number, tool in enumerate(table.tools):
        rows = [table.cells.get((profile, tool)) for profile in profiles]
        heights = [row["fill"] if row and row["fill"] else 0.0 for row in rows]
        places = [at + number * width for at in range(len(profiles))]
        axes.bar(places, heights, width, label=tool, color=COLOURS.get(tool))
    for at, profile in enumerate(profiles):
        if profile in FILL_BARS:
            axes.hlines(FILL_BARS[profile], at - width, at + 0.9, colors="black", linestyles="dotted")
    axes.set_xticks([at + 0.4 for at in range(len(profiles))], profiles)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("goodput / (rate x (1 - loss))")
    plural = "s" if table.agents > 1 else ""
    axes.set_title(f"How much of the link a package gets: {table.agents} agent{plural}, hosts at {table.congestion}")
    axes.legend(ncols=4, fontsize=8)
    out = io.BytesIO()
    figure.tight_layout()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return out.getvalue()


def _origin(documents: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [["file", "made", "commit", "machine", "kernel", "seed", "quick"]]
    for one in documents:
        commit = str(one["git"]["commit"] or "?")[:10] + (" + changes" if one["git"]["changed"] else "")
        machine = f"{one['machine']['cpus']} x {one['machine']['cpu']}, Python {one['machine']['python']}"
        quick = "yes" if one["quick"] else "no"
        rows.append([one["file"], one["started"], commit, machine, one["machine"]["kernel"], str(one["seed"]), quick])
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


def build(folder: Path) -> tuple[str, str, str | None]:
    """The report of a folder of results: Markdown, HTML, and the README's table if there is one to show."""
    documents = read_results(folder)
    tables = link_tables(documents)
    parts: list[tuple[str, str, list[list[str]] | None, bytes | None]] = []
    readme = None
    for table in tables:
        plural = "s" if table.agents > 1 else ""
        title = f"Links: {table.agents} agent{plural}, hosts at {table.congestion}"
        steady = overview(table)
        if len(steady) > 1:
            words = "Goodput / (rate x (1 - loss)), median; 1 is a full link. *: cut off before the end. -: not run."
            parts.append((title, words, steady, plot_fill(table)))
            if table.agents == 1 and table.congestion == "cubic":
                readme = f"{words}\n\n{markdown_table(steady)}"
        outages = schedules(table)
        if len(outages) > 1:
            parts.append((f"{title}, through outages", "Time until the package is verified.", outages, None))
        parts.append((f"{title}, all figures", "", details(table), None))
    if tables:
        parts.append(("The links", "", _links(tables), None))
        parts.append(("The tools and their settings", "", _settings(tables), None))
    bars = all_bars(documents)
    if len(bars) > 1:
        parts.append(("Bars", "", bars, None))
    parts.append(("Where the figures come from", "", _origin(documents), None))
    markdown, page = ["# Measurements"], ["<h1>Measurements</h1>"]
    for number, (title, words, rows, picture) in enumerate(parts):
        markdown.append(f"## {title}")
        page.append(f"<h2>{html.escape(title)}</h2>")
        if words:
            markdown.append(words)
            page.append(f"<p>{html.escape(words)}</p>")
        if rows:
            markdown.append(markdown_table(rows))
            page.append(html_table(rows))
        if picture:
            name = f"report-{number}.png"
            write_atomic(folder / name, picture)
            markdown.append(f"![{title}]({name})")
            encoded = base64.b64encode(picture).decode()
            page.append(f'<img alt="{html.escape(title)}" src="data:image/png;base64,{encoded}">')
    style = "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}"
    style += "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2rem .5rem;text-align:left}"
    style += "img{max-width:100%}"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Measurements</title><style>{style}</style>'
    return "\n\n".join(markdown) + "\n", head + "\n".join(page) + "</html>\n", readme


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
