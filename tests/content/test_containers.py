from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import random
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from peat_p2p.content import codecs as codecs_module
from peat_p2p.content.codecs import encoder
from peat_p2p.content.containers import oci_manifests, open_container
from peat_p2p.content.entries import Part
from peat_p2p.content.manifest import Manifest
from peat_p2p.content.materialize import materialize
from peat_p2p.content.publish import TorrentMeta, publish
from peat_p2p.content.store import ChunkStore, StoredPackage
from peat_p2p.content.tree import verify_tree
from peat_p2p.core.clock import SystemClock
from peat_p2p.core.errors import ConflictError, UnavailableError
from peat_p2p.trust.credentials import NodeCredentials

Publish = Callable[..., StoredPackage]


def words(seed: int, size: int) -> bytes:
    rng = random.Random(seed)
    vocabulary = [rng.randbytes(rng.randrange(2, 7)).hex() for _ in range(3000)]
    return " ".join(rng.choices(vocabulary, k=size // 6)).encode()[:size]


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


FILES = {"a.txt": words(1, 150_000), "dir/b.bin": random.Random(2).randbytes(90_000), "c": b"", "d": words(3, 40_000)}
TAR = tar_of(FILES)


def program_gzip(data: bytes, *options: str) -> bytes:
    return subprocess.run(["gzip", "-c", *options], input=data, capture_output=True, check=True).stdout


def with_name(data: bytes) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile("some name.tar", "wb", 5, out, mtime=1234) as file:
        file.write(data)
    return out.getvalue()


def memory_level_nine(data: bytes) -> bytes:
    stream = zlib.compressobj(7, zlib.DEFLATED, 31, 9)
    return stream.compress(data) + stream.flush()


def zstd(data: bytes, **options: int | bool) -> bytes:
    sized = bool(options.pop("sized", True))
    stream = zstandard.ZstdCompressor(write_content_size=sized, **options).compressobj(size=len(data) if sized else -1)  # type: ignore[arg-type]
    return stream.compress(data) + stream.flush()  # type: ignore[no-any-return]


OPENED = {
    "gzip-of-python": gzip.compress(TAR, 9),
    "gzip-of-python-6": gzip.compress(TAR, 6),
    "gzip-with-name": with_name(TAR),
    "gzip-memory-9": memory_level_nine(TAR),
    "gzip-program": program_gzip(TAR),
    "gzip-program-1": program_gzip(TAR, "-1"),
    "gzip-program-9": program_gzip(TAR, "-9"),
    "zstd-3": zstd(TAR, level=3),
    "zstd-unsized": zstd(TAR, level=3, sized=False),
    "zstd-checksum": zstd(TAR, level=7, write_checksum=True),
    "zstd-19": zstd(TAR, level=19),
    "zstd-threads": zstd(TAR * 30, level=1, threads=2),
}
KEPT = {
    "two-members": gzip.compress(TAR) + gzip.compress(TAR),
    "trailing-garbage": gzip.compress(TAR) + b"more",
    "truncated": gzip.compress(TAR)[:-2000],
    "damaged": gzip.compress(TAR)[:70_000] + b"\0" * 10 + gzip.compress(TAR)[70_010:],
    "only-looks-like-gzip": b"\x1f\x8b\x08\x00" + random.Random(1).randbytes(100_000),
    "only-looks-like-zstd": b"\x28\xb5\x2f\xfd" + random.Random(1).randbytes(100_000),
    "flushed-often": b"".join(
        [
            (stream := zlib.compressobj(6, zlib.DEFLATED, 31)).compress(b""),
            *(
                stream.compress(TAR[at : at + 9000]) + stream.flush(zlib.Z_SYNC_FLUSH)
                for at in range(0, len(TAR), 9000)
            ),
            stream.flush(),
        ]
    ),
    "zstd-two-frames": zstd(TAR) + zstd(TAR),
    "zstd-truncated": zstd(TAR)[:-100],
}


@pytest.mark.parametrize("name", OPENED)
def test_archive_that_can_be_made_again_is_opened_and_delivered_bit_identical(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, name: str
) -> None:
    source = tmp_path / "layer"
    source.write_bytes(OPENED[name])
    package = publish_tree(source)
    entry = package.index.files[0]
    assert entry.recipe is not None
    assert package.index.content_bytes > package.index.total_bytes
    assert package.manifest.annotations["archives.opened"] == "1"
    assert package.manifest.annotations["sha256"] == hashlib.sha256(OPENED[name]).hexdigest()
    materialize(store, package.index, tmp_path / "out")
    assert (tmp_path / "out/layer").read_bytes() == OPENED[name]
    assert verify_tree(package.index, tmp_path / "out") == []


@pytest.mark.parametrize("name", KEPT)
def test_archive_that_cannot_is_kept_and_delivered_bit_identical(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, name: str
) -> None:
    source = tmp_path / "layer"
    source.write_bytes(KEPT[name])
    package = publish_tree(source)
    assert package.index.files[0].recipe is None
    assert package.manifest.annotations["archives.kept"] == "1"
    materialize(store, package.index, tmp_path / "out")
    assert (tmp_path / "out/layer").read_bytes() == KEPT[name]


def test_archives_can_be_kept_whole_by_wish(tmp_path: Path, store: ChunkStore, publisher: NodeCredentials) -> None:
    (tmp_path / "x.tar.gz").write_bytes(OPENED["gzip-of-python"])
    package = publish(
        tmp_path / "x.tar.gz",
        "x",
        "1",
        "any",
        store,
        publisher,
        lambda index, root: TorrentMeta(b"", "0" * 64),
        SystemClock(),
        open_archives=False,
    )
    assert package.index.files[0].recipe is None


def layout(layers: list[bytes]) -> dict[str, bytes]:
    blobs = {f"blobs/sha256/{hashlib.sha256(data).hexdigest()}": data for data in layers}
    manifest = json.dumps({"layers": list(blobs)}).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    return {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [{"digest": f"sha256:{digest}"}]}).encode(),
        f"blobs/sha256/{digest}": manifest,
        **blobs,
    }


