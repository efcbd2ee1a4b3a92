"""What a transfer looks like from outside.

Owns the states and the snapshot type. Must not know how transfers work.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from peat_p2p.core.errors import PeatError
from peat_p2p.swarm.ledger import SourceBytes


class TransferCancelledError(PeatError):
    """The transfer was cancelled by its owner; verified chunks stay in the store."""


class Priority(IntEnum):
    """How much a package matters. While one of a higher class can go on, lower ones wait."""

    BACKGROUND = 0
    SUPPORT = 1
    MISSION_CRITICAL = 2


class TransferState(StrEnum):
    """Where a transfer is. The last three are final."""

    CHECKING = "checking"
    METADATA = "metadata"
    WAITING = "waiting"
    FETCHING = "fetching"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen."""
        return self in (TransferState.COMPLETE, TransferState.FAILED, TransferState.CANCELLED)


@dataclass(frozen=True, slots=True)
class TransferStatus:
    """A transfer at one moment. Bytes of distinct chunks; `reason` says what it waits for or why it failed.

    `wasted` is what was received and thrown away; while the transfer runs, what is in flight cannot be told from it and
    it is 0. `suspects` are the agents that sent bad data or held back what they promised, each with what it did.
    """

    state: TransferState
    reason: str
    total: int
    verified: int
    reused: int
    received: int
    wasted: int
    rate: float
    eta: float | None
    sources: tuple[SourceBytes, ...]
    elapsed: float
    peers: int
    bad_peers: tuple[str, ...]
    priority: Priority = Priority.SUPPORT
    suspects: tuple[tuple[str, str], ...] = ()
