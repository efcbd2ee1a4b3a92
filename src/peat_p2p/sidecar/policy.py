"""Which writes a sidecar accepts, from its own callers and from the mesh.

Owns the one policy both go by, so that nothing is accepted here that every other sidecar would refuse. It decides by
the writer's certificate, the collection and the fields alone, never by what this sidecar happens to know already:
otherwise two sidecars could differ for good. Must not know how documents are merged.
"""

from __future__ import annotations

from collections.abc import Collection

from peat_p2p.core.errors import DeniedError
from peat_p2p.documents.authority import Claim
from peat_p2p.trust.identity import Identity
from peat_p2p.trust.policy import refusal


def accept(claim: Claim) -> str:
    """Why the mesh's claim is refused; empty if it is not."""
    return refusal(claim.origin, claim.collection, claim.doc_id, claim.fields, claim.deletes, claimed=False)


def require(node: Identity, collection: str, doc_id: str, fields: Collection[str], *, deletes: bool = False) -> None:
    """Raise DeniedError unless the node itself may write these fields (or delete) there."""
    reason = refusal(node, collection, doc_id, fields, deletes, claimed=False)
    if reason:
        raise DeniedError(reason)
