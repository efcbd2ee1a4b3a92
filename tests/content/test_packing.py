from __future__ import annotations

import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.content import batch as batch_module
from peat_p2p.content.chunking import average_for
from peat_p2p.content.materialize import materialize
from peat_p2p.content.packing import level_for, pack, unpack
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.content.tree import verify_tree
from peat_p2p.core.errors import CorruptError

Publish = Callable[..., StoredPackage]


def text(seed: int, size: int) -> bytes:
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randrange(3, 9)).hex() for _ in range(500)]
    return " ".join(rng.choices(words, k=size // 8)).encode()[:size]


@given(st.binary(max_size=2000).map(lambda data: data * 5))
def test_what_is_packed_comes_out(content: bytes) -> None:
    frame = pack(content)
    if frame is not None:
        assert len(frame) < len(content)
        assert unpack(frame, len(content)) == content


def test_dense_content_stays_as_it_is() -> None:
    assert pack(random.Random(1).randbytes(100_000)) is None
    assert pack(b"short") is None


def test_small_package_is_packed_harder() -> None:
    assert level_for(1 << 20) > level_for(10 << 30)
    content = Path(tarfile.__file__).read_bytes()
    hard, fast = pack(content, level_for(1 << 20)), pack(content, level_for(10 << 30))
    assert hard is not None and fast is not None and len(hard) < len(fast)


def test_frame_that_is_not_as_described_is_refused() -> None:
    frame = pack(bytes(1 << 20))
    assert frame is not None
    endless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20))
    for bad, length in ((frame, 1000), (frame, 1 << 21), (b"no frame", 8), (frame[:-3], 1 << 20), (endless, 1000)):
        with pytest.raises(CorruptError):
            unpack(bad, length)


def test_package_takes_less_than_its_size(tmp_path: Path, store: ChunkStore, publish_tree: Publish) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "text").write_bytes(text(1, 2_000_000))
    (source / "dense").write_bytes(random.Random(2).randbytes(500_000))
    (source / "zeros").write_bytes(bytes(3_000_000))
    package = publish_tree(source)
    assert package.index.unique_bytes < 0.5 * package.index.total_bytes
    assert store.stat().chunk_bytes == package.index.unique_bytes
    assert {bool(chunk.length) for chunk in package.index.chunks} == {True, False}
    materialize(store, package.index, tmp_path / "out")
    assert (tmp_path / "out/text").read_bytes() == text(1, 2_000_000)
    assert verify_tree(package.index, tmp_path / "out") == []
    (tmp_path / "out/text").write_bytes(text(1, 1_999_999) + b"#")
    assert verify_tree(package.index, tmp_path / "out") == ["content differs in: text"]


def test_another_zstd_makes_no_other_chunks_of_known_content(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "text"
    source.write_bytes(text(3, 1_000_000))
    first = publish_tree(source)

    def other(content: memoryview, level: int) -> bytes:
        return zstandard.ZstdCompressor(level=level - 3).compress(content)

    monkeypatch.setattr(batch_module, "pack", other)
    assert publish_tree(source, version="2").index == first.index
    lost = store.chunk_path(first.index.chunks[5].hex)
    lost.unlink()
    again = publish_tree(source, version="3").index
    assert len(set(again.chunks) & set(first.index.chunks)) == len(set(first.index.chunks)) - 1
    materialize(store, again, tmp_path / "out")
    assert (tmp_path / "out/text").read_bytes() == source.read_bytes()


def test_chunk_size_fits_the_package() -> None:
    for total in (1 << 20, 64 << 20, 1 << 30, 5 << 30, 30 << 30, 100 << 30):
        for files in (1, 1000, 100_000):
            chunks = total / average_for(total, files)
            assert 64 <= chunks <= 32768, total
            assert average_for(total, files) <= average_for(total)
    assert average_for(5_000_000_000, 100_000) <= 256 << 10  # a change of one small file costs no more than this
    assert average_for(5_000_000_000, 10) == 1 << 20
    sizes = [average_for(1 << shift) for shift in range(10, 40)]
    assert sizes == sorted(sizes)
