"""Background work that outlives its failures.

Owns one rule: a full disk, a broken file or a peer's nonsense met in the background is logged and tried again later; it
never ends the process, which has more to do than that one thing.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from peat_p2p.core.errors import PeatError


class Steady:
    """Logs expected failures, each once as long as it stays the same."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: dict[str, str] = {}

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Do `what`; when it fails as things outside this program do fail, go on after it."""
        try:
            yield
        except (PeatError, OSError, sqlite3.Error) as error:
            if self._said.get(what) != str(error):
                self._said[what] = str(error)
                self._log.error("%s failed; the agent goes on: %s", what, error)
        else:
            self._said.pop(what, None)
