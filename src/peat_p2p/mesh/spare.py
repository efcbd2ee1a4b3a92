"""Which links there is no need of.

Owns the judgement that a link which only the topology chose is one too many. Keeps the rule that a site is not left
without a link for it: what replaces a link has stood for a while first. Must not end links.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from peat_p2p.mesh.session import Session
from peat_p2p.mesh.topology import MAX_LINKS, Plan

PRUNE_AFTER = 60.0
PROVEN_AFTER = 5.0


def surplus(links: Mapping[str, Session], plan: Plan, site: str, now: float) -> list[Session]:
    """Those of this node's links, from the site `site`, that its plan has others in place of."""
    kept = [links.get(peer) for peer in plan.outward]
    served = bool(kept) and all(link is not None and now - link.began > PROVEN_AFTER for link in kept)
    found = []
    for peer, link in links.items():
        if not (link.optional and link.dialled) or peer in plan.wanted:
            continue
        outward = link.hello is not None and link.hello.site != site
        old = now - link.began > PRUNE_AFTER
        if (outward and (old or served)) or (old and len(links) > MAX_LINKS):
            found.append(link)
    return found


def preferred(link: Session, own: str) -> bool:
    """Whether the link is the one to keep of two to one peer: both sides say the same of it."""
    return link.dialled == (own < link.peer)


def beside(session: Session, links: Mapping[str, Session]) -> list[Session]:
    """Other links to the site that `session` leads to.

    While a site cannot be reached its members are called in turn, and when it can be again several answer.
    """
    hello = session.hello
    others = [link for peer, link in links.items() if peer != session.peer]
    return [link for link in others if hello is not None and link.hello is not None and link.hello.site == hello.site]


def stranded(links: Iterable[Session], lost: Collection[str]) -> list[Session]:
    """Links from addresses that this machine lost: what is sent there goes nowhere, and no answer comes."""
    return [link for link in links if link.stream.own_host in lost]
