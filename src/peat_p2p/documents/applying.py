"""Updates that come from peers.

Owns the verdict on an update: known, needed whole, unproved, forbidden, forgotten long ago, or staged. Keeps the rule
that nothing counts before its writer's certificate and signature were checked, that applying in any order, twice or
not at all leads to the same parts, and that one writer cannot touch what another says. Must not know about links or
the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from peat_p2p.core.errors import InvalidInputError, UntrustedError
from peat_p2p.documents.authority import Authority, Claim
from peat_p2p.documents.chain import proves
from peat_p2p.documents.content import EXISTS, Anchor, Content, Form, canonical, combine
from peat_p2p.documents.jsontext import check_fields
from peat_p2p.documents.keys import certificate_key
from peat_p2p.documents.parts import Part
from peat_p2p.documents.rules import BEACONS, CERTIFICATES, is_known_reserved, is_public_name, is_reserved
from peat_p2p.documents.shelf import Certificate, Shelf
from peat_p2p.documents.stamps import stamp_time
from peat_p2p.documents.types import (
    Beat,
    BeatUpdate,
    CertificateUpdate,
    Limits,
    Outcome,
    PartKey,
    PartUpdate,
    Update,
    Verdict,
)
from peat_p2p.documents.ymap import BadContentError
from peat_p2p.trust.identity import Identity

# A policy's refusal is not a reason to leave a peer: it may know the roles of another day.
POLICY = "policy: "
_SIGNATURE_BYTES = 64


class Memory(Protocol):
    """What is known of parts that are gone."""

    def purged_up_to(self, key: PartKey, content: Content, now: float) -> int:
        """Up to which stamp what `content` says was here and was forgotten; 0: it was not."""
        ...

    def saw_beacon(self, key: PartKey, content: Content, source: str, now: float) -> None:
        """Take note of how far a writer's changes have come."""
        ...


@dataclass(slots=True)
class Opened:
    """A whole part read ahead of its turn, so that many signatures can be checked at once.

    `genuine` is what that check found: whether `identity` signed `said`. None: it was not made, or is not needed.
    """

    form: Form
    content: Content
    said: bytes
    identity: Identity
    genuine: bool | None = None


def check_signatures(authority: Authority, jobs: Iterable[tuple[Opened, bytes]]) -> None:
    """Note in each opened part whether its signature is good. May run in any thread."""
    for opened, signature in jobs:
        opened.genuine = authority.verifies(opened.identity, signature, opened.said)


