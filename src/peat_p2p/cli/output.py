"""What commands print: tables and progress for people, JSON for programs.

Owns the forms of sizes, rates and times, and the look of tables and progress bars. Progress goes to standard error, so
that standard output holds only the result. What draws is imported when there is something to draw.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024.0
WIDE = 1000


def size(count: float) -> str:
    """A number of bytes, for a person."""
    value, unit = float(count), _UNITS[0]
    for unit in _UNITS:
        if value < _STEP or unit == _UNITS[-1]:
            break
        value /= _STEP
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def rate(bytes_per_second: float) -> str:
    """A rate, for a person."""
    return f"{size(bytes_per_second)}/s"


def duration(seconds: float) -> str:
    """A length of time, for a person: two units at most."""
    whole = round(max(0.0, seconds))
    for unit, length, small in (("d", 86_400, "h"), ("h", 3_600, "m"), ("m", 60, "s")):
        if whole >= length:
            rest = (whole % length) // {"h": 3_600, "m": 60, "s": 1}[small]
            return f"{whole // length}{unit} {rest}{small}" if rest else f"{whole // length}{unit}"
    return f"{whole}s"


def ago(unix_seconds: float, now: float | None = None) -> str:
    """How long ago a moment was; "never" for 0."""
    if unix_seconds <= 0:
        return "never"
    return f"{duration((time.time() if now is None else now) - unix_seconds)} ago"


def when(unix_seconds: float) -> str:
    """A moment in UTC; "-" for 0."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(unix_seconds)) if unix_seconds > 0 else "-"


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """A table on standard output, or `empty` when there are no rows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        # Names come from others: they must not be able to colour or break the table.
        table.add_row(*(Text(plain(cell)) for cell in row))
    if table.row_count:
        # Into a pipe nothing is cut or folded: somebody's grep reads it.
        Console(width=None if Console().is_terminal else WIDE).print(table)
    else:
        click.echo(empty)


def plain(text: str) -> str:
    """`text` without control characters: what others named must not steer the terminal."""
    return "".join(char if char.isprintable() else "�" for char in text)


class TransferBar:
    """A progress bar on standard error; on anything but a terminal, a line whenever the words change."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        drawn = sys.stderr.isatty() and not quiet
        self._lines = not drawn and not quiet
        self._said = ""
        self._title = plain(title)
        self._progress = _new_progress() if drawn else None
        if self._progress is not None:
            self._task = self._progress.add_task(self._title, total=None, figures="", words="")

    def __enter__(self) -> TransferBar:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, done: float, total: float, figures: str, words: str) -> None:
        """Show how far it is. `figures` are numbers beside the bar, `words` say what is going on."""
        if self._progress is not None:
            self._progress.update(
                self._task, completed=done, total=total or None, figures=plain(figures), words=plain(words)
            )
        elif self._lines and words and words != self._said:
            self._said = words
            click.echo(f"{self._title}: {plain(words)}", err=True)


def _new_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[figures]}", markup=False),
        TextColumn("{task.fields[words]}", markup=False, style="dim"),
        console=Console(stderr=True),
        transient=True,
    )
