"""What a link core asks its caller to do.

Owns the effects; what becomes of them is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass

from peat_p2p.mesh.frames import Express, Hello, Reason
from peat_p2p.mesh.ports import Key, Update


@dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes to the peer."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Offered:
    """The peer takes copies of urgent batches there."""

    express: Express


@dataclass(frozen=True, slots=True)
class Ahead:
    """Send this record as a datagram too, if the peer takes them."""

    record: bytes


@dataclass(frozen=True, slots=True)
class Greeted:
    """The peer said hello: the link may be counted, or refused as a second one."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class Apply:
    """Apply the updates, make them durable, then call `applied`."""

    number: int
    updates: tuple[Update, ...]


@dataclass(frozen=True, slots=True)
class MoveCursor:
    """Remember that everything of the peer's class up to `seq` is durable here. May be written late."""

    epoch: bytes
    klass: int
    seq: int


@dataclass(frozen=True, slots=True)
class Forget:
    """The peer has deleted and forgotten these parts; nothing of them at or below the floor may come back."""

    floors: tuple[tuple[Key, int], ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """The replica refused something the peer sent."""

    key: Key
    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """Close the connection. `fault` tells a broken peer from an intended end."""

    reason: Reason
    detail: str
    fault: bool = False


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Everything the peer held when it last told its heads is durable here."""


Effect = Send | Offered | Ahead | Greeted | Apply | MoveCursor | Forget | Rejected | CaughtUp | End
