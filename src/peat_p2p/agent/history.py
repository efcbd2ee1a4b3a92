"""How transfers ended.

Owns the last account of each package version this agent fetched: bytes by source, waste, time. It is kept on disk until
the package is removed, so that what a transfer cost can still be told after a restart. Blocking, but small.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peat_p2p.content.manifest import Manifest
from peat_p2p.core.atomic import write_atomic
from peat_p2p.swarm.ledger import SourceBytes
from peat_p2p.swarm.status import TransferState, TransferStatus

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedTransfer:
    """A transfer that is over. `digest` is the manifest's; `ended_at` is unix seconds."""

    manifest: Manifest
    digest: str
    status: TransferStatus
    ended_at: int


class TransferHistory:
    """The ended transfers under one folder, one per package version."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ended: dict[str, EndedTransfer] = {}

    def load(self) -> None:
        """Read what earlier lives left. A file that cannot be read is put away and said so."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(self._folder.glob("*.json")):
            try:
                ended = _decode(json.loads(file.read_bytes()))
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.error("%s is not the record of a transfer and is put away: %s", file, error)
                file.rename(file.with_suffix(".bad"))
            else:
                self._ended[ended.digest] = ended

    def all(self) -> list[EndedTransfer]:
        """Every ended transfer, the last to end first."""
        return sorted(self._ended.values(), key=lambda ended: ended.ended_at, reverse=True)

    def add(self, ended: EndedTransfer) -> None:
        """Keep how a transfer ended. Asking again for what is here already does not blot out what fetching it cost."""
        before = self._ended.get(ended.digest)
        if (
            before is not None
            and before.status.state is TransferState.COMPLETE
            and ended.status.state is TransferState.COMPLETE
            and ended.status.received <= before.status.received
        ):
            return
        self._ended[ended.digest] = ended
        write_atomic(self._file(ended.digest), json.dumps(_encode(ended)).encode())

    def forget(self, digest: str) -> None:
        """The package was removed."""
        if self._ended.pop(digest, None) is not None:
            self._file(digest).unlink(missing_ok=True)

    def _file(self, digest: str) -> Path:
        return self._folder / f"{digest.removeprefix('blake3:')}.json"


def _encode(ended: EndedTransfer) -> dict[str, Any]:
    return {
        "manifest": ended.manifest.to_payload().decode(),
        "digest": ended.digest,
        "ended_at": ended.ended_at,
        "status": asdict(ended.status),
    }


def _decode(content: dict[str, Any]) -> EndedTransfer:
    raw = content["status"]
    known = {name: raw[name] for name in TransferStatus.__dataclass_fields__ if name in raw}
    status = TransferStatus(
        **{
            **known,
            "state": TransferState(raw["state"]),
            "sources": tuple(SourceBytes(**source) for source in raw["sources"]),
            "bad_peers": tuple(raw["bad_peers"]),
            "suspects": tuple((who, what) for who, what in raw.get("suspects", ())),
        }
    )
    manifest = Manifest.from_payload(content["manifest"].encode())
    return EndedTransfer(
        manifest=manifest, digest=content["digest"], status=replace(status, rate=0.0), ended_at=int(content["ended_at"])
    )
