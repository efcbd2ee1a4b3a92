"""Who may write what.

Owns the rules that bind documents to their writers, so that a captured agent can lie about itself and about nothing
else. A rule judges one writer's part of a document by the writer's certificate, the collection, the id and the fields;
it never looks at values, with one exception: whom a command is for. Pure. Must not know how parts are merged or stored.

Ownership. Some ids belong to an agent: `platforms/AGENT`, `deployments/AGENT:…`, `packages/AGENT:…`,
`receipts/COMMAND:AGENT`. An id is *claimed* once the formation has a node that speaks for the agent (the caller knows,
from the certificates it has seen). Claimed documents are their agent's and the operators'. Ids that nobody claims may
be written by any member: platforms without a sidecar of their own are reported by somebody else's.

Standing. Where several may write, a rightful writer's field stands above a mere member's whatever their times, and a
delete takes away only what does not stand above its writer. So nobody unmakes a hub's command by writing over it.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum

from peat_p2p.trust.identity import Identity, Role

ORDERING = (Role.OPERATOR, Role.HUB)
_OWNED_FIRST = frozenset({"deployments", "packages"})
_ORDERS = frozenset({"rollouts", "desired", "revocations"})
_STATUS = frozenset({"status"})


class Standing(IntEnum):
    """What a writer's word counts for on a document."""

    NONE = 0
    MEMBER = 1
    RIGHTFUL = 2


class Claims:
    """Which agents the formation has nodes for, as far as certificates were seen. It only grows."""

    def __init__(self) -> None:
        self._agents: set[str] = set()

    def learn(self, identity: Identity) -> bool:
        """Take note of a certificate; whether it claims anything that was not claimed before."""
        new = {identity.node_id, *identity.agents} - self._agents
        self._agents |= new
        return bool(new)

    def claimed(self, collection: str, doc_id: str) -> bool:
        """Whether some node speaks for the document's owner."""
        return owner_of(collection, doc_id) in self._agents


def owner_of(collection: str, doc_id: str) -> str | None:
    """The agent whose document this is, or None if it is of a kind that belongs to no agent."""
    if collection == "platforms":
        return doc_id
    if collection in _OWNED_FIRST:
        return doc_id.partition(":")[0]
    if collection == "receipts":
        return doc_id.rpartition(":")[2]
    return None


def standing(
    origin: Identity, collection: str, doc_id: str, field: str, *, claimed: bool = True, target: str = ""
) -> Standing:
    """What `origin`'s word on one field of a document counts for.

    `claimed` says whether the formation has a node that speaks for the document's owner; `target` is a command's
    target id, as far as it is known.
    """
    owner = owner_of(collection, doc_id)
    if owner is not None:
        if origin.speaks_for(owner):
            return Standing.RIGHTFUL
        # What an agent says it has done is its own to say; of the rest an operator may set fields.
        if collection != "receipts" and origin.has(*ORDERING):
            return Standing.RIGHTFUL
        return Standing.NONE if claimed else Standing.MEMBER
    if collection in _ORDERS:
        return Standing.RIGHTFUL if origin.has(*ORDERING) else Standing.NONE
    if collection == "commands":
        rightful = origin.has(*ORDERING) or (field in _STATUS and bool(target) and origin.speaks_for(target))
        # A member's command is stored, and shown: only its own agent acts on it.
        return Standing.RIGHTFUL if rightful else Standing.MEMBER
    if collection == "manifests":
        # Any holder may announce again what it holds: the envelope inside is what is trusted.
        return Standing.RIGHTFUL if origin.has(Role.PUBLISHER, *ORDERING) else Standing.MEMBER
    return Standing.MEMBER


def delete_standing(origin: Identity, collection: str, doc_id: str, *, claimed: bool = True) -> Standing:
    """What `origin`'s delete of a document takes away: the fields that do not stand above it."""
    if origin.has(*ORDERING):
        return Standing.RIGHTFUL  # also receipts: to tidy up is not to lie
    return standing(origin, collection, doc_id, "", claimed=claimed)


def refusal(
    origin: Identity,
    collection: str,
    doc_id: str,
    fields: Collection[str],
    deletes: bool,
    *,
    claimed: bool = True,
) -> str:
    """Why `origin` may not write these fields (or delete) there at all; empty if it may."""
    if any(standing(origin, collection, doc_id, field, claimed=claimed) is Standing.NONE for field in fields):
        verb = "write"
    elif deletes and delete_standing(origin, collection, doc_id, claimed=claimed) is Standing.NONE:
        verb = "delete"
    else:
        return ""
    owner = owner_of(collection, doc_id)
    if owner is None:
        return f"{origin} may not {verb} {collection}/{doc_id}: the role operator or hub is needed"
    others = "" if collection == "receipts" and verb == "write" else ", an operator or a hub"
    return f"{origin} may not {verb} {collection}/{doc_id}: only the sidecar of {owner}{others} may"