class Gate:
    """Where what others wrote comes in."""

    def __init__(self, shelf: Shelf, authority: Authority, limits: Limits, memory: Memory) -> None:
        self._shelf = shelf
        self._authority = authority
        self._limits = limits
        self._memory = memory
        self._meeting = ""
        # Called when a part this node signed comes in that this database does not have.
        self.on_own: Callable[[PartKey], None] = lambda key: None

    def open(self, update: Update) -> Opened | None:
        """Read an update whose signature will have to be checked; None when `apply` shall do all in its turn."""
        if not isinstance(update, PartUpdate) or update.since or self._bad_form(update):
            return None
        current = self._shelf.newest(update.key)
        if current is not None and (update.generation, update.version) <= (current.generation, current.version):
            return None
        certificate = self._shelf.newest_certificate(update.key.origin)
        if certificate is None:
            return None
        try:
            form, content = combine(b"", update.payload)
        except BadContentError:
            return None
        return Opened(form, content, canonical(update.key, update.generation, content), certificate.identity)

    def apply(
        self, update: Update, source: str, now: float, meeting: str = "", opened: Opened | None = None
    ) -> Outcome:
        """Stage the update if it is new and good. `source` is the peer it came from, `meeting` names the link with
        it, `opened` is what `open` made of it."""
        key = update.key
        self._meeting = meeting or source
        if isinstance(update, CertificateUpdate):
            return self._certificate(update)
        current = self._shelf.newest(key)
        if isinstance(update, BeatUpdate):
            if current is None:
                return Outcome(Verdict.NEED_FULL, key)
            return self._beat(current, update.beat, now)
        if opened is None and (reason := self._bad_form(update)):
            return Outcome(Verdict.REJECTED, key, reason)
        if current is not None:
            ours, theirs = (current.generation, current.version), (update.generation, update.version)
            if theirs < ours:
                return Outcome(Verdict.STALE, key)
            if theirs == ours and (update.since or update.signature == current.signature):
                return self._same(current, update, now)
        return self._part(current, update, source, now, opened)

    def _same(self, current: Part, update: PartUpdate, now: float) -> Outcome:
        if update.beat is None or (current.beat is not None and update.beat.position <= current.beat.position):
            self._shelf.note_peer(current.key, self._meeting)
            return Outcome(Verdict.STALE, current.key)
        return self._beat(current, update.beat, now)

    def _beat(self, current: Part, beat: Beat, now: float) -> Outcome:
        key = current.key
        if current.beat is not None and beat.position <= current.beat.position:
            if beat == current.beat:
                self._shelf.note_peer(key, self._meeting)
            return Outcome(Verdict.STALE, key)
        # The last one shown is of the present anchor, so following the chain from there is enough (and is short).
        if current.beat is not None:
            good = proves(beat.preimage, beat.position, current.beat.preimage, current.beat.position)
        else:
            anchor = current.content().anchor
            good = anchor is not None and _proves(anchor, beat)
        if not good:
            # Of an anchor we do not have yet, most likely.
            return Outcome(Verdict.NEED_FULL, key)
        self._shelf.stage(
            replace(current, beat=beat, seq=self._shelf.next_seq(), accepted=int(now), peers=(self._meeting,))
        )
        return Outcome(Verdict.APPLIED, key)

    def _part(
        self, current: Part | None, update: PartUpdate, source: str, now: float, opened: Opened | None
    ) -> Outcome:
        key = update.key
        certificate = self._shelf.newest_certificate(key.origin)
        if certificate is None:
            return Outcome(Verdict.NEED_CERTIFICATE, key)
        base = b""
        if update.since:
            if current is None or current.generation != update.generation or current.count < update.since:
                return Outcome(Verdict.NEED_FULL, key)
            base = current.state
        try:
            if opened is None or opened.identity is not certificate.identity:
                form, content = combine(base, update.payload)
                opened = Opened(form, content, canonical(key, update.generation, content), certificate.identity)
            form, content, said = opened.form, opened.content, opened.said
            if update.version != content.version:
                raise BadContentError("its version is not that of its newest field")
            if opened.genuine is None:
                opened.genuine = self._authority.verifies(certificate.identity, update.signature, said)
            if not opened.genuine:
                raise BadContentError(f"the signature is not that of {certificate.identity.node_id} over this content")
            before = current.content() if current is not None else Content({})
            self._check_content(content, before)
        except (BadContentError, InvalidInputError) as error:
            if update.since:
                return Outcome(Verdict.NEED_FULL, key)
            return Outcome(Verdict.REJECTED, key, f"{key.collection}/{key.doc_id} of {key.origin[:12]}: {error}")
        same = current is not None and (current.generation, current.version) == (update.generation, update.version)
        # The same version signed twice: if the contents differ the writer lied, and any fixed choice is as good.
        if current is not None and same and said <= canonical(key, current.generation, before):
            return self._same(current, update, now)
        growth = len(form.state) - (len(current.state) if current is not None else 0)
        if reason := self._not_allowed(certificate.identity, key, content, before, now, growth):
            return Outcome(Verdict.REJECTED, key, POLICY + reason)
        beat = self._kept_beat(current, before, content, update.beat)
        if current is None and (floor := self._memory.purged_up_to(key, content, now)):
            return Outcome(Verdict.PURGED, key, floor=floor)
        seq = self._shelf.next_seq()
        same_line = current is not None and current.generation == update.generation
        self._shelf.stage(
            Part(
                key=current.key if current is not None else key,
                generation=update.generation,
                version=update.version,
                count=form.count,
                state=form.state,
                signature=update.signature,
                beat=beat,
                seq=seq,
                content_seq=seq,
                accepted=int(now),
                peers=(self._meeting,),
                marks=current.older_marks() if current is not None and same_line else (),
            )
        )
        if key.collection.startswith(BEACONS):
            self._memory.saw_beacon(key, content, source, now)
        if key.origin == self._authority.node.endpoint_id:
            self.on_own(key)
        return Outcome(Verdict.APPLIED, key)

    def _certificate(self, update: CertificateUpdate) -> Outcome:
        key = update.key
        known = self._shelf.newest_certificate(key.origin)
        if known is not None and known.identity.certificate == update.certificate:
            return Outcome(Verdict.STALE, key)
        try:
            identity = self._authority.identify(update.certificate)
        except UntrustedError as error:
            return Outcome(Verdict.REJECTED, key, str(error))
        if identity.endpoint_id != key.origin or key != certificate_key(key.origin):
            return Outcome(Verdict.REJECTED, key, f"a certificate of {identity.node_id} came as another's")
        if known is not None and _age(known.identity) >= _age(identity):
            return Outcome(Verdict.STALE, key)
        self._shelf.stage_certificate(Certificate(identity, self._shelf.next_seq(), (self._meeting,)))
        return Outcome(Verdict.APPLIED, key)

    def _bad_form(self, update: PartUpdate) -> str:
        key = update.key
        if not _holds_documents(key.collection):
            return f"{key.collection[:140]!r} is not a collection of documents"
        if is_reserved(key.collection) and key.doc_id != key.origin:
            return f"{key.collection} of {key.origin[:12]} speaks for another"
        size = len(key.doc_id) if key.doc_id.isascii() else len(key.doc_id.encode(errors="replace"))
        if not 0 < size <= self._limits.doc_id_bytes:
            return "the document's id is empty or too long"
        if len(update.signature) != _SIGNATURE_BYTES:
            return "the signature has the wrong length"
        if len(update.payload) > 2 * self._limits.document_bytes + 4096:
            return f"an update of {len(update.payload)} bytes is too large"
        return ""

    def _check_content(self, content: Content, before: Content) -> None:
        if not content.version:
            raise BadContentError("the part says nothing")
        if len(content.fields) > self._limits.fields:
            raise BadContentError(f"{len(content.fields)} fields are too many")
        new = {name: content.fields[name].text for name in _changes(content, before)}
        if new and check_fields(new) != new:
            raise BadContentError("a value has blanks around it")

    def _not_allowed(
        self, identity: Identity, key: PartKey, content: Content, before: Content, now: float, size: int
    ) -> str:
        if now > identity.not_after and stamp_time(content.version) > identity.not_after:
            return f"the certificate of {identity.node_id} had expired"
        allowed = self._limits.of(identity)
        if self._shelf.bytes_of.get(key.origin, 0) + size > allowed:
            return f"the documents of {identity.node_id} would have more than {allowed} bytes"
        if is_reserved(key.collection):
            return ""
        names = _changes(content, before)
        live_field = self._shelf.rules.of(key.collection).live_field
        if content.anchor is not None and live_field:
            names.add(live_field)
        return self._authority.refusal(
            Claim(key.collection, key.doc_id, identity, frozenset(names), content.deleted > before.deleted)
        )

    def _kept_beat(self, current: Part | None, before: Content, content: Content, beat: Beat | None) -> Beat | None:
        """The furthest proof of life that is good for `content`."""
        anchor = content.anchor
        if anchor is None:
            return None
        kept = None
        if current is not None and before.anchor is not None and before.anchor.end == anchor.end:
            kept = current.beat
        if beat is not None and (kept is None or beat.position > kept.position) and _proves(anchor, beat):
            kept = beat
        return kept


@lru_cache(maxsize=256)
def _holds_documents(collection: str) -> bool:
    return collection != CERTIFICATES and (is_public_name(collection) or is_known_reserved(collection))


def _changes(content: Content, before: Content) -> set[str]:
    """The names of the fields that were written."""
    if not before.fields:
        return set(content.fields) - {EXISTS}
    return {name for name, value in content.fields.items() if before.fields.get(name) != value and name != EXISTS}


def _proves(anchor: Anchor, beat: Beat) -> bool:
    return 0 < beat.position <= anchor.length and proves(beat.preimage, beat.position, anchor.end, 0)


def _age(identity: Identity) -> tuple[float, float, bytes]:
    return identity.not_before, identity.not_after, identity.certificate
