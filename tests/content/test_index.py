from __future__ import annotations

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from peat_p2p.content.entries import FileEntry, Kind, Part, Recipe, components
from peat_p2p.content.index import MAX_CHUNK_BYTES, ChunkRef, Index
from peat_p2p.core.errors import InvalidInputError, PeatError, TooLargeError
from peat_p2p.wire.gen.peat.content.v1 import index_pb as pb


def file(path: str, size: int = 0) -> FileEntry:
    return FileEntry(path, Kind.FILE, 0o644, size)


def folder(path: str) -> FileEntry:
    return FileEntry(path, Kind.DIRECTORY, 0o755)


def link(path: str, target: str) -> FileEntry:
    return FileEntry(path, Kind.SYMLINK, 0, target=target)


def chunk(number: int, size: int) -> ChunkRef:
    return ChunkRef(number.to_bytes(32, "big"), size)


def packed(number: int, size: int, length: int) -> ChunkRef:
    return ChunkRef(number.to_bytes(32, "big"), size, length, bytes(15) + b"c")


EXAMPLE = Index(
    (
        folder("a"),
        FileEntry("a/sparse", Kind.FILE, 0o600, 100, runs=(10, 20, 70)),
        link("a/up", "../b"),
        FileEntry("a.tar.gz", Kind.FILE, 0o644, 7, recipe=Recipe(bytes(32), (Part(30, 7, "gzip", (9, -1)),))),
        FileEntry("b", Kind.FILE, 0o4755, 50, xattrs=(("user.a", b"\0"), ("user.b", b""))),
    ),
    (chunk(1, 60), packed(2, 12, 20), packed(2, 12, 20)),
    65536,
    0o1777,
)


