"""Two successive releases of real package sets, for benches that measure updates.

Owns what the sets are and how they are got with the ordinary clients (pip, apt-get); downloads are kept in a cache
folder and used again. A set is a pair of trees, the older release first.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

WHEELS = {
    "numpy": ("2.1.2", "2.1.3"),
    "pandas": ("2.2.2", "2.2.3"),
    "django": ("5.1.3", "5.1.4"),
    "cryptography": ("43.0.1", "43.0.3"),
    "aiohttp": ("3.11.7", "3.11.8"),
}
DEBS = (
    "openssl",
    "libssl3",
    "curl",
    "libcurl4",
    "openssh-client",
    "perl-base",
    "python3.11-minimal",
    "libpython3.11-stdlib",
    "systemd",
    "libc6",
)


def default_cache() -> Path:
    """Where downloads are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "peat-bench"


def python_set(cache: Path) -> tuple[Path, Path]:
    """Wheels of well-known projects, unpacked as pip would install them."""
    trees = []
    for side in (0, 1):
        tree = cache / "python" / str(side)
        if not tree.exists():
            temporary = _fresh(tree)
            for name, versions in WHEELS.items():
                with zipfile.ZipFile(_wheel(cache, name, versions[side])) as wheel:
                    wheel.extractall(temporary)
            temporary.rename(tree)
        trees.append(tree)
    return trees[0], trees[1]


def _wheel(cache: Path, name: str, version: str) -> Path:
    folder = cache / "wheels" / f"{name}-{version}"
    found = sorted(folder.glob("*.whl"))
    if not found:
        temporary = _fresh(folder)
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*words, "--dest", str(temporary), f"{name}=={version}"], check=True)
        temporary.rename(folder)
        found = sorted(folder.glob("*.whl"))
    return found[0]


def debian_set(cache: Path) -> tuple[Path, Path]:
    """A root of Debian packages, each in the newest two versions on offer."""
    trees = (cache / "debian" / "0", cache / "debian" / "1")
    if all(tree.exists() for tree in trees):
        return trees
    pairs = [pair for name in DEBS if (pair := _debs(cache, name)) is not None]
    if not pairs:
        raise RuntimeError("apt offers no two versions of any of the packages")
    for side, tree in enumerate(trees):
        temporary = _fresh(tree)
        for pair in pairs:
            subprocess.run(["dpkg-deb", "--extract", str(pair[side]), str(temporary)], check=True)
        temporary.rename(tree)
    return trees


def _debs(cache: Path, name: str) -> tuple[Path, Path] | None:
    listed = subprocess.run(["apt-cache", "madison", name], capture_output=True, text=True, check=True).stdout
    versions = {line.split("|")[1].strip() for line in listed.splitlines() if line.count("|") >= 2}
    found: list[Path] = []
    for version in sorted(versions, key=functools.cmp_to_key(_compare), reverse=True):
        folder = cache / "debs" / f"{name}-{version.replace(':', '%3a')}"
        if not folder.exists():
            temporary = _fresh(folder)
            # Versions that are listed but gone from the archive are passed over.
            words = ["apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq", f"{name}={version}"]
            if subprocess.run(words, check=False, cwd=temporary).returncode != 0:
                continue
            temporary.rename(folder)
        found.append(next(folder.glob("*.deb")))
        if len(found) == 2:
            return found[1], found[0]
    return None


def _compare(one: str, other: str) -> int:
    for relation, value in (("lt", -1), ("gt", 1)):
        if subprocess.run(["dpkg", "--compare-versions", one, relation, other], check=False).returncode == 0:
            return value
    return 0


def image_set(cache: Path) -> tuple[Path, Path]:
    """An OCI layout whose two gzip layers hold the Debian root and the Python tree."""
    roots, libraries = debian_set(cache), python_set(cache)
    trees = (cache / "image" / "0", cache / "image" / "1")
    for side, tree in enumerate(trees):
        if tree.exists():
            continue
        temporary = _fresh(tree)
        (temporary / "blobs/sha256").mkdir(parents=True)
        layers = []
        for content in (roots[side], libraries[side]):
            packed = io.BytesIO()
            with (
                gzip.GzipFile("", "wb", 6, packed, mtime=0) as zipped,
                tarfile.open(fileobj=zipped, mode="w|") as archive,
            ):
                for path in sorted(content.rglob("*")):
                    archive.add(path, str(path.relative_to(content)), recursive=False, filter=_neutral)
            layers.append(_blob(temporary, packed.getvalue(), "application/vnd.oci.image.layer.v1.tar+gzip"))
        config = _blob(temporary, b'{"architecture":"amd64","os":"linux"}', "application/vnd.oci.image.config.v1+json")
        body = json.dumps({"schemaVersion": 2, "config": config, "layers": layers}, sort_keys=True).encode()
        manifest = _blob(temporary, body, "application/vnd.oci.image.manifest.v1+json")
        (temporary / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
        (temporary / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        temporary.rename(tree)
    return trees


def _neutral(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _blob(layout: Path, data: bytes, media_type: str) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _fresh(path: Path) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


SETS: dict[str, Callable[[Path], tuple[Path, Path]]] = {
    "python": python_set,
    "debian": debian_set,
    "image": image_set,
}