LAYOUT = layout([OPENED["gzip-of-python"], OPENED["gzip-program"], OPENED["zstd-3"], KEPT["flushed-often"]])


def test_oci_archive_is_opened_layer_by_layer(tmp_path: Path, store: ChunkStore, publish_tree: Publish) -> None:
    source = tmp_path / "image.tar"
    source.write_bytes(tar_of(LAYOUT))
    package = publish_tree(source)
    notes = package.manifest.annotations
    assert (notes["archives.opened"], notes["archives.kept"]) == ("3", "1")
    assert notes["oci.manifests"] == json.loads(LAYOUT["index.json"])["manifests"][0]["digest"]
    assert len(package.manifest.to_payload()) < 1024
    # Three layers of one content: it is stored once.
    assert package.index.unique_bytes < package.index.content_bytes / 2.5
    materialize(store, package.index, tmp_path / "out")
    assert (tmp_path / "out/image.tar").read_bytes() == source.read_bytes()
    assert verify_tree(package.index, tmp_path / "out") == []


def test_oci_layout_directory(tmp_path: Path, store: ChunkStore, publish_tree: Publish) -> None:
    source = tmp_path / "image"
    for name, data in LAYOUT.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    package = publish_tree(source)
    assert package.manifest.annotations["archives.opened"] == "3"
    assert package.manifest.annotations["oci.manifests"].startswith("sha256:")
    materialize(store, package.index, tmp_path / "out")
    for name, data in LAYOUT.items():
        assert (tmp_path / "out" / name).read_bytes() == data
    assert verify_tree(package.index, tmp_path / "out") == []


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"manifests":[{}]}', b'{"manifests":[{"digest":"../x"}]}', b"\xff", b"[" * 9999]
)
def test_layout_with_a_bad_index_lists_nothing(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "oci-layout").write_bytes(b"{}")
    (tmp_path / "index.json").write_bytes(text)
    assert oci_manifests(tmp_path) == []


def test_new_version_of_an_archive_shares_what_did_not_change(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish
) -> None:
    source = tmp_path / "app.tar.gz"
    big = {f"lib/{number}.bin": random.Random(number).randbytes(150_000) for number in range(20)}
    source.write_bytes(gzip.compress(tar_of(big), 6))
    first = publish_tree(source)
    source.write_bytes(gzip.compress(tar_of({"a-new-first-file": words(5, 5000), **big}), 6))
    second = publish_tree(source, version="2")
    new = set(second.index.unique_chunks) - set(first.index.unique_chunks)
    assert sum(chunk.size for chunk in new) < 0.05 * second.index.unique_bytes


def test_member_of_a_tar_has_the_chunks_of_the_file(tmp_path: Path, publish_tree: Publish) -> None:
    big = {f"{number}.bin": random.Random(number).randbytes(150_000) for number in range(10)}
    (tmp_path / "folder").mkdir()
    for name, data in big.items():
        (tmp_path / "folder" / name).write_bytes(data)
    (tmp_path / "x.tar").write_bytes(tar_of(big))
    folder = publish_tree(tmp_path / "folder")
    archive = publish_tree(tmp_path / "x.tar", version="2")
    assert set(folder.index.chunks) <= set(archive.index.chunks)


