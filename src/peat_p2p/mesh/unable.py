"""Pausing while nothing can be written here.

Owns how long links pause after a write failed for want of room, and that a person is told once. Time is an argument.
"""

from __future__ import annotations

import logging

_LOG = logging.getLogger(__name__)
FIRST_PAUSE = 30.0
LONGEST_PAUSE = 120.0


class Unable:
    """Whether, why and until when nothing can be taken from peers."""

    def __init__(self) -> None:
        self.reason = ""
        self.until = float("-inf")
        self._pause = FIRST_PAUSE

    def at(self, now: float) -> bool:
        """Whether links pause now."""
        return now < self.until

    def failed(self, reason: str, now: float) -> None:
        """A write failed. Several links notice it at once, and again after each pause while there is no room."""
        if self.at(now):
            return
        again = now - self.until < LONGEST_PAUSE
        self._pause = min(LONGEST_PAUSE, 2.0 * self._pause) if again else FIRST_PAUSE
        _LOG.log(logging.DEBUG if again else logging.WARNING, "links pause until there is room: %s", reason)
        self.reason, self.until = reason, now + self._pause