def test_example_survives_and_has_one_name() -> None:
    assert Index.decode(EXAMPLE.encode()) == EXAMPLE
    assert EXAMPLE.total_bytes == 157
    assert EXAMPLE.content_bytes == 100
    assert EXAMPLE.unique_bytes == 72
    # The form of the encoding is fixed: a change of it needs a new schema number.
    assert EXAMPLE.digest == "blake3:756c60ec5fde5e415e4bf6905a2c07dae0fa22b383c95b502b3e79ea285dfee1"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../b",
        "a/./b",
        "a//b",
        "a/",
        ".",
        "..",
        "nul\0",
        "x" * 256,
        "a/" * 2100 + "b",
        "\ud800",
    ],
)
def test_dangerous_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidInputError):
        file(path)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([file("a"), file("a")], "twice"),
        ([file("b"), file("a")], "out of order"),
        ([link("a", "/etc"), file("a/passwd")], "not inside a directory"),
        ([file("a"), file("a/b")], "not inside a directory"),
        ([file("a/b")], "not inside a directory"),
        ([folder("a"), folder("a/b"), file("a/b/c"), file("a/d/c")], "not inside a directory"),
        ([folder("a"), file("a-b"), file("b"), file("c/x")], "not inside a directory"),
    ],
)
def test_entries_that_do_not_make_a_tree_are_refused(entries: list[FileEntry], why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        Index(tuple(entries), ())


def test_order_is_that_of_components() -> None:
    # "a-b" sorts before "a/b" as text, but after all of directory "a" as components.
    Index((folder("a"), file("a/b"), file("a-b")), ())


@pytest.mark.parametrize(
    "chunks",
    [
        (chunk(1, 9),),
        (chunk(1, 11),),
        (chunk(1, 10), chunk(2, 0)),
        (chunk(1, 4), chunk(1, 6)),
        (ChunkRef(b"short", 10),),
        (packed(1, 10, 10),),
        (packed(1, 11, 10),),
        (ChunkRef(bytes(32), 5, 10, b"short"),),
        (ChunkRef(bytes(32), 10, 0, bytes(16)),),
        (packed(1, 3, 5), packed(1, 4, 5)),
        (),
    ],
)
def test_chunks_that_do_not_fit_are_refused(chunks: tuple[ChunkRef, ...]) -> None:
    Index((file("a", 10),), (chunk(1, 10),))
    with pytest.raises(InvalidInputError):
        Index((file("a", 10),), chunks)


def test_chunk_over_the_limit_is_refused() -> None:
    Index((file("a", MAX_CHUNK_BYTES),), (chunk(1, MAX_CHUNK_BYTES),))
    with pytest.raises(InvalidInputError, match="over"):
        Index((file("a", MAX_CHUNK_BYTES + 1),), (chunk(1, MAX_CHUNK_BYTES + 1),))


@pytest.mark.parametrize("average", [0, 1000, 1 << 30, 24 << 10])
def test_average_that_is_no_power_of_two_is_refused(average: int) -> None:
    with pytest.raises(InvalidInputError, match="average"):
        Index((), (), average)


def test_single_file_package_holds_one_file() -> None:
    assert Index((file("a"),), (), root_mode=0).is_single_file
    for entries in ((), (file("a"), file("b")), (folder("a"),), (link("a", "b"),)):
        with pytest.raises(InvalidInputError, match="single file"):
            Index(entries, (), root_mode=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FileEntry("a", Kind.FILE, 0o10000),
        lambda: FileEntry("a", Kind.FILE, 0o644, -1),
        lambda: FileEntry("a", Kind.DIRECTORY, 0o755, 5),
        lambda: FileEntry("a", Kind.FILE, 0o644, target="b"),
        lambda: FileEntry("a", Kind.SYMLINK, 0),
        lambda: FileEntry("a", Kind.SYMLINK, 0o777, target="b"),
        lambda: FileEntry("a", Kind.SYMLINK, 0, target="b\0"),
        lambda: FileEntry("a", Kind.FILE, 0o644, 10, runs=(0, 10)),
        lambda: FileEntry("a", Kind.FILE, 0o644, 10, runs=(5, 4)),
        lambda: FileEntry("a", Kind.FILE, 0o644, 10, runs=(5, 0, 5)),
        lambda: FileEntry("a", Kind.FILE, 0o644, 10, runs=(5, 5), recipe=Recipe(bytes(32), (Part(10, 10),))),
        lambda: FileEntry("a", Kind.FILE, 0o644, xattrs=(("user.b", b""), ("user.a", b""))),
        lambda: FileEntry("a", Kind.FILE, 0o644, xattrs=(("user.a", b""), ("user.a", b""))),
        lambda: FileEntry("a", Kind.FILE, 0o644, xattrs=(("nul\0", b""),)),
        lambda: FileEntry("a", Kind.FILE, 0o644, 5, recipe=Recipe(b"", (Part(5, 5),))),
        lambda: FileEntry("a", Kind.FILE, 0o644, 5, recipe=Recipe(bytes(32), ())),
        lambda: FileEntry("a", Kind.FILE, 0o644, 5, recipe=Recipe(bytes(32), (Part(5, 4, "gzip"),))),
        lambda: FileEntry("a", Kind.FILE, 0o644, 5, recipe=Recipe(bytes(32), (Part(4, 5),))),
        lambda: FileEntry("a", Kind.FILE, 0o644, 5, recipe=Recipe(bytes(32), (Part(4, 5, "../x"),))),
    ],
)
def test_entry_that_contradicts_itself_is_refused(make: object) -> None:
    with pytest.raises(InvalidInputError):
        make()  # type: ignore[operator]


def _message() -> pb.PackageIndex:
    return pb.PackageIndex.from_binary(EXAMPLE.encode())