def test_machine_whose_compressor_differs_delivers_nothing(
    tmp_path: Path, store: ChunkStore, publish_tree: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "layer"
    source.write_bytes(OPENED["gzip-of-python"])
    package = publish_tree(source)
    real = zlib.compressobj
    monkeypatch.setattr(codecs_module.zlib, "compressobj", lambda level, *rest: real(1, *rest))
    with pytest.raises(UnavailableError, match="layer cannot be made again bit for bit on this machine: its deflate"):
        materialize(store, package.index, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_gzip_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UnavailableError, match="the program gzip is needed"):
        encoder(Part(1, 1, "gnu-deflate", (6,)))


@pytest.mark.parametrize("level", [1, 6, 9])
@pytest.mark.parametrize("size", [0, 1, 5, 700_000])
def test_gzip_program_as_a_codec(level: int, size: int) -> None:
    data = words(8, size)
    whole = program_gzip(data, "-n", f"-{level}")
    stream = encoder(Part(size, 1, "gnu-deflate", (level,)))
    made = b"".join(stream.feed(data[at : at + 50_000]) for at in range(0, size, 50_000)) + stream.finish()
    stream.close()
    assert made == whole[10:-8]


def test_gzip_program_that_is_given_up_leaves_no_process() -> None:
    stream = encoder(Part(1, 1, "gnu-deflate", (6,)))
    stream.feed(words(8, 300_000))
    stream.close()
    assert stream._process.returncode is not None  # type: ignore[attr-defined]


def test_archive_that_changes_while_it_is_published(
    tmp_path: Path, publish_tree: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "layer"
    source.write_bytes(OPENED["gzip-of-python"])

    def open_then_change(path: Path, size: int) -> object:
        found = open_container(path, size)
        source.write_bytes(OPENED["gzip-of-python-6"][:size].ljust(size, b"\0"))
        os.utime(source, ns=(1, 1))
        return found

    monkeypatch.setattr("peat_p2p.content.publish.open_container", open_then_change)
    with pytest.raises(ConflictError, match="changed while it was published"):
        publish_tree(source)


@pytest.mark.parametrize(
    "part",
    [
        Part(1, 1, "lzma", (1,)),
        Part(1, 1, "deflate", (1,)),
        Part(1, 1, "deflate", (99, 8)),
        Part(1, 1, "deflate", (1, 99)),
        Part(1, 1, "gnu-deflate", (0,)),
        Part(1, 1, "gnu-deflate", (10,)),
        Part(1, 1, "zstd", (22, 0, 0, 0)),
        Part(1, 1, "zstd", (-5, 0, 0, 0)),
        Part(1, 1, "zstd", ()),
    ],
)
def test_codec_that_is_not_known_is_refused(part: Part) -> None:
    with pytest.raises(UnavailableError):
        encoder(part)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_archives_never_break_the_examination(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = data.draw(st.sampled_from(["gzip-of-python", "gzip-with-name", "zstd-3", "tar"]))
    content = bytearray(tar_of(LAYOUT) if name == "tar" else OPENED[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.one_of(st.integers(0, 600), st.integers(0, len(content) - 1)))] = data.draw(
            st.integers(0, 255)
        )
    del content[data.draw(st.integers(70_000, len(content))) :]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    found = open_container(path, len(content))
    if found.recipe:
        assert sum(part.output_bytes for part in found.recipe.parts) == len(content)
        assert found.recipe.sha256 == hashlib.sha256(content).digest()


def test_notes_do_not_hide_those_of_the_caller(tmp_path: Path, store: ChunkStore, publisher: NodeCredentials) -> None:
    (tmp_path / "f").write_bytes(b"x")
    package = publish(
        tmp_path / "f",
        "x",
        "1",
        "any",
        store,
        publisher,
        lambda index, root: TorrentMeta(b"", "0" * 64),
        SystemClock(),
        annotations={"team": "radio"},
    )
    assert dict(package.manifest.annotations) == {"team": "radio", "sha256": hashlib.sha256(b"x").hexdigest()}
    assert isinstance(package.manifest, Manifest)


def test_manifest_names_what_is_kept_whole(tmp_path: Path, publish_tree: Publish) -> None:
    source = tmp_path / "tree"
    source.mkdir()
    body = random.Random(3).randbytes(200_000)
    (source / "a.tar.xz").write_bytes(lzma.compress(body))
    (source / "b.gz").write_bytes(gzip.compress(body, 6, mtime=0))
    (source / "plain").write_bytes(body)
    for version in ("1", "2"):  # read, and remembered
        package = publish_tree(source, version=version)
        notes = package.manifest.annotations
        assert (notes["archives.opened"], notes["archives.kept"]) == ("1", "1")
        assert json.loads(notes["archives.kept.in"]) == ["a.tar.xz"]
        assert len(package.manifest.to_payload()) < 1024
    (recipe,) = [entry.recipe for entry in package.index.files if entry.recipe]
    assert recipe.codecs == ("deflate 6",)
