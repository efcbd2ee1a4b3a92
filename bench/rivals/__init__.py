"""What a user would pick instead: each tool with its best reasonable settings, all behind one small face."""

from bench.rivals.base import Fetch, Place, Rival, RivalError
from bench.rivals.bearer import CurlOverBearer
from bench.rivals.http import Aria2, Curl
from bench.rivals.iroh import Iroh
from bench.rivals.peat import Peat
from bench.rivals.rsync import Rsync
from bench.rivals.syncthing import Syncthing
from bench.rivals.torrents import Libtorrent, Transmission

RIVALS: dict[str, type[Rival]] = {
    rival.name: rival for rival in (Peat, Curl, Aria2, Rsync, Syncthing, Transmission, Libtorrent, Iroh, CurlOverBearer)
}

__all__ = ["RIVALS", "Fetch", "Place", "Rival", "RivalError"]
