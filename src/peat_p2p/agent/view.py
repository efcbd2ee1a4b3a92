"""What this agent knows of the fleet.

Owns a copy, in memory, of the documents an agent decides by: manifests, holdings, heartbeats and commands, kept by one
subscription. When the sidecar is away the copy stays as it was, so that transfers go on with the peers last known; when
it is back, what its snapshot no longer has goes away. Documents are data from others: a field of the wrong kind counts
as absent, and a manifest counts only after its signature was checked. Must not know who feeds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from peat_p2p.content.manifest import Manifest, open_manifest
from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import NotFoundError, PeatError, UntrustedError
from peat_p2p.fleet.heartbeat import Heartbeat, Liveness, LivenessRule, Pulse
from peat_p2p.fleet.holdings import Holding
from peat_p2p.fleet.ids import COMMANDS, DEPLOYMENTS, MANIFESTS, PACKAGES, PLATFORMS, RECEIPTS, REVOCATIONS
from peat_p2p.fleet.versions import VersionKey, version_key
from peat_p2p.trust.anchor import TrustAnchor
from peat_p2p.trust.errors import RevokedError
from peat_p2p.trust.revocation import RevocationSet

COLLECTIONS = (REVOCATIONS, COMMANDS, RECEIPTS, MANIFESTS, PACKAGES, PLATFORMS, DEPLOYMENTS)
ANY_ARCH = "any"
# Two vocabularies for the same processors: that of the kernel and that of container images.
SAME_ARCH = {"x86_64": "amd64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "aarch64"}

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class KnownManifest:
    """A manifest whose signature and role were checked here. `digest` is `blake3:HEX`."""

    manifest: Manifest
    digest: str
    publisher: str
    envelope: dict[str, Any]


class Changes:
    """Wakes whoever waits for anything to change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Something changed."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    def next(self) -> asyncio.Event:
        """An event that is set at the next change. Take it before looking, wait on it after."""
        return self._event


