"""What a writer's word counts for, by the formation's policy.

Owns the `Judge` of a formation: it knows the certificates this replica has and which agents they speak for, and who
was revoked. Keeps the rule that knowing more certificates never needs a part that was refused before: what depends on
them is weighed when read, not refused when it comes. Must not know how parts are merged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from peat_p2p.documents.rules import REVOCATIONS
from peat_p2p.trust.anchor import TrustAnchor
from peat_p2p.trust.identity import Identity
from peat_p2p.trust.policy import Claims, delete_standing, owner_of, standing
from peat_p2p.trust.revocation import RevocationSet


class FormationJudge:
    """Weighs by `trust.policy`. `identity_of` finds an origin's certificate among those that came."""

    def __init__(self, anchor: TrustAnchor) -> None:
        self._anchor = anchor
        self._claims = Claims()
        self._revoked: frozenset[str] = frozenset()
        self.identity_of: Callable[[str], Identity | None] = lambda origin: None

    def learn(self, identity: Identity) -> frozenset[str]:
        """Take note of a certificate. Returns the agents of which documents must be merged anew."""
        if self._claims.learn(identity):
            return frozenset({identity.node_id, *identity.agents})
        return frozenset()

    def owner(self, collection: str, doc_id: str) -> str:
        """The agent whose document it is; empty if it is nobody's."""
        return owner_of(collection, doc_id) or ""

    def revise(self, revocations: Mapping[str, str]) -> frozenset[str]:
        """Take note of the documents of `revocations`. Returns the origins whose word counts otherwise now.

        The word of a revoked node counts for nothing, whenever it was given: when the node was captured nobody can
        tell. So every replica shows the same, whether it heard of the revocation before or after what the node wrote.
        """
        documents = {
            doc_id: value for doc_id, text in revocations.items() if isinstance(value := json.loads(text), dict)
        }
        before, self._revoked = self._revoked, RevocationSet.read(documents, self._anchor).endpoints()
        return before ^ self._revoked

    def weight(self, origin: str, collection: str, doc_id: str, field: str, target: str) -> int:
        """What the word of `origin` counts for on a field; 0: nothing."""
        identity = self._heard(origin, collection)
        if identity is None:
            return 0
        claimed = self._claims.claimed(collection, doc_id)
        return int(standing(identity, collection, doc_id, field, claimed=claimed, target=_text(target)))

    def delete_weight(self, origin: str, collection: str, doc_id: str) -> int:
        """What a deletion by `origin` takes away."""
        identity = self._heard(origin, collection)
        if identity is None:
            return 0
        return int(delete_standing(identity, collection, doc_id, claimed=self._claims.claimed(collection, doc_id)))

    def _heard(self, origin: str, collection: str) -> Identity | None:
        # Revocations prove themselves, and must not depend on themselves.
        if origin in self._revoked and collection != REVOCATIONS:
            return None
        return self.identity_of(origin)

    def target_field(self, collection: str) -> str:
        """Whom a command is for decides who may say what became of it."""
        return "target_id" if collection == "commands" else ""


def _text(target: str) -> str:
    try:
        value = json.loads(target) if target else ""
    except ValueError:
        return ""
    return value if isinstance(value, str) else ""
