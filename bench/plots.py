"""Pictures of result files: what scenarios declared (bench/result.py, Plot), and of benches that declare nothing, what
their rows say.

Owns how figures are drawn; a point that no file holds is not drawn. matplotlib is imported when it is needed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.result import Plot

OURS = ("peat", "ours", "peat-p2p")
OUR_COLOUR = "#c2410c"
PALETTE = ("#1d4ed8", "#15803d", "#7c3aed", "#0e7490", "#a16207", "#be185d", "#525252", "#65a30d", "#0f766e", "#9333ea")
MARKERS = "osD^vPX*<>"


def declared(scenario: Mapping[str, Any]) -> list[Plot]:
    """The plots that a scenario of a result file names; a malformed one raises ValueError or TypeError."""
    return [Plot(**one) for one in scenario.get("plots", ())]


def plots_of(document: Mapping[str, Any]) -> list[tuple[str, Plot]]:
    """Every picture of a result file, with the scenario it is of: its own, else what is derived from its rows.

    Bars of the same name and title in several scenarios become one picture.
    """
    found: list[tuple[str, Plot]] = []
    for scenario in document["scenarios"]:
        own = declared(scenario)
        derive = _DERIVED.get((document["bench"], scenario["scenario"])) or _DERIVED.get((document["bench"], "*"))
        for plot in own or (derive(scenario) if derive else ()):
            like = next((place for place, (_, other) in enumerate(found) if _is_same_bars(other, plot)), None)
            if like is not None:
                name, other = found[like]
                labels = dict.fromkeys((*other.series, *plot.series))
                both = {label: [*other.series.get(label, ()), *plot.series.get(label, ())] for label in labels}
                found[like] = (f"{name}, {scenario['scenario']}", replace(other, series=both))
            elif any(point[1] is not None for points in plot.series.values() for point in points):
                found.append((scenario["scenario"], plot))
    return found


def _is_same_bars(one: Plot, other: Plot) -> bool:
    return one.kind == other.kind == "bars" and (one.name, one.title) == (other.name, other.title)


def draw(plot: Plot) -> bytes:
    """The picture as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys(str(point[0]) for points in plot.series.values() for point in points))
    bars = plot.kind == "bars"
    wide = len(groups) * max(len(plot.series), 1) * 0.17 + 2.5 if bars else 8.0
    figure, axes = pyplot.subplots(figsize=(min(max(wide, 8.0), 15.0), 4.4))
    colours = _colours(list(plot.series))
    for number, (label, points) in enumerate(plot.series.items()):
        there = [point for point in points if point[1] is not None]
        if bars:
            _bars(axes, number, len(plot.series), label, there, groups, colours[label], value_labels=len(groups) < 4)
        else:
            _line(axes, number, label, there, colours[label], joined=plot.kind == "line")
    for place, (label, level) in enumerate(plot.limits.items()):
        style = ("dotted", "dashed", "dashdot")[place % 3]
        axes.axhline(level, color="black", linewidth=1, linestyle=style, label=f"{label} ({level:g})")
    if bars:
        turned = len(groups) > 8 or any(len(group) > 14 for group in groups)
        axes.set_xticks(range(len(groups)), groups, rotation=20 if turned else 0, ha="right" if turned else "center")
    if "x" in plot.log and not bars:
        axes.set_xscale("log")
        ticks = sorted({point[0] for points in plot.series.values() for point in points})
        if len(ticks) <= 10:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
    heights = [point[1] for points in plot.series.values() for point in points if point[1] is not None]
    if "y" in plot.log and 0 < min(heights) * 10 <= max(heights):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    axes.set_title(plot.title, fontsize=11)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    if len(plot.series) + len(plot.limits) > 1:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None}, bbox_inches="tight")
    pyplot.close(figure)
    return out.getvalue()


