"""What an update costs: bytes to fetch for a new release when the one before is here.

Owns the comparison at the level of chunks: what an agent that holds the older release must fetch of the newer one
(chunks it lacks, the index as it is sent, the manifest), beside what others would send for the same two trees. Real
releases of real packages (bench/releases.py). What a link adds on top is measured by the swarm benches.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import zstandard

from bench.releases import SETS, default_cache
from bench.result import Bench, Run, Scenario
from peat_p2p.content.publish import publish
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.core.clock import SystemClock
from peat_p2p.swarm.torrent import torrent_builder
from peat_p2p.trust.formation import dev_credentials
from peat_p2p.trust.identity import Role

WORST = 1.02  # times the whole, compressed


def _update(run: Run, name: str) -> None:
    cache = run.options.cache or default_cache()
    older, newer = SETS[name](cache)
    run.parameter(set=name, older_bytes=_size(older), newer_bytes=_size(newer))
    with tempfile.TemporaryDirectory(prefix="peat-bench-update-") as folder:
        work = Path(folder)
        ours = _ours(work, older, newer)
        for key, value in ours.items():
            run.record(key, value, "bytes" if key.endswith("bytes") else "")
        run.record("fetched / bytes of the new release", ours["fetched_bytes"] / _size(newer))
        tars = [_tar(tree, work / f"{side}.tar") for side, tree in enumerate((older, newer))]
        whole = _zstd(tars[1], "-3")
        run.baseline("whole, zstd -3", {"bytes": whole})
        run.baseline("rsync -z, old tree there", _rsync(work, older, newer))
        run.baseline("casync, like chunk size", _casync(work, older, newer, int(ours["average_chunk"])))
        if not run.quick:
            run.baseline("whole, zstd -19", {"bytes": _zstd(tars[1], "-19")})
            delta = _zstd(tars[1], "-19", "--long=28", f"--patch-from={tars[0]}")
            run.baseline("zstd --patch-from (made for this one pair)", {"bytes": delta})
        for key, figures in run.baselines.items():
            run.say(f"{key}: {figures}")
        run.at_most("fetched / whole as zstd -3", ours["fetched_bytes"] / whole, WORST)
        run.at_most("cold fetch / whole as zstd -3", ours["cold_bytes"] / whole, 1.25)


def _ours(work: Path, older: Path, newer: Path) -> dict[str, Any]:
    credentials = dev_credentials(work / "formation", "publisher", [Role.PUBLISHER])
    with ChunkStore.open(work / "store") as store:
        builder = torrent_builder(store, credentials.ca_pem)
        packages: list[StoredPackage] = []
        seconds = []
        for version, tree in enumerate((older, newer)):
            started = time.monotonic()
            packages.append(publish(tree, "set", str(version), "any", store, credentials, builder, SystemClock()))
            seconds.append(time.monotonic() - started)
    first, second = packages
    here = {chunk.digest for chunk in first.index.chunks}
    new = [chunk for chunk in second.index.unique_chunks if chunk.digest not in here]
    # As the metadata face of an agent sends it.
    metadata = len(zstandard.ZstdCompressor(level=3).compress(second.info))
    manifest = len(json.dumps(second.envelope))
    chunk_bytes = sum(chunk.size for chunk in new)
    return {
        "fetched_bytes": chunk_bytes + metadata + manifest,
        "chunk_bytes": chunk_bytes,
        "metadata_bytes": metadata,
        "manifest_bytes": manifest,
        "cold_bytes": second.index.unique_bytes + metadata + manifest,
        "chunks": len(second.index.unique_chunks),
        "new_chunks": len(new),
        "average_chunk": second.index.average,
        "annotations": dict(second.manifest.annotations),
        "publish_seconds": [round(value, 3) for value in seconds],
    }


def _size(tree: Path) -> int:
    return sum(path.stat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink())


def _tar(tree: Path, target: Path) -> Path:
    words = ["tar", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf", str(target)]
    subprocess.run([*words, "-C", str(tree), "."], check=True)
    return target


def _zstd(path: Path, *options: str) -> int:
    packed = subprocess.run(["zstd", "-q", "-T0", "-c", *options, str(path)], capture_output=True, check=True)
    return len(packed.stdout)


def _rsync(work: Path, older: Path, newer: Path) -> dict[str, Any]:
    copy = work / "copy"
    shutil.copytree(older, copy, symlinks=True)
    words = ["rsync", "-a", "--checksum", "--delete", "--no-whole-file", "-z", "--stats"]
    told = subprocess.run([*words, f"{newer}/", f"{copy}/"], capture_output=True, text=True, check=True).stdout
    found = {
        key: int(value.replace(",", "")) for key, value in re.findall(r"Total bytes (sent|received): ([\d,]+)", told)
    }
    shutil.rmtree(copy)
    return {"bytes": found["sent"] + found["received"], **found}


def _casync(work: Path, older: Path, newer: Path, average: int) -> dict[str, Any]:
    if shutil.which("casync") is None:
        return {"bytes": None, "reason": "casync is not installed"}
    store = work / "casync.castr"
    sizes = []
    for side, tree in enumerate((older, newer)):
        index = work / f"{side}.caidx"
        words = ["casync", "make", f"--store={store}", f"--chunk-size={average}", "--without=privileged"]
        subprocess.run([*words, str(index), str(tree)], check=True, capture_output=True)
        sizes.append((_size(store), index.stat().st_size))
    return {"bytes": sizes[1][0] - sizes[0][0] + sizes[1][1], "index_bytes": sizes[1][1], "cold_store": sizes[0][0]}


def _scenario(name: str, summary: str) -> Scenario:
    return Scenario(name, summary, lambda run: _update(run, name))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", type=Path, metavar="DIR", help=f"where downloads are kept ({default_cache()})")


BENCH = Bench(
    "update",
    "bytes to fetch for a new release beside what others send",
    (
        _scenario("python", "five Python projects, wheels unpacked"),
        _scenario("debian", "a root of ten Debian packages"),
        _scenario("image", "an OCI layout of both, with gzip layers"),
    ),
    arguments=_arguments,
)
