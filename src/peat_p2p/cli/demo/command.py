"""`peat demo`: the words of the command, the folder it works in, its exit status."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from pathlib import Path

import click
from rich.console import Console

from peat_p2p.cli.demo.story import Story
from peat_p2p.cli.options import DIRECTORY, FILE
from peat_p2p.core.atomic import write_atomic
from peat_p2p.core.errors import NotFoundError


@click.command()
@click.option(
    "--package",
    type=click.Path(path_type=Path),
    help="The file or folder to publish.  [default: a copy of installed Python packages, 50 MB or more]",
)
@click.option(
    "--dir", "directory", type=DIRECTORY, help="Where to work; kept afterwards.  [default: a temporary folder]"
)
@click.option("--json", "json_file", type=FILE, help="Write what was found to this file.")
@click.option("--keep", is_flag=True, help="Keep the working folder (data, certificates, logs).")
def demo(package: Path | None, directory: Path | None, json_file: Path | None, keep: bool) -> None:
    """Show the main job on this machine: a package crosses a fleet while the hub is dead.

    Starts a hub, a publisher and five edge nodes as real processes, publishes a package, orders it, kills the hub and
    the publisher, and lets the rest of the fleet go on. Ends with status 0 only if all that it promises held.
    """
    if package is not None and not package.exists():
        raise NotFoundError(f"--package {package}: there is no such file or folder")
    if directory is not None and directory.exists() and any(directory.iterdir()):
        raise click.UsageError(f"--dir {directory} is not empty; the demo starts from nothing")
    root = directory or Path(tempfile.mkdtemp(prefix="peat-demo-"))
    console = Console(highlight=False)
    if not console.is_terminal:
        # Into a file or a log: wide enough for the table.
        console = Console(highlight=False, width=150)
    kept = keep or directory is not None
    holds = False
    try:
        report = asyncio.run(Story(console, root.absolute(), package).run())
        holds = report.holds
        console.print()
        console.print(report.table())
        for site, count in report.entered().items():
            agents = sum(a.site == site for a in report.agents)
            console.print(
                f"  {count / 1e6:.1f} MB came into site {site} from outside, for its {agents} agents together"
            )
        for promise, was_kept in report.checks():
            console.print(f"  {'[green]yes[/]' if was_kept else '[bold red]NO [/]'}  {promise}")
        for problem in report.problems:
            console.print(f"  [red]{problem}[/]")
        if json_file is not None:
            write_atomic(json_file, json.dumps(report.to_json(), indent=2).encode() + b"\n")
        console.print(f"\n{'All of it held' if holds else 'Not all of it held'}; {report.seconds:.0f} s in all.")
    finally:
        if kept or not holds:
            console.print(f"Data and logs are in {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    if not holds:
        raise SystemExit(1)