class FleetView:
    """Documents by collection and id, with what is looked up often beside them."""

    def __init__(self, agent_id: str, anchor: TrustAnchor, clock: Clock) -> None:
        self.agent_id = agent_id
        self.changes = Changes()
        self.synced = False
        self._anchor = anchor
        self._clock = clock
        self._documents: dict[str, dict[str, Fields]] = {name: {} for name in COLLECTIONS}
        self._fresh: dict[str, set[str]] | None = None
        self._holders: dict[str, set[str]] = {}  # manifest digest -> ids of the packages documents that name it
        self._held_as: dict[str, set[str]] = {}  # package name -> ids of the packages documents about it
        self._by_name: dict[str, set[str]] = {}  # package name -> ids of the manifests documents that claim it
        self._opened: dict[str, KnownManifest | PeatError] = {}
        self._revoked: RevocationSet | None = None
        self._pulses: dict[str, Pulse] = {}
        self._liveness = LivenessRule()

    def begin_snapshot(self) -> None:
        """A snapshot begins: what it does not show will be gone."""
        self._fresh = {name: set() for name in COLLECTIONS}
        self.synced = False

    def end_snapshot(self) -> list[tuple[str, str]]:
        """The snapshot has been read. Returns the (collection, id) of what was known and is gone."""
        fresh, self._fresh = self._fresh, None
        gone: list[tuple[str, str]] = []
        if fresh is not None:
            for name, documents in self._documents.items():
                gone += [(name, doc_id) for doc_id in documents if doc_id not in fresh[name]]
        for collection, doc_id in gone:
            self.apply(collection, doc_id, None)
        self.synced = True
        self.changes.notify()
        return gone

    def apply(self, collection: str, doc_id: str, fields: Fields | None) -> None:
        """A document is there (again), or, with None, is gone."""
        documents = self._documents.get(collection)
        if documents is None:
            return
        before = documents.get(doc_id)
        if fields is None:
            documents.pop(doc_id, None)
        else:
            documents[doc_id] = fields
            if self._fresh is not None:
                self._fresh[collection].add(doc_id)
        if collection == PACKAGES:
            _reindex(self._holders, doc_id, _text(before, "manifest"), _text(fields, "manifest"))
            _reindex(self._held_as, doc_id, _text(before, "package"), _text(fields, "package"))
        elif collection == MANIFESTS:
            _reindex(self._by_name, doc_id, _text(before, "name"), _text(fields, "name"))
            self._opened.pop(doc_id, None)
        elif collection == PLATFORMS:
            self._beat(doc_id, fields)
        elif collection == REVOCATIONS:
            self._revoked = None
            self._opened.clear()
        self.changes.notify()

    def get(self, collection: str, doc_id: str) -> Fields | None:
        """A document, if it is known."""
        return self._documents[collection].get(doc_id)

    def all(self, collection: str) -> Mapping[str, Fields]:
        """The documents of a collection by id."""
        return self._documents[collection]

    @property
    def revoked(self) -> RevocationSet:
        """Whom and what the formation no longer trusts."""
        if self._revoked is None:
            self._revoked = RevocationSet.read(self._documents[REVOCATIONS], self._anchor)
        return self._revoked

    def holders(self, manifest_digest: str) -> list[Holding]:
        """The holdings of one package version, this agent's own left out."""
        return self._holdings(self._holders.get(manifest_digest, ()))

    def holders_of_name(self, package: str) -> list[Holding]:
        """The holdings of any version of a package, this agent's own left out."""
        return self._holdings(self._held_as.get(package, ()))

    def copies(self, manifest_digest: str) -> list[str]:
        """The agents that hold the package whole and are not lost, this one left out."""
        return [
            holding.agent_id
            for holding in self.holders(manifest_digest)
            if holding.complete and self.liveness(holding.agent_id) is not Liveness.LOST
        ]

    def liveness(self, agent_id: str) -> Liveness:
        """Whether an agent is there; one that never sent a heartbeat counts as lost."""
        fields, pulse = self._documents[PLATFORMS].get(agent_id), self._pulses.get(agent_id)
        if fields is None or pulse is None:
            return Liveness.LOST
        interval = Heartbeat.from_document(agent_id, fields).heartbeat_interval_s
        return self._liveness.judge(pulse.age(self._clock.wall()), interval)

    def _beat(self, agent_id: str, fields: Fields | None) -> None:
        if fields is None:
            self._pulses.pop(agent_id, None)
            return
        beat, now = Heartbeat.from_document(agent_id, fields), self._clock.wall()
        if agent_id in self._pulses:
            self._pulses[agent_id].beat(beat.last_seen, now)
        else:
            self._pulses[agent_id] = Pulse(beat.last_seen, now)

    def _holdings(self, doc_ids: Iterable[str]) -> list[Holding]:
        documents = self._documents[PACKAGES]
        found = (Holding.from_document(doc_id, documents[doc_id]) for doc_id in sorted(doc_ids))
        return [holding for holding in found if holding.agent_id != self.agent_id]

    def manifest(self, digest: str) -> KnownManifest:
        """The manifest with this digest. Raises NotFoundError, or UntrustedError when it does not verify."""
        return self._open(digest.removeprefix("blake3:"))

    def manifests(self) -> list[KnownManifest]:
        """Every manifest that verifies, the newest first."""
        opened = (self._try(doc_id) for doc_id in self._documents[MANIFESTS])
        return _newest_first([known for known in opened if known is not None])

    def resolve(self, name: str, version: str, arch: str, own_arch: str) -> KnownManifest:
        """The package version that is meant: without version the newest, without arch this agent's own or "any".

        Raises NotFoundError; UntrustedError when all there is does not verify.
        """
        candidates: list[KnownManifest] = []
        refused: PeatError | None = None
        for doc_id in self._by_name.get(name, ()):
            if version and _text(self._documents[MANIFESTS][doc_id], "version") != version:
                continue
            try:
                candidates.append(self._open(doc_id))
            except PeatError as error:
                refused = error
        # What the document claims only led here; what is signed counts.
        candidates = [
            known
            for known in candidates
            if known.manifest.name == name and (not version or known.manifest.version == version)
        ]
        wanted = (arch,) if arch else (own_arch, SAME_ARCH.get(own_arch, own_arch), ANY_ARCH)
        for known in _newest_first(candidates):
            if known.manifest.arch in wanted:
                return known
        what = f"{name}:{version}" if version else name
        if candidates:
            archs = ", ".join(sorted({known.manifest.arch for known in candidates}))
            raise NotFoundError(f"{what} is published for {archs}, not for {arch or own_arch}")
        if isinstance(refused, RevokedError):
            raise refused
        if refused is not None:
            raise UntrustedError(f"{what}: its manifest is not to be trusted: {refused}") from refused
        raise NotFoundError(f"{what} is not known here: nobody in reach has published it")

    def _try(self, doc_id: str) -> KnownManifest | None:
        try:
            return self._open(doc_id)
        except PeatError:
            return None

    def _open(self, doc_id: str) -> KnownManifest:
        opened = self._opened.get(doc_id)
        if opened is None:
            opened = self._check(doc_id)
            if not isinstance(opened, NotFoundError):
                self._opened[doc_id] = opened
        if isinstance(opened, PeatError):
            raise opened
        return opened

    def _check(self, doc_id: str) -> KnownManifest | PeatError:
        fields = self._documents[MANIFESTS].get(doc_id)
        if fields is None:
            return NotFoundError(f"no manifest blake3:{doc_id} is known here")
        envelope = fields.get("envelope")
        try:
            if not isinstance(envelope, dict):
                raise UntrustedError(f"manifest document {doc_id} has no signed envelope")
            manifest, digest, publisher = open_manifest(envelope, self._anchor, self._clock.wall())
            if digest != f"blake3:{doc_id}":
                raise UntrustedError(f"manifest document {doc_id} holds another manifest ({digest})")
            self.revoked.check_package(digest)
            self.revoked.check_identity(publisher)
        except PeatError as error:
            return error
        return KnownManifest(manifest, digest, publisher.node_id, envelope)


def _text(fields: Fields | None, name: str) -> str:
    value = fields.get(name) if fields is not None else None
    return value if isinstance(value, str) else ""


def _reindex(index: dict[str, set[str]], doc_id: str, before: str, now: str) -> None:
    if before == now:
        return
    if before in index:
        index[before].discard(doc_id)
        if not index[before]:
            del index[before]
    if now:
        index.setdefault(now, set()).add(doc_id)


def _newest_first(manifests: list[KnownManifest]) -> list[KnownManifest]:
    """By version; of one version published twice, the later."""

    def key(known: KnownManifest) -> tuple[VersionKey, int, str]:
        return version_key(known.manifest.version), known.manifest.created, known.digest

    return sorted(manifests, key=key, reverse=True)
