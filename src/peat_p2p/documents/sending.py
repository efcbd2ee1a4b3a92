"""What to send a peer of a part.

Owns the choice between a proof of life, a difference and the whole part. Keeps the rule that the newest state is
sent, never one on the way to it. Must not know about links.
"""

from __future__ import annotations

from peat_p2p.documents.content import difference
from peat_p2p.documents.parts import Part
from peat_p2p.documents.rules import CERTIFICATES
from peat_p2p.documents.shelf import Shelf
from peat_p2p.documents.types import BeatUpdate, CertificateUpdate, PartKey, PartUpdate, Update, Version


def make_update(shelf: Shelf, key: PartKey, base_seq: int = 0, base: Version | None = None) -> Update | None:
    """The newest state of `key` for a peer that has all our changes up to `base_seq`, or the state `base` of the
    part."""
    if key.collection == CERTIFICATES:
        certificate = shelf.certificate(key.origin)
        return None if certificate is None else CertificateUpdate(key, certificate.identity.certificate)
    part = shelf.part(key)
    if part is None:
        return None
    if base is not None and base[:2] == part.newness[:2]:
        since = part.count
    else:
        since = part.operations_at(base_seq) if base_seq else 0
    if since == part.count and part.beat is not None:
        return BeatUpdate(key, part.beat)
    if since == part.count:
        since = 0
    return _part_update(part, since)


def _part_update(part: Part, since: int) -> PartUpdate:
    payload = difference(part.state, since) if since else part.state
    # With few fields the whole is hardly longer than a difference, and it never has to be asked for again.
    if since and len(payload) >= len(part.state):
        since, payload = 0, part.state
    return PartUpdate(part.key, part.generation, part.version, since, payload, part.signature, part.beat)
