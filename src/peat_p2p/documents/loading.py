"""From rows to tables.

Owns reading everything a store holds. Keeps the rule that a row which cannot be read is reported, never passed over.
Must not know what the tables are for.
"""

from __future__ import annotations

import struct

from peat_p2p.core.errors import CorruptError, UntrustedError
from peat_p2p.documents import keys
from peat_p2p.documents.authority import Authority
from peat_p2p.documents.chain import Chain
from peat_p2p.documents.parts import from_row
from peat_p2p.documents.shelf import Certificate, Staged
from peat_p2p.documents.store import Store
from peat_p2p.documents.ymap import BadContentError


def load(store: Store, authority: Authority) -> Staged:
    """Everything in the store. Raises CorruptError."""
    loaded = Staged()
    intern: dict[str, str] = {}
    for name, row in store.load():
        try:
            _take(loaded, name, row, intern, authority)
        except (BadContentError, UntrustedError, struct.error, ValueError, IndexError) as error:
            raise CorruptError(f"the document database holds a row that cannot be read: {error}") from error
    return loaded


def _take(loaded: Staged, name: bytes, row: bytes, intern: dict[str, str], authority: Authority) -> None:
    kind = name[:1]
    if kind == keys.PART:
        part = from_row(row, intern)
        loaded.parts[part.key] = part
    elif kind == keys.CERTIFICATE:
        identity = authority.identify(row[8:])
        origin = intern.setdefault(identity.endpoint_id, identity.endpoint_id)
        loaded.certificates[origin] = Certificate(identity, int.from_bytes(row[:8], "big"))
    elif kind == keys.CURSOR:
        loaded.cursors[keys.read_cursor_row(name)] = int.from_bytes(row, "big")
    elif kind == keys.CHAIN:
        loaded.chains[keys.read_chain_row(name)] = Chain(row[4:], int.from_bytes(row[:4], "big"))
    elif kind == keys.COVER:
        origin, incarnation, klass = keys.read_cover_row(name)
        writer = (intern.setdefault(origin, origin), incarnation)
        loaded.covers[writer, klass] = int.from_bytes(row, "big")
    elif kind == keys.META:
        loaded.meta[name[1:].decode()] = row
    else:
        raise ValueError(f"row kind {kind!r} is not known")
