"""Logging: one line of text for a person, or one JSON object for a collector, on standard error.

Owns the set-up of the root logger. Rooms only call `logging.getLogger(__name__)`.
"""

from __future__ import annotations

import json
import logging
import sys
import time

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in _PLAIN}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


def configure_logging(log_format: str, *, level: str = "INFO", node_id: str = "") -> None:
    """Send the log to standard error as `text` or `json`. `node_id` stands in every line of text when given."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        who = f"{node_id} " if node_id else ""
        form = logging.Formatter(
            f"%(asctime)s.%(msecs)03dZ %(levelname)-7s {who}%(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )
        form.converter = time.gmtime
        handler.setFormatter(form)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # A line for every request of a local poller says nothing a person wants.
    logging.getLogger("aiohttp.access").setLevel("WARNING")