def _mutations() -> list[tuple[str, bytes]]:
    good = EXAMPLE.encode()
    cases = [
        ("trailing field", good + b"\xf8\x01\x05"),
        ("repeated field", good + b"\x08\x01"),
        ("long varint", good.replace(b"\x08\x01", b"\x08\x81\x00", 1)),
        ("empty", b""),
    ]

    def add(name: str, **changes: object) -> None:
        message = _message()
        for key, value in changes.items():
            setattr(message, key, value)
        cases.append((name, message.to_binary()))

    add("schema of the future", schema=2)
    add("unknown kind", entry_kinds=[2, 1, 3, 1, 9])
    add("columns of different length", entry_modes=[1])
    add("digest missing", chunk_digests=bytes(64))
    add("check missing", chunk_checks=bytes(16))
    add("length missing", chunk_lengths=[0, 20])
    add("packed into more than its content", chunk_lengths=[0, 11, 11])
    add("shared components that are not there", entry_shared=[0, 7, 1, 0, 0])
    add(
        "shared components not used", entry_shared=[0, 0, 1, 0, 0], entry_paths=["a", "a/sparse", "up", "a.tar.gz", "b"]
    )
    add("link target too many", link_targets=["../b", "x"])
    add("link target missing", link_targets=[])
    add("attribute of no entry", attributes=[pb.Attribute(entry=99, name="user.a", value=b"")])
    add("sparse twice", sparse=[*_message().sparse, *_message().sparse])
    add(
        "recipe of a directory",
        recipes=[pb.Recipe(entry=0, sha256=bytes(32), parts=[pb.Part(content_bytes=1, output_bytes=1)])],
    )
    return cases


@pytest.mark.parametrize(("name", "data"), _mutations())
def test_bytes_that_are_not_canonical_are_refused(name: str, data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        Index.decode(data)


def test_front_coding_cannot_blow_up_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peat_p2p.content.index._MAX_PATHS_BYTES", 1 << 20)
    deep = "/".join(["d" * 200] * 20)
    message = pb.PackageIndex(
        schema=1,
        average=16384,
        root_mode=0o755,
        entry_paths=[deep] + ["x"] * 1_000,
        entry_shared=[0] + [19] * 1_000,
        entry_kinds=[1] * 1_001,
        entry_modes=[0] * 1_001,
        entry_sizes=[0] * 1_001,
    )
    with pytest.raises(TooLargeError, match="paths of the package index"):
        Index.decode(message.to_binary())


_component = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=6).filter(
    lambda name: name not in (".", "..")
)


@st.composite
def indexes(draw: st.DrawFn) -> Index:
    folders = sorted(
        {
            path[:depth]
            for path in draw(st.sets(st.lists(_component, min_size=1, max_size=3).map(tuple), max_size=6))
            for depth in range(1, len(path) + 1)
        }
    )
    taken = {"/".join(path) for path in folders}
    entries = [folder(path) for path in taken]
    for parent in [(), *folders]:
        for name in draw(st.sets(_component, max_size=3)):
            path = "/".join((*parent, name))
            if path in taken:
                continue
            taken.add(path)
            if draw(st.booleans()):
                entries.append(link(path, draw(_component)))
                continue
            entries.append(file(path, draw(st.integers(0, 100_000))))
    entries.sort(key=lambda entry: components(entry.path))
    left = sum(entry.size for entry in entries)
    chunks = []
    while left:
        size = draw(st.integers(1, left)) if len(chunks) < 5 else left
        chunks.append(chunk(size, size))
        left -= size
    return Index(
        tuple(entries), tuple(chunks), draw(st.sampled_from([1024, 16384, 4 << 20])), draw(st.integers(1, 0o7777))
    )


@settings(deadline=None)
@given(indexes())
def test_every_index_survives(index: Index) -> None:
    data = index.encode()
    assert Index.decode(data) == index
    assert Index.decode(data).digest == index.digest


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b"")
def test_arbitrary_bytes_never_break_the_decoder(data: bytes) -> None:
    try:
        index = Index.decode(data)
    except InvalidInputError:
        return
    assert index.encode() == data


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_are_refused_or_mean_themselves(data: st.DataObject) -> None:
    good = EXAMPLE.encode()
    at = data.draw(st.integers(0, len(good) - 1))
    value = data.draw(st.integers(0, 255))
    bad = good[:at] + bytes([value]) + good[at + 1 :]
    assume(bad != good)
    try:
        index = Index.decode(bad)
    except PeatError as error:
        assert isinstance(error, InvalidInputError)
        return
    assert index != EXAMPLE and index.encode() == bad and index.digest != EXAMPLE.digest
