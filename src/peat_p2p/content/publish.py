"""Publishing: a file or directory becomes chunks in the store and a signed manifest.

Owns the order of the work: scan, read and cut, hash and write in parallel, torrent, manifest, entry in the store. Rule:
what changes while it is read is never published. A second publish of nearly the same content writes only new chunks.
Must not know how torrents are made; it is given a function for that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from peat_p2p.content.chunking import average_like
from peat_p2p.content.containers import oci_manifests, open_container
from peat_p2p.content.index import Index
from peat_p2p.content.ingest import Progress, ingest
from peat_p2p.content.manifest import Manifest, check_name, seal_manifest
from peat_p2p.content.packing import level_for
from peat_p2p.content.scan import Source, read_error, scan
from peat_p2p.content.seen import Seen, recall, remember
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.core.clock import Clock
from peat_p2p.core.errors import DeniedError, InvalidInputError
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.identity import Role

_OCI_LISTED = 8
# Files whose archives are kept, named in the manifest so that everybody can see why an update of them costs its size.
_NAMED = 8
_NAMED_BYTES = 500


@dataclass(frozen=True, slots=True)
class TorrentMeta:
    """A torrent's info dict (bencoded) and its v2 infohash (64 hex digits)."""

    info: bytes
    infohash: str


TorrentBuilder = Callable[[Index, Path], TorrentMeta]
"""Makes the torrent of an index whose chunks lie in the store folder given."""


def publish(
    source: Path,
    name: str,
    version: str,
    arch: str,
    store: ChunkStore,
    credentials: NodeCredentials,
    build_torrent: TorrentBuilder,
    clock: Clock,
    progress: Progress | None = None,
    annotations: Mapping[str, str] | None = None,
    open_archives: bool = True,
    reuse: bool = True,
) -> StoredPackage:
    """Put `source` into the store as this version of a package and sign its manifest. Blocks; call it from a thread.

    Compressed archives are stored as their content where they can be made again bit for bit from it, unless
    `open_archives` is false. The manifest's annotations say how many were, and the digest of a single file. Files
    in the state in which an earlier publish of `source` found them are not read again, unless `reuse` is false.

    Raises NotFoundError, DeniedError, InvalidInputError for a bad source or name, ConflictError if it changed
    meanwhile, ExhaustedError if the disk is full.
    """
    check_name(name, version, arch)
    if not credentials.identity.has(Role.PUBLISHER):
        raise DeniedError(
            f"{credentials.identity.node_id} has no publisher role, so agents would refuse what it signs; "
            "`peat formation issue ... --role publisher` gives it one"
        )
    report: Progress = progress or (lambda phase, done, total: None)
    if store.root.resolve().is_relative_to(source.resolve()):
        raise InvalidInputError(f"{source} contains the store {store.root}; publish a folder beside it")
    looked_at = clock.wall()
    seen = recall(store, source) if reuse and open_archives else None
    found = scan(source, seen.files if seen else None)
    found, notes = _opened(found, report) if open_archives else (found, {})
    files = sum(item.state is not None for item in found.entries)
    average = average_like(found.content_bytes, files, _earlier_average(store, name, arch, seen))
    with store.batch(level_for(found.content_bytes)) as batch:
        with ThreadPoolExecutor(1, thread_name_prefix="sha256") as beside:
            # A file that changes meanwhile fails in `ingest`, so both have seen the same content.
            digest = beside.submit(_sha256, found, seen)
            chunks = ingest(found, average, batch, report, seen.index if seen else None)
            batch.flush()
            notes |= digest.result() | _oci_notes(source)
        index = Index(tuple(item.entry for item in found.entries), chunks, average, found.root_mode)
        report("torrent", 0, index.unique_bytes)
        torrent = build_torrent(index, store.root)
        report("torrent", index.unique_bytes, index.unique_bytes)
        manifest = Manifest(
            name=name,
            version=version,
            arch=arch,
            digest=index.digest,
            total_bytes=index.total_bytes,
            files=len(index.files),
            chunks=len(index.unique_chunks),
            infohash=torrent.infohash,
            created=int(clock.wall()),
            annotations=notes | dict(annotations or {}),
        )
        envelope, _ = seal_manifest(manifest, credentials)
        package = store.put_package(envelope, torrent.info, index)
        if open_archives:
            remember(store, source, found, package.manifest_digest, looked_at)
        return package


def _earlier_average(store: ChunkStore, name: str, arch: str, seen: Seen | None) -> int | None:
    earlier = store.find(name, arch=arch)
    if seen is not None and earlier and earlier[0].manifest_digest == seen.manifest_digest:
        return seen.index.average
    package = store.package(earlier[0].manifest_digest) if earlier else None
    return package.index.average if package else None


def _opened(source: Source, report: Progress) -> tuple[Source, dict[str, str]]:
    """The source with recipes for what can be made again from its content, and what to note about it."""
    entries = []
    opened = kept = done = 0
    whole: list[str] = []
    for item in source.entries:
        if item.known is None and item.entry.is_plain:
            try:
                found = open_container(item.path, item.entry.size)
            except OSError as error:
                raise read_error(item.path, error) from error
            if found.opened or found.kept:
                report("open", done, source.total_bytes)
                entry = replace(item.entry, recipe=found.recipe) if found.recipe else item.entry
                item = replace(item, entry=entry, opened=found.opened, kept=found.kept)
        done += item.entry.size
        opened += item.opened
        kept += item.kept
        if item.kept and len(whole) < _NAMED and sum(map(len, whole)) + len(item.entry.path) < _NAMED_BYTES:
            whole.append(item.entry.path)
        entries.append(item)
    notes = {"archives.opened": str(opened), "archives.kept": str(kept)} if opened or kept else {}
    if whole:
        notes["archives.kept.in"] = json.dumps(whole, ensure_ascii=False)
    return replace(source, entries=tuple(entries)), notes


def _sha256(source: Source, seen: Seen | None) -> dict[str, str]:
    if source.root_mode:
        return {}
    item = source.entries[0]
    if seen is not None and item.known is not None and "sha256" in seen.annotations:
        return {"sha256": seen.annotations["sha256"]}
    if item.entry.recipe:
        return {"sha256": item.entry.recipe.sha256.hex()}
    try:
        with item.path.open("rb") as file:
            return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        raise read_error(item.path, error) from error


def _oci_notes(source: Path) -> dict[str, str]:
    digests = oci_manifests(source)
    return {"oci.manifests": " ".join(digests[:_OCI_LISTED])} if digests else {}
