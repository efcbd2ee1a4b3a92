"""The commands this agent has dealt with, on disk.

Owns one small file per command, so that a command is carried out once whatever restarts in between. Blocking; callers
run it in a thread. Must not know what the records mean.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

from blake3 import blake3

from peat_p2p.agent.commands import Order, Record
from peat_p2p.core.atomic import write_atomic
from peat_p2p.fleet.commands import CommandStatus

log = logging.getLogger(__name__)


class CommandJournal:
    """The records under one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> list[Record]:
        """Every record, oldest command first. A file that cannot be read is put away and said so."""
        self._folder.mkdir(parents=True, exist_ok=True)
        records: list[Record] = []
        for file in self._folder.glob("*.json"):
            try:
                content = json.loads(file.read_bytes())
                order = Order(**content["order"])
                records.append(
                    Record(order, CommandStatus(content["status"]), content["message"], content["updated_at"])
                )
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.error("%s is not a record of a command and is put away: %s", file, error)
                file.rename(file.with_suffix(".bad"))
        return sorted(records, key=lambda record: (record.order.created_at, record.order.id))

    def remember(self, record: Record) -> None:
        """Keep the record durably; it replaces an earlier one of the same command."""
        content = {
            "order": asdict(record.order),
            "status": int(record.status),
            "message": record.message,
            "updated_at": record.updated_at,
        }
        write_atomic(self._file(record.order.id), json.dumps(content).encode())

    def forget(self, command_id: str) -> None:
        """Drop the record of a command, if there is one."""
        self._file(command_id).unlink(missing_ok=True)

    def _file(self, command_id: str) -> Path:
        # A command's id is another's text and no file name.
        return self._folder / f"{blake3(command_id.encode()).hexdigest()[:32]}.json"