def _colours(labels: Sequence[str]) -> dict[str, str]:
    rest = iter(PALETTE * (len(labels) // len(PALETTE) + 1))
    return {label: OUR_COLOUR if label in OURS else next(rest) for label in labels}


def _errors(points: Sequence[Sequence[Any]]) -> list[list[float]] | None:
    if not any(len(point) == 4 for point in points):
        return None
    spans = [point if len(point) == 4 else (*point, point[1], point[1]) for point in points]
    return [[max(y - low, 0.0) for _, y, low, _ in spans], [max(high - y, 0.0) for _, y, _, high in spans]]


def _bars(
    axes: Any,
    number: int,
    many: int,
    label: str,
    points: Sequence[Sequence[Any]],
    groups: Sequence[str],
    colour: str,
    *,
    value_labels: bool,
) -> None:
    width = 0.84 / many
    places = [groups.index(str(point[0])) - 0.42 + (number + 0.5) * width for point in points]
    heights = [point[1] for point in points]
    errors = _errors(points)
    drawn = axes.bar(places, heights, width * 0.95, label=label, color=colour, yerr=errors, error_kw={"linewidth": 0.8})
    if value_labels:
        axes.bar_label(drawn, fmt="%.3g", fontsize=7, padding=2)


def _line(axes: Any, number: int, label: str, points: Sequence[Sequence[Any]], colour: str, *, joined: bool) -> None:
    points = sorted(points, key=lambda point: point[0])
    axes.errorbar(
        [point[0] for point in points],
        [point[1] for point in points],
        yerr=_errors(points),
        label=label,
        color=colour,
        linestyle="solid" if joined else "none",
        linewidth=1.6,
        marker=MARKERS[number % len(MARKERS)] if len(points) <= 40 else None,
        markersize=5,
        capsize=2,
    )


# -- of benches whose files name no plots ------------------------------------------------------------------------------


def _rows(scenario: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = scenario["results"].get(name)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _curve(rows: Iterable[Mapping[str, Any]], x: str, y: str) -> list[tuple[Any, Any]]:
    return [(row[x], row[y]) for row in rows if row.get(x) is not None and row.get(y) is not None]


def _numbers(figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)


def mesh_growth(scenario: Mapping[str, Any]) -> Iterator[Plot]:
    """How the cost of a command and of a restart grows with the fleet, beside the naive mesh."""
    rows = _rows(scenario, "growth")
    naive = [row["naive"] | {"sidecars": row["sidecars"]} for row in rows if isinstance(row.get("naive"), dict)]
    for name, title, y in (
        ("command_seconds", "A command reaches every sidecar", "seconds"),
        ("command_bytes_per_sidecar", "Bytes of one command per sidecar", "bytes"),
        ("restart_bytes_per_sidecar", "Bytes of a restart of all, per sidecar", "bytes"),
    ):
        series = {"ours": _curve(rows, "sidecars", name)}
        if other := _curve(naive, "sidecars", name):
            series["whole documents flooded"] = other
        yield Plot(name, title, "sidecars", y, series, log="xy")


def swarm_finish(scenario: Mapping[str, Any]) -> Iterator[Plot]:
    """When each agent of a fan-out had the package, as the share of agents done by a time."""
    series: dict[str, list[tuple[float, float]]] = {}
    for name in scenario["results"]:
        if name.partition(",")[0] != "agents":
            continue
        times = sorted(row["seconds"] for row in _rows(scenario, name) if row.get("seconds") is not None)
        label = name.partition(",")[2].strip() or "ours"
        series[label] = [(at, (place + 1) / len(times)) for place, at in enumerate(times)]
    bound = scenario["parameters"].get("bound_s")
    if bound and any(series.values()):
        series["least possible for the last"] = [(bound, 0.0), (bound, 1.0)]
    if max((len(points) for points in series.values()), default=0) >= 3:
        yield Plot("finish", f"Agents that have the package ({scenario['scenario']})", "s", "share of agents", series)


def update_ratio(scenario: Mapping[str, Any]) -> Iterator[Plot]:
    """Bytes fetched for an update, ours beside others, as a share of the new release."""
    parts = scenario["parameters"]
    whole = parts.get("newer_bytes")
    ours = scenario["results"].get("fetched_bytes")
    if not isinstance(whole, int | float) or not isinstance(ours, int | float):
        return
    series = {"ours": [(scenario["scenario"], ours / whole)]}
    for name, figures in scenario["baselines"].items():
        if isinstance(figures.get("bytes"), int | float):
            series[name] = [(scenario["scenario"], figures["bytes"] / whole)]
    yield Plot("ratio", "Bytes fetched / bytes of the new release", "", "share", series, kind="bars")


def store_speed(scenario: Mapping[str, Any]) -> Iterator[Plot]:
    """MB/s of what the store does, beside what the machine's own programs do."""
    series: dict[str, list[tuple[str, float]]] = {"ours": [], "other programs": []}
    for label, groups in (("ours", scenario["results"]), ("other programs", scenario["baselines"])):
        for name, figures in groups.items():
            if isinstance(figures, dict) and isinstance(figures.get("MB/s"), int | float):
                series[label].append((name, figures["MB/s"]))
    yield Plot("speed", f"Store: {scenario['scenario']}", "", "MB/s", series, kind="bars")


def api_rates(scenario: Mapping[str, Any]) -> Iterator[Plot]:
    """Calls per second and delays: figures whose name ends in their unit, or that have one."""
    by_unit: dict[str, list[tuple[str, float]]] = {}
    for name, value in _numbers(scenario["results"]):
        call, _, figure = name.rpartition(" ")
        if figure == "per_s":
            by_unit.setdefault("calls/s", []).append((call, value))
        elif figure.endswith("_ms"):
            by_unit.setdefault("ms", []).append((f"{call}, {figure.removesuffix('_ms')}", value))
        elif unit := scenario["units"].get(name):
            by_unit.setdefault(unit, []).append((name, value))
    for unit, points in by_unit.items():
        if len(points) > 1:
            yield Plot(f"figures-{unit}", f"API: {scenario['scenario']}", "", unit, {"ours": points}, kind="bars")


def mesh_delays(scenario: Mapping[str, Any]) -> Iterator[Plot]:
    """Percentiles of how late things come, ours beside the baselines; figures are called NAME_pNN."""
    by_label = {"ours": scenario["results"], **scenario["baselines"]}
    series = {
        label: [(name.replace("_", " "), value) for name, value in _numbers(figures) if "_p" in name]
        for label, figures in by_label.items()
    }
    yield Plot("delays", f"Delays: {scenario['scenario']}", "", "s", series, kind="bars", log="y")


def mesh_month(scenario: Mapping[str, Any]) -> Iterator[Plot]:
    """What a store weighs day by day."""
    for name in scenario["results"]:
        rows = _rows(scenario, name)
        for x in ("day", "days"):
            columns = [key for key in (rows[0] if rows else ()) if key != x and x in rows[0]]
            for column in columns:
                points = [(day, y) for day, y in _curve(rows, x, column) if isinstance(y, int | float)]
                if len(points) > 2:
                    yield Plot(f"{name}-{column}", f"A month: {column.replace('_', ' ')}", x, column, {"ours": points})


_DERIVED: dict[tuple[str, str], Callable[[Mapping[str, Any]], Iterable[Plot]]] = {
    ("mesh", "fleet"): mesh_growth,
    ("mesh", "radio"): mesh_delays,
    ("mesh", "partition"): mesh_delays,
    ("mesh", "month"): mesh_month,
    ("swarm", "*"): swarm_finish,
    ("update", "*"): update_ratio,
    ("store", "*"): store_speed,
    ("api", "*"): api_rates,
}
