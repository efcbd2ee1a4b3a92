"""Saying in time that this node's certificate will expire: without it the node is alone.

Owns the words and the moments. Must not know what the certificate is used for.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from pathlib import Path

from peat_p2p.core.clock import Clock
from peat_p2p.trust.identity import Identity

_LOG = logging.getLogger(__name__)
WARN_BEFORE_S = 30 * 86_400.0
_EVERY_S = 12 * 3_600.0


def remark(identity: Identity, folder: Path, now: float) -> str | None:
    """What to say at the Unix time `now` of a certificate that lies in `folder`; None while there is nothing to say."""
    left = identity.not_after - now
    if left > WARN_BEFORE_S:
        return None
    when = datetime.fromtimestamp(identity.not_after, UTC).strftime("%Y-%m-%d %H:%M UTC")
    days = int(left // 86_400)
    soon = "has expired" if left <= 0 else f"expires in {days} day{'' if days == 1 else 's'}"
    return (
        f"the certificate of {identity.node_id} {soon} ({when}), and others refuse it then: "
        f"renew it with `peat formation renew` where the CA is, put it into {folder} and start this process again"
    )


async def watch_expiry(identity: Identity, folder: Path, clock: Clock) -> None:
    """Log the remark now and twice a day."""
    while True:
        if (text := remark(identity, folder, clock.wall())) is not None:
            _LOG.warning("%s", text)
        await asyncio.sleep(_EVERY_S)
