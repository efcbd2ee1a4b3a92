"""Data that only a key makes readable: encryption of rows on disk.

Owns the storage key's forms and the sealing of named rows: AES-256-GCM, with the names hidden too, because the ids of
documents say much. Keeps two rules: no nonce is ever used twice under one key, and a row is bound to its place, so that
rows cannot be swapped or taken from another file. What an attacker with the disk still sees is how many rows there are,
how large they are and when they change; an old row put back in its own place is not noticed. Must not know what rows
are or how they are stored.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from peat_p2p.core.atomic import write_atomic
from peat_p2p.core.errors import ConfigError, ConflictError, CorruptError

KEY_BYTES = 32
OVERHEAD_BYTES = 1 + 16 + 12 + 4 + 16  # form, salt, nonce, length of the name, tag
_FORM = 1
_SALT = 16
_NONCE = 12
_HEAD = 1 + _SALT + _NONCE
_NAME_LENGTH = 4
_HIDDEN = 16
# One session's counter could go on for ever; a fresh key now and then keeps far below every bound known for GCM.
_MESSAGES_PER_KEY = 1 << 32


class WrongKeyError(ConfigError):
    """What is stored was not sealed with this key (or was damaged)."""


def parse_storage_key(text: str, where: str) -> bytes:
    """The 32 bytes that `text` holds as 64 hex digits or as base64. Raises ConfigError, naming `where`."""
    text = text.strip()
    try:
        key = bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{where} is not a storage key: 64 hex digits or the base64 of 32 bytes")
    return key


def load_storage_key(path: Path) -> bytes:
    """The key in a file. Raises ConfigError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the storage key {path} cannot be read: {error}") from error
    return parse_storage_key(text, str(path))


def make_storage_key(path: Path) -> bytes:
    """Make a key in a file that only its owner may read. Raises ConflictError if the file exists."""
    if path.exists():
        raise ConflictError(f"{path} exists already: a key that is lost cannot be made again, so none is overwritten")
    key = secrets.token_bytes(KEY_BYTES)
    write_atomic(path, key.hex().encode() + b"\n", mode=0o600)
    return key


class RowCipher:
    """Seals and opens rows under one storage key. `random` gives the salt of each session's own key."""

    def __init__(self, key: bytes, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigError(f"a storage key has {KEY_BYTES} bytes, not {len(key)}")
        self._key = key
        self._random = random
        self._name_key = _derive(key, b"", b"peat row names 1")
        self._cipher_of = lru_cache(maxsize=1024)(self._derived)
        self._begin_session()

    def hide(self, name: bytes) -> bytes:
        """The 16 bytes that stand for `name`: always the same, and telling nothing without the key."""
        return hmac.digest(self._name_key, name, "sha256")[:_HIDDEN]

    def seal(self, name: bytes, row: bytes) -> bytes:
        """The row named `name` as it is stored under `hide(name)`."""
        if self._count == _MESSAGES_PER_KEY:
            self._begin_session()
        nonce = self._count.to_bytes(_NONCE, "big")
        self._count += 1
        head = bytes([_FORM]) + self._salt + nonce
        plain = len(name).to_bytes(_NAME_LENGTH, "big") + name + row
        return head + self._cipher.encrypt(nonce, plain, head + self.hide(name))

    def open(self, hidden: bytes, stored: bytes) -> tuple[bytes, bytes]:
        """The name and the row. Raises WrongKeyError, or CorruptError for what nobody seals so."""
        if len(stored) < OVERHEAD_BYTES or stored[0] != _FORM:
            raise CorruptError("a stored row is damaged: it is not of the form that encrypted rows have")
        head, salt, nonce = stored[:_HEAD], stored[1 : 1 + _SALT], stored[1 + _SALT : _HEAD]
        try:
            plain = self._cipher_of(salt).decrypt(nonce, stored[_HEAD:], head + hidden)
        except InvalidTag:
            raise WrongKeyError(
                "stored data does not open: the storage key is another one, or the data is damaged"
            ) from None
        length = int.from_bytes(plain[:_NAME_LENGTH], "big")
        return plain[_NAME_LENGTH : _NAME_LENGTH + length], plain[_NAME_LENGTH + length :]

    def _begin_session(self) -> None:
        # A counter under a key that no other session has: nonces need no luck and no memory over restarts.
        self._salt = self._random(_SALT)
        self._cipher = self._cipher_of(self._salt)
        self._count = 0

    def _derived(self, salt: bytes) -> AESGCM:
        return AESGCM(_derive(self._key, salt, b"peat rows 1"))


def _derive(key: bytes, salt: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt or None, info=purpose).derive(key)
