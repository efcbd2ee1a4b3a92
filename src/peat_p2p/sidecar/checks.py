"""What a request must hold before it is looked at.

Owns the checks of collection names and ids that every call shares, so that a wrong name is told apart from an empty
collection by reads as well as by writes.
"""

from __future__ import annotations

from peat_p2p.core.errors import InvalidInputError
from peat_p2p.documents.rules import is_public_name

MAX_ID_BYTES = 512


def check_collection(name: str) -> str:
    """Return the collection's name. Raises InvalidInputError."""
    if not name:
        raise InvalidInputError("the collection's name is empty")
    if not is_public_name(name):
        raise InvalidInputError(
            f"collection {name[:80]!r}: a name begins with a letter or digit and goes on with letters, digits, '.', '_'"
            " or '-', at most 128 of them"
        )
    return name


def check_id(doc_id: str, what: str = "document") -> str:
    """Return the id. Raises InvalidInputError."""
    if not doc_id:
        raise InvalidInputError(f"the {what}'s id is empty")
    if len(doc_id.encode()) > MAX_ID_BYTES:
        raise InvalidInputError(f"the {what}'s id is longer than {MAX_ID_BYTES} bytes")
    return doc_id
