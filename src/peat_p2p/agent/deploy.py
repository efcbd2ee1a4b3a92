"""Deployed packages on disk.

Owns the folder of deployments: `NAME/VERSION-DIGEST8` is one unpacked version, `NAME/VERSION-DIGEST8.json` says what it
is, and the symbolic link `NAME/current` is the one that counts. The disk is the only record: a version is in force when
the link points to it, and the link moves by one rename, so whatever the moment of a crash `current` is the old version
whole or the new one whole. Blocking; callers run it in a thread. Must not know commands or documents.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from peat_p2p.content.materialize import is_unfinished
from peat_p2p.core.atomic import sync_dir, write_atomic
from peat_p2p.core.errors import ConflictError, InvalidInputError

log = logging.getLogger(__name__)

CURRENT = "current"
_TRASH = ".removed-"
_LINK = ".link-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One unpacked version of a package. `path` is its folder; `deployed_at` is unix seconds."""

    package: str
    version: str
    arch: str
    digest: str
    manifest: str
    deployed_at: int
    path: str


class Deployments:
    """The deployments under one root folder."""

    def __init__(self, root: Path, *, keep: int) -> None:
        self.root = root
        self._keep = keep

    def clean(self) -> None:
        """Remove what an interrupted deploy or removal left behind. Only before the first deploy of this life."""
        if not self.root.is_dir():
            return
        for folder in self.root.iterdir():
            if not folder.is_dir():
                continue
            for entry in folder.iterdir():
                if entry.name.startswith(_LINK):
                    entry.unlink(missing_ok=True)
                elif entry.name.startswith(_TRASH) or is_unfinished(entry):
                    _empty(entry)
                elif entry.suffix == ".json" and not _is_whole(entry):
                    entry.unlink(missing_ok=True)

    def current(self) -> list[Deployment]:
        """The versions in force, by package name."""
        if not self.root.is_dir():
            return []
        found = (self._read_current(folder) for folder in sorted(self.root.iterdir()) if folder.is_dir())
        return [deployment for deployment in found if deployment is not None]

    def get(self, package: str) -> Deployment | None:
        """The version of `package` in force."""
        return self._read_current(self.root / _safe(package))

    def folder_for(self, package: str, version: str, digest: str) -> Path:
        """Where a version is unpacked. `digest` is `blake3:HEX`."""
        return self.root / _safe(package) / f"{_safe(version)}-{digest.removeprefix('blake3:')[:8]}"

    def deploy(
        self,
        *,
        package: str,
        version: str,
        arch: str,
        digest: str,
        manifest: str,
        now: int,
        unpack: Callable[[Path], None],
        link: str = "",
    ) -> Deployment:
        """Put a version in force: unpack it if it is not there yet, then move the link.

        `unpack(folder)` must make the whole folder appear at once. `link` is a further absolute path of a symbolic link
        to move. Deploying what is in force already changes nothing. Raises InvalidInputError, ConflictError, OSError.
        """
        further = _check_link(link) if link else None
        folder = self.folder_for(package, version, digest)
        folder.parent.mkdir(parents=True, exist_ok=True)
        deployment = Deployment(
            package=package,
            version=version,
            arch=arch,
            digest=digest,
            manifest=manifest,
            deployed_at=now,
            path=str(folder),
        )
        facts = _facts(folder)
        before = self._read_current(folder.parent)
        if before is not None and before.digest == digest and before.version == version and folder.is_dir():
            deployment = before
        else:
            if not folder.is_dir():
                unpack(folder)
            write_atomic(facts, json.dumps(asdict(deployment), indent=2).encode() + b"\n")
            _point(folder.parent / CURRENT, folder.name)
        if further is not None and (not further.is_symlink() or further.readlink() != folder):
            _point(further, str(folder))
        self._prune(folder.parent)
        return deployment

    def remove(self, package: str) -> bool:
        """Take a package out of force and remove every unpacked version. False: it was not deployed."""
        folder = self.root / _safe(package)
        if not folder.is_dir():
            return False
        (folder / CURRENT).unlink(missing_ok=True)
        sync_dir(folder)
        for version in _versions(folder):
            _remove_version(version)
        with contextlib.suppress(OSError):
            folder.rmdir()
        return True

    def _read_current(self, folder: Path) -> Deployment | None:
        try:
            target = folder / (folder / CURRENT).readlink()
        except OSError:
            return None
        if not target.is_dir():
            return None
        found = _read(_facts(target))
        if found is None:
            log.warning("%s is in force but %s cannot be read", target, _facts(target).name)
        return found

    def _prune(self, folder: Path) -> None:
        in_force = (folder / CURRENT).readlink().name
        old = [version for version in _versions(folder) if version.name != in_force]
        old.sort(key=_deployed_at, reverse=True)
        for version in old[self._keep :]:
            _remove_version(version)


def _versions(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith(".")]


def _facts(folder: Path) -> Path:
    return folder.with_name(folder.name + ".json")


def _read(facts: Path) -> Deployment | None:
    try:
        return Deployment(**json.loads(facts.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _is_whole(facts: Path) -> bool:
    return facts.with_name(facts.name.removesuffix(".json")).is_dir()


def _deployed_at(version: Path) -> int:
    found = _read(_facts(version))
    return found.deployed_at if found is not None else 0


def _remove_version(version: Path) -> None:
    """Remove an unpacked version; a crash in between leaves a folder that `clean` removes."""
    trash = version.with_name(f"{_TRASH}{secrets.token_hex(4)}")
    version.rename(trash)
    _facts(version).unlink(missing_ok=True)
    _empty(trash)


def _empty(folder: Path) -> None:
    for path, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            Path(path).chmod(0o700)  # a package may hold read-only folders, which even their owner cannot empty
    shutil.rmtree(folder, ignore_errors=True)


def _point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target` by one rename."""
    temporary = link.with_name(f"{_LINK}{secrets.token_hex(4)}")
    temporary.symlink_to(target)
    try:
        temporary.replace(link)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_dir(link.parent)


def _check_link(text: str) -> Path:
    link = Path(text)
    if not link.is_absolute() or ".." in link.parts:
        raise InvalidInputError(f"deploy path {text!r} must be absolute and without '..'")
    if os.path.lexists(link) and not link.is_symlink():
        raise ConflictError(f"{link} is there and is not a symbolic link; move it away, then order the deploy again")
    if not link.parent.is_dir():
        raise InvalidInputError(f"the folder of deploy path {text!r} does not exist")
    return link


def _safe(name: str) -> str:
    """`name` as one file name: nothing that leaves the folder, hides, or takes a name of ours."""
    text = quote(name, safe="+@=,~")
    if not text:
        raise InvalidInputError("a package without name or version cannot be deployed")
    if text.startswith("."):
        text = "%2E" + text[1:]
    return text
