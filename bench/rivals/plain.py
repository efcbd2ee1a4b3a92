"""libtorrent with nothing changed: make a torrent, or run a session that seeds or fetches it.

    python -m bench.rivals.plain make FILE TORRENT
    python -m bench.rivals.plain run TORRENT FOLDER ADDRESS PORT DONE [OTHER...]

A fetching session touches DONE when it has everything, and goes on seeding.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import libtorrent as lt


def make(file: Path, torrent: Path) -> None:
    storage = lt.file_storage()
    lt.add_files(storage, str(file))
    creator = lt.create_torrent(storage, flags=lt.create_torrent.v1_only)
    lt.set_piece_hashes(creator, str(file.parent))
    torrent.write_bytes(lt.bencode(creator.generate()))


def run(torrent: Path, folder: Path, address: str, port: int, done: Path, others: list[str]) -> None:
    session = lt.session({"listen_interfaces": f"{address}:{port}"})
    parameters = lt.add_torrent_params()
    parameters.ti = lt.torrent_info(str(torrent))
    parameters.save_path = str(folder)
    handle = session.add_torrent(parameters)
    tried = 0.0
    while True:
        status = handle.status()
        if status.is_seeding:
            done.touch()
            time.sleep(1.0)
            continue
        if time.monotonic() - tried > 5.0:
            tried = time.monotonic()
            for other in others:
                handle.connect_peer((other, port))
        time.sleep(0.02)


if __name__ == "__main__":
    words = sys.argv[2:]
    if sys.argv[1] == "make":
        make(Path(words[0]), Path(words[1]))
    else:
        run(Path(words[0]), Path(words[1]), words[2], int(words[3]), Path(words[4]), words[5:])
