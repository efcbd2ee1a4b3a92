import base64
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peat_p2p.core.errors import ConfigError, ConflictError, CorruptError
from peat_p2p.trust import atrest
from peat_p2p.trust.atrest import (
    OVERHEAD_BYTES,
    RowCipher,
    WrongKeyError,
    load_storage_key,
    make_storage_key,
    parse_storage_key,
)

KEY = bytes(range(32))


@given(st.binary(max_size=600), st.binary(max_size=3000))
def test_a_row_comes_back_in_its_place_alone(name: bytes, row: bytes) -> None:
    cipher = RowCipher(KEY)
    stored = cipher.seal(name, row)
    hidden = cipher.hide(name)
    assert len(stored) == len(name) + len(row) + OVERHEAD_BYTES
    assert RowCipher(KEY).open(hidden, stored) == (name, row), "in another life"
    with pytest.raises(WrongKeyError):
        cipher.open(cipher.hide(name + b"x"), stored)
    with pytest.raises(WrongKeyError, match="storage key is another one"):
        RowCipher(bytes(32)).open(hidden, stored)


@given(st.data())
@settings(max_examples=300)
def test_no_changed_row_opens(data: st.DataObject) -> None:
    cipher = RowCipher(KEY)
    stored = bytearray(cipher.seal(b"name", b"the row"))
    stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((WrongKeyError, CorruptError)):
        cipher.open(cipher.hide(b"name"), bytes(stored))


@given(st.binary(max_size=200))
def test_noise_does_not_open(noise: bytes) -> None:
    with pytest.raises((WrongKeyError, CorruptError)):
        RowCipher(KEY).open(RowCipher(KEY).hide(b"name"), noise)


def test_nothing_shows() -> None:
    cipher = RowCipher(KEY)
    first, second = cipher.seal(b"platforms/edge-1", b"secret"), cipher.seal(b"platforms/edge-1", b"secret")
    assert first != second
    assert cipher.hide(b"platforms/edge-1") == RowCipher(KEY).hide(b"platforms/edge-1")
    assert cipher.hide(b"platforms/edge-1") != RowCipher(bytes(32)).hide(b"platforms/edge-1")
    for stored in (first, cipher.hide(b"platforms/edge-1")):
        assert b"edge" not in stored and b"secret" not in stored


def test_no_nonce_is_used_twice_under_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atrest, "_MESSAGES_PER_KEY", 10)
    heads = set()
    for _ in range(3):  # three lives
        cipher = RowCipher(KEY)
        heads |= {cipher.seal(b"n", b"r")[:29] for _ in range(25)}
    assert len(heads) == 75
    assert len({head[1:17] for head in heads}) == 9, "a fresh key after ten messages and in each life"


def test_keys_are_read_and_made(tmp_path: Path) -> None:
    key = make_storage_key(tmp_path / "keys" / "store.key")
    assert load_storage_key(tmp_path / "keys" / "store.key") == key
    assert stat.S_IMODE((tmp_path / "keys" / "store.key").stat().st_mode) == 0o600
    with pytest.raises(ConflictError, match="exists already"):
        make_storage_key(tmp_path / "keys" / "store.key")
    assert (
        parse_storage_key(KEY.hex().upper() + "\n", "x")
        == parse_storage_key(base64.b64encode(KEY).decode(), "x")
        == KEY
    )
    for bad in ("", "abc", "ab" * 31, "zz" * 32, "ab" * 64, base64.b64encode(b"short").decode(), "é" * 64):
        with pytest.raises(ConfigError, match="PEAT_KEY is not a storage key"):
            parse_storage_key(bad, "PEAT_KEY")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_storage_key(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 16)
    with pytest.raises(ConfigError):
        load_storage_key(tmp_path / "binary")
    with pytest.raises(ConfigError, match="32 bytes, not 16"):
        RowCipher(bytes(16))
