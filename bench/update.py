"""What an update costs: bytes to fetch for a new release when the one before is here.

Owns the comparison at the level of chunks: what an agent that holds the older release must fetch of the newer one
(chunks it lacks, the index as it is sent, the manifest), beside what others would send for the same two trees. Real
releases of real packages (bench/releases.py). What a link adds on top is measured by the swarm benches.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.releases import SETS, default_cache
from bench.result import Bench, Run, Scenario
from peat_p2p.content.publish import publish
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.core.clock import SystemClock
from peat_p2p.swarm.infopack import pack_info
from peat_p2p.swarm.torrent import torrent_builder
from peat_p2p.trust.formation import dev_credentials
from peat_p2p.trust.identity import Role

WORST = 1.02  # times the whole, compressed


def _update(run: Run, name: str) -> None:
    cache = getattr(run.options, "cache", None) or default_cache()
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
        run.baseline("zsync, old tar there", _zsync(work, *tars))
        run.baseline("casync, like chunk size", _casync(work, older, newer, int(ours["average_chunk"])))
        if not run.quick:
            run.baseline("whole, zstd -19", {"bytes": _zstd(tars[1], "-19")})
            delta = _zstd(tars[1], "-19", "--long=28", f"--patch-from={tars[0]}")
            run.baseline("zstd --patch-from (made for this one pair)", {"bytes": delta})
        for key, figures in run.baselines.items():
            run.say(f"{key}: {figures}")
        run.at_most("fetched / whole as zstd -3", ours["fetched_bytes"] / whole, WORST)
        # A package that nobody has a version of; chunks cost it something that only updates give back.
        run.at_most("first fetch / whole as zstd -3", ours["cold_bytes"] / whole, WORST)


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
    metadata = len(pack_info(second.info, short=True))  # as an agent sends it
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


def _zsync(work: Path, older: Path, newer: Path) -> dict[str, Any]:
    if shutil.which("zsync") is None or shutil.which("zsyncmake") is None:
        return {"bytes": None, "reason": "zsync is not installed"}
    control = work / "new.zsync"
    subprocess.run(["zsyncmake", "-o", str(control), "-u", newer.name, str(newer)], check=True, capture_output=True)
    handler = functools.partial(_Quiet, directory=str(work))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{control.name}"
        words = ["zsync", "-i", str(older), "-o", str(work / "zsync.out"), url]
        alone = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        done = subprocess.run(words, check=False, capture_output=True, text=True, env=alone)
        server.shutdown()
    told = re.findall(r"used (\d+) local, fetched (\d+)", done.stdout + done.stderr)
    if done.returncode or not told:
        return {"bytes": None, "reason": f"zsync ended with {done.returncode}: {done.stderr[-200:]}"}
    (work / "zsync.out").unlink()
    fetched = int(told[-1][1])
    return {"bytes": fetched + control.stat().st_size, "fetched": fetched, "control": control.stat().st_size}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with the range requests that zsync makes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        ranges = [
            (int(start), int(end))
            for start, end in re.findall(r"(\d+)-(\d+)", self.headers.get("Range", ""))
            if int(start) <= int(end) < size
        ]
        with path.open("rb") as file:
            bodies = []
            for start, end in ranges:
                file.seek(start)
                bodies.append(file.read(end - start + 1))
            if not ranges:
                self._answer(200, {}, file.read())
            elif len(ranges) == 1:
                start, end = ranges[0]
                self._answer(206, {"Content-Range": f"bytes {start}-{end}/{size}"}, bodies[0])
            else:
                parts = [
                    f"\r\n--part\r\nContent-Range: bytes {start}-{end}/{size}\r\n\r\n".encode() + body
                    for (start, end), body in zip(ranges, bodies, strict=True)
                ]
                content = b"".join((*parts, b"\r\n--part--\r\n"))
                self._answer(206, {"Content-Type": "multipart/byteranges; boundary=part"}, content)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


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


def every_set(run: Run) -> None:
    """All sets in one run, for `python -m bench swarm update`: every figure under the name of its set."""
    for name in SETS:
        part = Run(run.bench, name, run.seed, run.quick, run.options)
        _update(part, name)
        run.parameters[name] = part.parameters
        for mine, its in ((run.results, part.results), (run.units, part.units), (run.baselines, part.baselines)):
            mine.update({f"{name}: {key}": value for key, value in its.items()})
        run.bars += [replace(bar, name=f"{name}: {bar.name}") for bar in part.bars]


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
