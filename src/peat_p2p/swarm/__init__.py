"""How bytes cross between agents: the libtorrent engine, peer choice, metadata exchange."""
