"""What the demo publishes when it is not told: a copy of Python packages that are installed on this machine.

Owns the choice. It is a copy because running Python writes into the original meanwhile.
"""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import zstandard

from peat_p2p.core.errors import NotFoundError

WANTED_BYTES = 64 << 20
LEAST_BYTES = 50 << 20
_BLOCK = 1 << 20


def copy_installed_packages(destination: Path) -> list[str]:
    """Copy the largest installed Python packages into `destination`, WANTED_BYTES or more; return their names.

    Raises NotFoundError when fewer than LEAST_BYTES are installed.
    """
    site = Path(sysconfig.get_path("purelib"))
    sizes = {
        folder: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
        for folder in site.iterdir()
        if folder.is_dir() and (folder / "__init__.py").exists()
    }
    chosen: list[Path] = []
    total = 0
    for folder in sorted(sizes, key=lambda f: (-sizes[f], f.name)):
        if total >= WANTED_BYTES:
            break
        chosen.append(folder)
        total += sizes[folder]
    if total < LEAST_BYTES:
        raise NotFoundError(
            f"{site} holds only {total >> 20} MB of Python packages; name something with --package PATH"
        )
    for folder in chosen:
        shutil.copytree(folder, destination / folder.name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return [folder.name for folder in chosen]


def packed_size(source: Path) -> int:
    """Roughly how many bytes of `source` (a file or a folder) travel: its size, packed where that helps."""
    compressor = zstandard.ZstdCompressor(level=1)
    files = [source] if source.is_file() else [f for f in source.rglob("*") if f.is_file() and not f.is_symlink()]
    total = 0
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                total += min(len(block), len(compressor.compress(block)))
    return total
