"""What a person is told of a peer.

Owns the words for the state of a link. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from peat_p2p.mesh.dial import Target
from peat_p2p.mesh.session import Session
from peat_p2p.mesh.types import PeerState


def describe_all(
    targets: Iterable[Target],
    links: Mapping[str, Session],
    names: Mapping[str, tuple[str, str]],
    site_of: Callable[[str], str | None],
    *,
    active: bool,
) -> list[PeerState]:
    """The states of all peers that are wanted or linked. `names`: node id and site of those that were linked."""
    wanted = {target.endpoint_id: target for target in targets}
    return [
        describe(
            peer,
            target=wanted.get(peer),
            link=links.get(peer),
            name=names.get(peer) or ("", site_of(peer) or ""),
            active=active,
        )
        for peer in sorted(wanted.keys() | links.keys())
    ]


def describe(
    endpoint_id: str, *, target: Target | None, link: Session | None, name: tuple[str, str], active: bool
) -> PeerState:
    """The state of a peer that is wanted (`target`) or linked (`link`). `name`: its node id and site, as far as known;
    `active`: links are made."""
    addresses = [str(address) for address in target.addresses] if target is not None else []
    if link is not None:
        addresses += [a for a in (link.hello.addresses if link.hello else ()) if a not in addresses]
    state = "connected" if link is not None else "connecting" if target is not None and target.busy else "waiting"
    if link is None and not active:
        state = "stopped"
    node_id, site = name
    return PeerState(
        endpoint_id=endpoint_id,
        node_id=node_id,
        addresses=tuple(addresses),
        connected=link is not None,
        state=state,
        reason="" if link is not None or target is None else target.reason,
        learned=tuple(sorted(target.sources)) if target is not None else ("incoming",),
        site=site,
        bytes_sent=link.stream.bytes_sent if link is not None else 0,
        bytes_received=link.stream.bytes_received if link is not None else 0,
        rtt=link.core.pacer.rtt if link is not None else None,
    )
