"""What a replica holds: parts, certificates, cursors; committed, and staged on top.

Owns the tables in memory. Keeps the rule that readers, feeds and links see only what is committed, while writes build
on what is staged before them: changes are staged in order, committed in groups, then published. Must not know how
changes come about, nor do I/O itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from peat_p2p.documents import keys
from peat_p2p.documents.chain import Chain
from peat_p2p.documents.parts import Part
from peat_p2p.documents.rules import CERTIFICATES, CLASSES, REVOCATIONS, Rules
from peat_p2p.documents.types import Document, PartKey
from peat_p2p.documents.view import DocKey, Judge, View, Writer, document_of, merge
from peat_p2p.trust.identity import Identity


@dataclass(frozen=True, slots=True)
class Certificate:
    """The proof of an origin, and the local change that brought it."""

    identity: Identity
    seq: int
    peers: tuple[str, ...] = ()


@dataclass(slots=True)
class Staged:
    """Changes that are committed together."""

    parts: dict[PartKey, Part | None] = field(default_factory=dict)
    certificates: dict[str, Certificate | None] = field(default_factory=dict)
    cursors: dict[tuple[str, bytes, int], int | None] = field(default_factory=dict)
    chains: dict[PartKey, Chain | None] = field(default_factory=dict)
    covers: dict[tuple[Writer, int], int | None] = field(default_factory=dict)
    meta: dict[str, bytes] = field(default_factory=dict)
    documents: set[DocKey] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.parts or self.certificates or self.cursors or self.chains or self.covers or self.meta)

    def rows(self) -> dict[bytes, bytes | None]:
        """The changes as rows."""
        rows: dict[bytes, bytes | None] = {}
        for key, part in self.parts.items():
            rows[keys.part_row(key)] = None if part is None else part.to_row()
        for origin, certificate in self.certificates.items():
            rows[keys.certificate_row(origin)] = (
                None if certificate is None else certificate.seq.to_bytes(8, "big") + certificate.identity.certificate
            )
        for (peer, epoch, klass), seq in self.cursors.items():
            rows[keys.cursor_row(peer, epoch, klass)] = None if seq is None else seq.to_bytes(8, "big")
        for key, chain in self.chains.items():
            rows[keys.chain_row(key)] = None if chain is None else chain.length.to_bytes(4, "big") + chain.seed
        for ((origin, incarnation), klass), stamp in self.covers.items():
            rows[keys.cover_row(origin, incarnation, klass)] = None if stamp is None else stamp.to_bytes(8, "big")
        for name, value in self.meta.items():
            rows[keys.meta_row(name)] = value
        return rows


class _Entry:
    """A document: its parts and, once asked for, what readers see of it."""

    __slots__ = ("document", "known", "parts")

    def __init__(self) -> None:
        self.parts: dict[Writer, Part] = {}
        self.document: Document | None = None
        self.known = False


class _Log:
    """The keys of one class by the number of the change that brought their present state."""

    def __init__(self) -> None:
        self._seqs: list[int] = []
        self._keys: list[PartKey] = []
        self.live = 0

    def add(self, seq: int, key: PartKey) -> None:
        self._seqs.append(seq)
        self._keys.append(key)

    def since(self, seq: int) -> Iterator[tuple[int, PartKey]]:
        for index in range(bisect_right(self._seqs, seq), len(self._seqs)):
            yield self._seqs[index], self._keys[index]

    @property
    def head(self) -> int:
        return self._seqs[-1] if self._seqs else 0

    def tidy(self, is_current: Mapping[PartKey, int]) -> None:
        kept = [(s, k) for s, k in zip(self._seqs, self._keys, strict=True) if is_current.get(k) == s]
        # The head stays, though its key may have moved on, so that it never goes back.
        if self._seqs and (not kept or kept[-1][0] != self._seqs[-1]):
            kept.append((self._seqs[-1], self._keys[-1]))
        self._seqs = [s for s, _ in kept]
        self._keys = [k for _, k in kept]

    def __len__(self) -> int:
        return len(self._seqs)


class Shelf:
    """The tables of one replica."""

    def __init__(self, rules: Rules, judge: Judge) -> None:
        self.rules = rules
        self._judge = judge
        self.seq = 0
        self.staged = Staged()
        self.meta: dict[str, bytes] = {}
        self.chains: dict[PartKey, Chain] = {}
        self.covers: dict[tuple[Writer, int], int] = {}
        self._cursors: dict[str, dict[tuple[bytes, int], int]] = {}
        self._certificates: dict[str, Certificate] = {}
        self._certificates_ahead: dict[str, Certificate] = {}
        self._docs: dict[str, dict[str, _Entry]] = {}
        self._ahead: dict[DocKey, dict[Writer, Part]] = {}
        self._logs = [_Log() for _ in range(CLASSES)]
        self._owned: dict[str, set[DocKey]] = {}
        self.part_count = 0
        # How many bytes of parts each origin has here.
        self.bytes_of: dict[str, int] = {}
        # The lowest version of any part of a writer that was here while this process runs.
        self.oldest: dict[Writer, int] = {}

    # What is committed -----------------------------------------------------------------------------------------------

    def collections(self) -> list[str]:
        """Names of the collections that hold anything."""
        return sorted(self._docs)

    def doc_ids(self, collection: str) -> list[str]:
        """Ids of documents of a collection that have parts, deleted ones included."""
        return sorted(self._docs.get(collection, ()))

    def doc_count(self, collection: str) -> int:
        """How many documents of a collection have parts, deleted ones included."""
        return len(self._docs.get(collection, ()))

    def document(self, collection: str, doc_id: str) -> Document | None:
        """What readers see."""
        entry = self._docs.get(collection, {}).get(doc_id)
        if entry is None:
            return None
        if not entry.known:
            doc = (collection, doc_id)
            entry.document = document_of(doc, self.view(doc, entry.parts.values()))
            entry.known = True
        return entry.document

    def view(self, doc: DocKey, parts: Iterable[Part]) -> View:
        """Parts of a document merged."""
        return merge(doc, parts, self.rules.of(doc[0]).live_field, self._judge)

    def newest_view(self, doc: DocKey) -> View:
        """A document merged, staged changes included."""
        return self.view(doc, self.writers(*doc).values())

    def parts_of(self, collection: str, doc_id: str) -> Mapping[Writer, Part]:
        """The committed parts of a document."""
        entry = self._docs.get(collection, {}).get(doc_id)
        return entry.parts if entry is not None else {}

    def part(self, key: PartKey) -> Part | None:
        """The committed part."""
        return self.parts_of(key.collection, key.doc_id).get((key.origin, key.incarnation))

    def parts(self) -> Iterator[Part]:
        """All committed parts."""
        for documents in self._docs.values():
            for entry in documents.values():
                yield from entry.parts.values()

    def certificate(self, origin: str) -> Certificate | None:
        """The committed certificate of an origin."""
        return self._certificates.get(origin)

    def certificates(self) -> Mapping[str, Certificate]:
        """All committed certificates."""
        return self._certificates

    def cursors(self, peer: str, epoch: bytes) -> dict[int, int]:
        """How far we have the classes of a peer's database."""
        return {klass: seq for (e, klass), seq in self._cursors.get(peer, {}).items() if e == epoch}

    def other_cursors(self, peer: str, epoch: bytes) -> list[tuple[bytes, int]]:
        """Epochs and classes of cursors into a peer's databases other than `epoch`."""
        return [(e, klass) for e, klass in self._cursors.get(peer, {}) if e != epoch]

    def cursor_peers(self) -> dict[str, dict[tuple[bytes, int], int]]:
        """All cursors, by peer."""
        return self._cursors

    def head(self, klass: int) -> int:
        """The number of the newest change of a class."""
        return self._logs[klass].head

    def changed_since(self, klass: int, seq: int) -> Iterator[tuple[int, PartKey, tuple[str, ...]]]:
        """Change number, key and the peers that have it, of what changed after `seq`; each key once, oldest first."""
        for number, key in self._logs[klass].since(seq):
            record = self._record(key)
            if record is not None and record.seq == number:
                yield number, key, record.peers

    def parts_in_class(self, klass: int) -> int:
        """How many parts a class has."""
        return self._logs[klass].live

    def seq_of(self, key: PartKey) -> int:
        """The number of the change that brought the present state of a part or certificate; 0 if there is none."""
        record = self._record(key)
        return record.seq if record is not None else 0

    def _record(self, key: PartKey) -> Part | Certificate | None:
        if key.collection == CERTIFICATES:
            return self._certificates.get(key.origin)
        return self.part(key)

    # What is staged on top -------------------------------------------------------------------------------------------

    def writers(self, collection: str, doc_id: str) -> Mapping[Writer, Part]:
        """The parts of a document, staged changes included."""
        ahead = self._ahead.get((collection, doc_id))
        return self.parts_of(collection, doc_id) if ahead is None else ahead

    def newest(self, key: PartKey) -> Part | None:
        """The part, staged changes included."""
        return self.writers(key.collection, key.doc_id).get((key.origin, key.incarnation))

    def is_ahead(self, collection: str, doc_id: str) -> bool:
        """Whether the document has changes that are not committed."""
        return (collection, doc_id) in self._ahead

    def newest_certificate(self, origin: str) -> Certificate | None:
        """The certificate, staged changes included."""
        return self._certificates_ahead.get(origin) or self._certificates.get(origin)

    def identity_of(self, origin: str) -> Identity | None:
        """Who an origin is, as far as certificates have come."""
        certificate = self.newest_certificate(origin)
        return certificate.identity if certificate is not None else None

    def next_seq(self) -> int:
        """A number for a new change."""
        self.seq += 1
        return self.seq

    def stage(self, part: Part) -> None:
        """Put a part in the place of the one with the same key."""
        self.staged.parts[part.key] = part
        self.staged.documents.add((part.key.collection, part.key.doc_id))
        self._writable(part.key)[part.key.origin, part.key.incarnation] = part

    def stage_removal(self, key: PartKey) -> None:
        """Forget a part without trace."""
        self.staged.parts[key] = None
        self.staged.documents.add((key.collection, key.doc_id))
        # The highest number may vanish with the part; peers remember how far they are, so it must never be issued
        # again.
        self.staged.meta["seq"] = self.seq.to_bytes(8, "big")
        self._writable(key).pop((key.origin, key.incarnation), None)
        if key in self.chains:
            self.staged.chains[key] = None

    def stage_certificate(self, certificate: Certificate) -> None:
        """Put an origin's certificate."""
        origin = certificate.identity.endpoint_id
        self.staged.certificates[origin] = certificate
        self._certificates_ahead[origin] = certificate

    def _writable(self, key: PartKey) -> dict[Writer, Part]:
        doc = (key.collection, key.doc_id)
        ahead = self._ahead.get(doc)
        if ahead is None:
            ahead = self._ahead[doc] = dict(self.parts_of(*doc))
        return ahead

    def chain(self, key: PartKey) -> Chain | None:
        """The secret chain of an own part, staged changes included."""
        if key in self.staged.chains:
            return self.staged.chains[key]
        return self.chains.get(key)

    def note_peer(self, key: PartKey, peer: str) -> None:
        """Remember that a peer has the present committed state of a part, so that it is not sent back."""
        entry = self._docs.get(key.collection, {}).get(key.doc_id)
        writer = (key.origin, key.incarnation)
        if entry is not None and (part := entry.parts.get(writer)) is not None and peer not in part.peers:
            entry.parts[writer] = replace(part, peers=(*part.peers[-7:], peer))

    # Committing ------------------------------------------------------------------------------------------------------

    def take_staged(self) -> Staged:
        """What is staged so far, to be committed; later changes go to the next group."""
        staged, self.staged = self.staged, Staged()
        # A chain is needed by the next heartbeat, which may be staged while this group is being written.
        for key, chain in staged.chains.items():
            if chain is None:
                self.chains.pop(key, None)
            else:
                self.chains[key] = chain
        return staged

    def publish(self, staged: Staged) -> tuple[frozenset[int], list[DocKey]]:
        """Show a committed group. Returns the classes that got something new and the documents that changed."""
        classes: set[int] = set()
        changes: list[tuple[int, int, PartKey]] = []
        changed = dict.fromkeys((key.collection, key.doc_id) for key in staged.parts)
        for key, part in staged.parts.items():
            klass = self.rules.of(key.collection).klass
            self._place(key, part)
            if part is not None:
                changes.append((part.seq, klass, key))
        for origin, certificate in staged.certificates.items():
            if certificate is None:
                self._certificates.pop(origin, None)
            else:
                self._certificates[origin] = certificate
                changes.append((certificate.seq, 0, keys.certificate_key(origin)))
                changed |= self._learn(certificate.identity)
            if self._certificates_ahead.get(origin) is certificate:
                self._certificates_ahead.pop(origin, None)
        for seq, klass, key in sorted(changes):
            self._logs[klass].add(seq, key)
            classes.add(klass)
        if any(collection == REVOCATIONS for collection, _ in changed):
            changed |= self._revise()
        for doc in staged.documents - self.staged.documents:
            self._ahead.pop(doc, None)
        self._set_cursors(staged)
        for cover, stamp in staged.covers.items():
            if stamp is None:
                self.covers.pop(cover, None)
            else:
                self.covers[cover] = stamp
        self.meta.update(staged.meta)
        self._tidy_logs()
        return frozenset(classes), list(changed)

    def abandon(self, flying: Iterable[Staged]) -> None:
        """Forget everything staged: a group could not be committed, and what follows builds on it."""
        for staged in (*flying, self.staged):
            for key in staged.chains:
                self.chains.pop(key, None)
        self.staged = Staged()
        self._ahead.clear()
        self._certificates_ahead.clear()

    def restore(self, staged: Staged) -> None:
        """Take in what the disk holds."""
        for key, part in staged.parts.items():
            self._place(key, part)
        self._certificates.update({o: c for o, c in staged.certificates.items() if c is not None})
        for certificate in self._certificates.values():
            self._judge.learn(certificate.identity)
        self._set_cursors(staged)
        self.chains.update({k: c for k, c in staged.chains.items() if c is not None})
        self.covers.update({k: c for k, c in staged.covers.items() if c is not None})
        self.meta.update(staged.meta)
        self._revise()
        changes = [(part.seq, self.rules.of(key.collection).klass, key) for key, part in staged.parts.items() if part]
        changes += [(c.seq, 0, keys.certificate_key(origin)) for origin, c in self._certificates.items()]
        for seq, klass, key in sorted(changes):
            self._logs[klass].add(seq, key)
        issued = int.from_bytes(self.meta.get("seq", b""), "big")
        self.seq = max(self.seq, issued, max((seq for seq, _, _ in changes), default=0))

    def _place(self, key: PartKey, part: Part | None) -> None:
        documents = self._docs.setdefault(key.collection, {})
        entry = documents.get(key.doc_id)
        if entry is None:
            entry = documents[key.doc_id] = _Entry()
            if owner := self._judge.owner(key.collection, key.doc_id):
                self._owned.setdefault(owner, set()).add((key.collection, key.doc_id))
        entry.known = False
        entry.document = None
        writer = (key.origin, key.incarnation)
        before = len(entry.parts)
        old = entry.parts.get(writer)
        growth = (len(part.state) if part else 0) - (len(old.state) if old else 0)
        self.bytes_of[key.origin] = self.bytes_of.get(key.origin, 0) + growth
        if part is None:
            entry.parts.pop(writer, None)
        else:
            entry.parts[writer] = part
            self.oldest[writer] = min(part.version, self.oldest.get(writer, part.version))
        change = len(entry.parts) - before
        self.part_count += change
        self._logs[self.rules.of(key.collection).klass].live += change
        if not entry.parts:
            del documents[key.doc_id]
            if owned := self._owned.get(self._judge.owner(key.collection, key.doc_id)):
                owned.discard((key.collection, key.doc_id))
            if not documents:
                del self._docs[key.collection]

    def _set_cursors(self, staged: Staged) -> None:
        for (peer, epoch, klass), seq in staged.cursors.items():
            of_peer = self._cursors.setdefault(peer, {})
            if seq is None:
                of_peer.pop((epoch, klass), None)
            else:
                of_peer[epoch, klass] = seq
            if not of_peer:
                del self._cursors[peer]

    def _learn(self, identity: Identity) -> dict[DocKey, None]:
        """Take note of a certificate; the documents that may look different now."""
        changed = {doc: None for owner in self._judge.learn(identity) for doc in sorted(self._owned.get(owner, ()))}
        for collection, doc_id in changed:
            self._docs[collection][doc_id].known = False
        return changed

    def _revise(self) -> dict[DocKey, None]:
        """Take note of the present revocations; the documents that look different for it."""
        documents = {doc_id: self.document(REVOCATIONS, doc_id) for doc_id in self.doc_ids(REVOCATIONS)}
        origins = self._judge.revise({doc_id: found.json for doc_id, found in documents.items() if found is not None})
        changed: dict[DocKey, None] = {}
        if origins:
            for part in self.parts():
                if part.key.origin in origins:
                    changed[part.key.collection, part.key.doc_id] = None
            for collection, doc_id in changed:
                self._docs[collection][doc_id].known = False
        return changed

    def _tidy_logs(self) -> None:
        for klass, log in enumerate(self._logs):
            if len(log) > 2 * (log.live + len(self._certificates)) + 1024:
                current = {key: seq for seq, key, _ in self.changed_since(klass, 0)}
                log.tidy(current)
