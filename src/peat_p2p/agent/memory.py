"""The peers last known, for a start with the sidecar away.

Owns one small file: the holdings and heartbeats of agents that can give what is being fetched, and the manifests of it.
It is read once, at the start, and counts only until the sidecar has told what is true now. Blocking, but small.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peat_p2p.agent.view import FleetView
from peat_p2p.core.atomic import write_atomic
from peat_p2p.core.errors import PeatError
from peat_p2p.fleet.ids import MANIFESTS, PACKAGES, PLATFORMS, manifest_id

log = logging.getLogger(__name__)

_MOST_HOLDERS = 64


class LastKnown:
    """The file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._kept: bytes | None = None

    def recall(self, view: FleetView) -> int:
        """Put what was last known into a view that knows nothing yet. Returns the number of documents."""
        try:
            documents = json.loads(self._file.read_bytes())
            entries = [(str(c), str(i), dict(fields)) for c, i, fields in documents]
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s cannot be read and is passed over: %s", self._file, error)
            return 0
        for collection, doc_id, fields in entries:
            view.apply(collection, doc_id, fields)
        return len(entries)

    def gather(self, view: FleetView, digests: Iterable[str]) -> bytes | None:
        """What is to be kept for these manifests; None when it is what is kept already."""
        documents: dict[tuple[str, str], Any] = {}
        for digest in sorted(digests):
            holdings = view.holders(digest)
            try:
                name = view.manifest(digest).manifest.name
            except PeatError:
                name = ""
            holdings += view.holders_of_name(name) if name else []
            for holding in holdings[:_MOST_HOLDERS]:
                documents[PACKAGES, holding.doc_id] = view.get(PACKAGES, holding.doc_id)
                # When an agent was seen last changes with every heartbeat and is no reason to write.
                beat = view.get(PLATFORMS, holding.agent_id)
                documents[PLATFORMS, holding.agent_id] = {**beat, "last_seen": 0} if beat is not None else None
            documents[MANIFESTS, manifest_id(digest)] = view.get(MANIFESTS, manifest_id(digest))
        entries = [[collection, doc_id, fields] for (collection, doc_id), fields in documents.items() if fields]
        data = json.dumps(entries).encode()
        return None if data == self._kept else data

    def keep(self, data: bytes) -> None:
        """Write what `gather` gave."""
        write_atomic(self._file, data)
        self._kept = data
