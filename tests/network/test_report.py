"""Result files and the report made of them: what was measured is shown, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main, run_bench
from bench.plots import plots_of
from bench.report import BEGIN, END, build, refresh_readme
from bench.result import Bench, Plot, ResultFile, Run, Scenario, load


def row(profile: str, tool: str, fill: float, completed: int = 3) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "seconds": 10.0 if completed == 3 else None,
        "share": 1.0 if completed == 3 else 0.4,
        "fill": fill,
        "link_ratio": 1.1,
        "waste": 0.04,
        "cpu_per_gb": 5.0,
        "ping_rise_ms": 12.0,
        "ping_rise_p95_ms": None,
        "windows": None,
    }
    spreads = {f"{name}_spread": None if value is None else [value, value] for name, value in figures.items()}
    more = {"bytes": 5_000_000, "ideal_seconds": 9.0, "runs": [{}, {}, {}], "settings": "as they come", "version": "1"}
    return {
        "profile": profile,
        "tool": tool,
        "agents": 1,
        "congestion": "cubic",
        "completed": completed,
        **figures,
        **spreads,
        **more,
    }


def write(folder: Path, rows: list[dict[str, Any]], name: str = "links.json", started: float = 1e9) -> None:
    file = ResultFile("links", 1, False, ("bench",), started=started)
    run = Run("links", "one-agent", 1, False)
    run.results["rows"] = rows
    run.at_least("fill, geo", 0.9, 0.85)
    run.at_least("fill, radio", None, 0.7)
    file.add(run, 1.0)
    file.write(folder / name)


def test_the_report_shows_the_cells_and_says_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path, [row("geo", "peat", 0.9), row("geo", "curl", 0.3), row("geo", "aria2", 0.45, completed=0)])
    markdown, page, table = build(tmp_path)
    assert "| geo | 0.90 | 0.30 | 0.45* | 2.00 x aria2 |" in markdown
    assert "| links one-agent | fill, radio | not measured | >= 0.7 | **no** |" in markdown
    assert "<strong>no</strong>" in page
    assert table is not None
    assert "2.00 x aria2" in table
    assert "![How much of the link a package gets: 1 agent, hosts at cubic](report-links-1-cubic-fill.png)" in markdown
    assert (tmp_path / "report-links-1-cubic-fill.png").read_bytes().startswith(b"\x89PNG")
    assert "1 held, 1 missed." in markdown


def test_a_scenario_says_what_is_drawn_and_the_newest_file_counts(tmp_path: Path) -> None:
    for name, started, title in (("new.json", 2e9, "Now"), ("old.json", 1e9, "Then")):
        file = ResultFile("mesh", 1, False, ("bench",), started=started)
        run = Run("mesh", "fleet", 1, False)
        points = [(100, 1.0), (1000, None), (5000, 2.0, 1.5, 2.5)]
        run.plot("growth", title, x="nodes", y="s", log="xy", series={"ours": points}, limits={"bar": 3.0})
        run.plot("parts", title, x="", y="B", kind="bars", series={"ours": [("a", 1)], "other": [("b", 3)]})
        file.add(run, 1.0)
        file.write(tmp_path / name)
    (tmp_path / "report-gone.png").write_bytes(b"a picture of a result that is no more")
    markdown, page, table = build(tmp_path)
    assert "![Now](report-mesh-fleet-growth.png)" in markdown
    assert "Then" not in markdown
    assert page.count("data:image/png") == 2
    assert table is None
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "report-mesh-fleet-growth.png",
        "report-mesh-fleet-parts.png",
    }


def test_a_file_without_plots_is_drawn_from_its_rows() -> None:
    def scenario(name: str, ours: int, other: int) -> dict[str, Any]:
        results, baselines = {"fetched_bytes": ours}, {"zstd": {"bytes": other}}
        return {"scenario": name, "parameters": {"newer_bytes": 100}, "results": results, "baselines": baselines}

    document = {"bench": "update", "scenarios": [scenario("python", 10, 40), scenario("debian", 20, 50)]}
    [(names, plot)] = plots_of(document)
    assert names == "python, debian"
    assert plot.series == {"ours": [("python", 0.1), ("debian", 0.2)], "zstd": [("python", 0.4), ("debian", 0.5)]}
    growth = [{"sidecars": count, "command_seconds": 0.1, "naive": {"command_seconds": 0.3}} for count in (100, 5000)]
    rows = {"scenario": "fleet", "parameters": {}, "results": {"growth": growth}, "baselines": {}, "units": {}}
    [(_, plot)] = plots_of({"bench": "mesh", "scenarios": [rows]})
    assert plot.series["whole documents flooded"] == [(100, 0.3), (5000, 0.3)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "pie"}, "not 'pie'"),
        ({"log": "z"}, "not 'z'"),
        ({"series": {"ours": [(1, 2, 3)]}}, "neither"),
        ({"series": {"ours": [("geo", 2)]}}, "only bars"),
    ],
)
def test_a_plot_that_cannot_be_drawn_is_refused_at_once(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Plot(**({"name": "n", "title": "t", "x": "x", "y": "y", "series": {"ours": [(1, 2)]}} | change))


def test_of_two_files_the_newer_counts(tmp_path: Path) -> None:
    write(tmp_path, [row("geo", "peat", 0.5)], "b.json", started=1e9)
    write(tmp_path, [row("geo", "peat", 0.7)], "a.json", started=2e9)
    assert "| geo | 0.70 |" in build(tmp_path)[0]


def test_the_readme_keeps_everything_but_the_table(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert refresh_readme(readme, "new")
    assert readme.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    readme.write_text("nothing to replace")
    assert not refresh_readme(readme, "new")
    assert readme.read_text() == "nothing to replace"


def test_a_missed_bar_and_a_failure_make_the_exit_code_and_keep_what_was_measured(tmp_path: Path) -> None:
    def good(run: Run) -> None:
        run.at_most("seconds", 1.0, 2.0)

    async def missed(run: Run) -> None:
        run.record("endless", float("inf"))
        run.at_most("seconds", None, 2.0)

    def fails(run: Run) -> None:
        run.spread("rates", [3.0, 1.0, 2.0])
        raise OSError("no disk")

    bench = Bench(
        "three", "", (Scenario("good", "", good), Scenario("missed", "", missed), Scenario("fails", "", fails))
    )
    path = tmp_path / "out.json"
    assert run_bench(bench, ["good", "--json", str(path)]) == 0
    assert run_bench(bench, ["--json", str(path), "--seed", "7"]) == 1
    document = load(path)
    assert [entry["scenario"] for entry in document["scenarios"]] == ["good", "missed", "fails"]
    assert document["seed"] == 7
    assert document["scenarios"][1]["results"]["endless"] is None
    assert document["scenarios"][2]["results"]["rates"] == {
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
        "runs": [3.0, 1.0, 2.0],
    }
    assert "no disk" in document["scenarios"][2]["error"]


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"schema": "something"}))
    with pytest.raises(ValueError, match="not a result file"):
        load(tmp_path / "other.json")


def test_the_command_line_lists_benches_and_refuses_unknown_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listing = capsys.readouterr().out
    assert "one-agent" in listing
    assert "report" in listing
    assert main(["no-such-bench"]) == 2
    assert main([]) == 2
