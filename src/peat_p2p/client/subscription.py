"""A subscription that outlives its connection.

Owns the reading of Subscribe streams: markers become events, a lost connection becomes a Gap and a new try. Rule: after
a Gap the reader is always told the whole state again, so that a reader which forgets on Gap is never wrong for longer
than the sidecar is away.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence

from peat_p2p.client.calls import parse_document
from peat_p2p.client.channel import Channel, backoff
from peat_p2p.client.model import Deleted, Event, Gap, SnapshotComplete, Upserted
from peat_p2p.core.errors import UnavailableError
from peat_p2p.wire.errors import RemoteError
from peat_p2p.wire.gen.peat.sidecar.v1 import sidecar_pb as pb
from peat_p2p.wire.gen.peat.sidecar.v1.sidecar_connect import PeatSidecarClient

FIRST_DELAY = 0.2
LONGEST_DELAY = 5.0


async def follow(
    channel: Channel, sidecar: PeatSidecarClient, collections: Sequence[str], query: pb.SubscriptionQuery | None
) -> AsyncGenerator[Event, None]:
    """Events of one subscription for ever, over as many connections as it takes. Raises PeatError if it is refused."""
    attempt = 0
    while True:
        stream = read_once(channel, sidecar, collections, query)
        try:
            async for event in stream:
                attempt = 0
                yield event
            reason = f"{channel.where} ended the stream"
        except (UnavailableError, RemoteError) as error:
            reason = str(error)
        finally:
            await stream.aclose()
        if attempt == 0:
            yield Gap(reason)
        await asyncio.sleep(backoff(attempt, random.random, first=FIRST_DELAY, most=LONGEST_DELAY))
        attempt += 1


async def read_once(
    channel: Channel, sidecar: PeatSidecarClient, collections: Sequence[str], query: pb.SubscriptionQuery | None
) -> AsyncGenerator[Event, None]:
    """Events of one subscription over one connection. Raises PeatError when it breaks."""
    request = pb.SubscribeRequest(collections=list(collections), query=query)
    changes = channel.stream(lambda: sidecar.subscribe(request))
    try:
        async for change in changes:
            event = _event(change)
            if event is not None:
                yield event
    finally:
        await changes.aclose()


def _event(change: pb.DocumentChange) -> Event | None:
    if change.marker == pb.StreamMarker.SNAPSHOT_COMPLETE:
        return SnapshotComplete()
    if change.marker == pb.StreamMarker.LAGGED:
        return Gap("this reader was too slow")
    if change.change_type == pb.ChangeType.DELETE:
        return Deleted(change.collection, change.doc_id)
    if change.change_type == pb.ChangeType.UPSERT:
        text = change.json_data or "{}"
        return Upserted(change.collection, change.doc_id, text, parse_document(text))
    # A marker of a newer sidecar: it names no document, so nothing is missed by passing over it.
    return None
