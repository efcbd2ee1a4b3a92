"""The index of a package: its entries and the chunks its content is cut into, in one canonical encoding.

Owns the rules between entries and the encoding of proto/peat/content/v1/index.proto. Rule: an `Index` that exists is
valid, and one index has one encoding, so its BLAKE3 digest names it. What comes from outside is refused with
InvalidInputError, whatever its bytes. Must not touch a disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from blake3 import blake3

from peat_p2p.content.entries import FileEntry, Kind, Part, Recipe, components
from peat_p2p.core.errors import InvalidInputError, TooLargeError
from peat_p2p.wire.gen.peat.content.v1 import index_pb as pb

SCHEMA = 1
MAX_CHUNK_BYTES = 16 << 20
MAX_INDEX_BYTES = 128 << 20
MIN_AVERAGE = 1 << 10
MAX_AVERAGE = 4 << 20
_DIGEST_BYTES = 32
CHECK_BYTES = 16
# Front coding lets a small message name long paths; this bounds what decoding may take.
_MAX_PATHS_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """A chunk as it is stored and sent: the BLAKE3 digest (32 bytes) and the size of its file.

    A chunk that became smaller by it is stored as one zstd frame. Then `length` is the size of its content and `check`
    the first 16 bytes of that content's BLAKE3; otherwise they are 0 and empty.
    """

    digest: bytes
    size: int
    length: int = 0
    check: bytes = b""

    @property
    def content_size(self) -> int:
        """Bytes of content."""
        return self.length or self.size

    @property
    def content_check(self) -> bytes:
        """The first 16 bytes of the BLAKE3 of the content."""
        return self.check or self.digest[:CHECK_BYTES]

    @property
    def hex(self) -> str:
        """The digest as 64 hex digits: the chunk's name in the store."""
        return self.digest.hex()


@dataclass(frozen=True)
class Index:
    """Entries in canonical order, and chunks in the order of the content stream (a chunk may occur more than once).

    `root_mode` is the mode of the top directory, 0 for a package of one single file. `average` is the chunk size the
    content was cut for. Making an Index that breaks a rule raises InvalidInputError.
    """

    files: tuple[FileEntry, ...]
    chunks: tuple[ChunkRef, ...]
    average: int = 16 << 10
    root_mode: int = field(default=0o755)

    def __post_init__(self) -> None:
        _check_entries(self)
        _check_chunks(self)

    @property
    def is_single_file(self) -> bool:
        """Whether the package is one file rather than a directory."""
        return self.root_mode == 0

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of all files as delivered."""
        return sum(entry.size for entry in self.files)

    @cached_property
    def content_bytes(self) -> int:
        """Bytes of the content stream, each repeated chunk counted each time."""
        return sum(chunk.content_size for chunk in self.chunks)

    @cached_property
    def unique_chunks(self) -> tuple[ChunkRef, ...]:
        """Every chunk once, in ascending order of digests: what is stored and sent."""
        return tuple(sorted(set(self.chunks), key=lambda chunk: chunk.digest))

    @cached_property
    def unique_bytes(self) -> int:
        """Bytes of every chunk once, as stored and sent."""
        return sum(chunk.size for chunk in self.unique_chunks)

    @cached_property
    def digest(self) -> str:
        """The name of this index: `blake3:` and 64 hex digits."""
        return f"blake3:{blake3(self.encode()).hexdigest()}"

    @cached_property
    def _encoded(self) -> bytes:
        return _to_message(self).to_binary()

    def encode(self) -> bytes:
        """The canonical bytes."""
        return self._encoded

    @classmethod
    def decode(cls, data: bytes) -> Index:
        """Read canonical bytes from anywhere. Raises InvalidInputError for anything else."""
        if len(data) > MAX_INDEX_BYTES:
            raise TooLargeError(f"a package index of {len(data)} bytes is over the limit of {MAX_INDEX_BYTES}")
        try:
            message = pb.PackageIndex.from_binary(data)
        except (ValueError, OverflowError, RecursionError) as error:
            raise InvalidInputError(f"not a package index: {error}") from error
        index = _from_message(message)
        if index.encode() != data:
            raise InvalidInputError("not a package index in canonical form")
        return index


def _check_entries(index: Index) -> None:
    if not 0 <= index.root_mode <= 0o7777:
        raise InvalidInputError(f"mode {index.root_mode:o} of the top directory is outside 0-7777")
    if index.is_single_file and (len(index.files) != 1 or "/" in index.files[0].path):
        raise InvalidInputError("a package of a single file must have exactly one entry, at its top")
    if index.is_single_file and index.files[0].kind is not Kind.FILE:
        raise InvalidInputError("a package of a single file has an entry that is no file")
    last: tuple[bytes, ...] = ()
    open_directories: list[tuple[bytes, ...]] = [()]
    for entry in index.files:
        key = components(entry.path)
        if key <= last:
            raise InvalidInputError(f"path {entry.path!r} is there twice or out of order")
        last = key
        # In this order whatever lies in a directory follows it at once, so a stack of open directories is enough to
        # know that each parent is a directory of the package, and no file or link.
        parent = key[:-1]
        while open_directories[-1] != parent[: len(open_directories[-1])]:
            open_directories.pop()
        if open_directories[-1] != parent:
            raise InvalidInputError(f"path {entry.path!r} is not inside a directory of the package")
        if entry.kind is Kind.DIRECTORY:
            open_directories.append(key)


def _check_chunks(index: Index) -> None:
    if not (MIN_AVERAGE <= index.average <= MAX_AVERAGE) or index.average & (index.average - 1):
        raise InvalidInputError(f"average chunk size {index.average} is no power of two from 1 KiB to 4 MiB")
    known: dict[bytes, ChunkRef] = {}
    total = 0
    for chunk in index.chunks:
        if len(chunk.digest) != _DIGEST_BYTES:
            raise InvalidInputError("a chunk's digest is not 32 bytes")
        if not 1 <= chunk.size <= MAX_CHUNK_BYTES:
            raise InvalidInputError(f"chunk {chunk.hex} of {chunk.size} bytes is empty or over {MAX_CHUNK_BYTES}")
        if chunk.length and not chunk.size < chunk.length <= MAX_CHUNK_BYTES:
            raise InvalidInputError(f"chunk {chunk.hex} of {chunk.size} bytes cannot hold {chunk.length}")
        if len(chunk.check) != (CHECK_BYTES if chunk.length else 0):
            raise InvalidInputError(f"chunk {chunk.hex} has a check where it needs none, or none where it needs one")
        if known.setdefault(chunk.digest, chunk) != chunk:
            raise InvalidInputError(f"chunk {chunk.hex} is described in two ways")
        total += chunk.content_size
    content = sum(entry.content_bytes for entry in index.files)
    if total != content:
        raise InvalidInputError(f"the chunks are {total} bytes, the files' content {content}")


def _to_message(index: Index) -> pb.PackageIndex:
    paths, shared = _front_code([entry.path for entry in index.files])
    numbered = list(enumerate(index.files))
    return pb.PackageIndex(
        schema=SCHEMA,
        average=index.average,
        root_mode=index.root_mode,
        entry_paths=paths,
        entry_shared=shared,
        entry_kinds=[int(entry.kind) for entry in index.files],
        entry_modes=[entry.mode for entry in index.files],
        entry_sizes=[entry.size for entry in index.files],
        link_targets=[entry.target for entry in index.files if entry.kind is Kind.SYMLINK],
        chunk_digests=b"".join([chunk.digest for chunk in index.chunks]),
        chunk_sizes=[chunk.size for chunk in index.chunks],
        chunk_lengths=[chunk.length for chunk in index.chunks],
        chunk_checks=b"".join([chunk.check for chunk in index.chunks]),
        attributes=[
            pb.Attribute(entry=number, name=name, value=value)
            for number, entry in numbered
            for name, value in entry.xattrs
        ],
        sparse=[pb.Sparse(entry=number, runs=list(entry.runs)) for number, entry in numbered if entry.runs],
        recipes=[_recipe_message(number, entry.recipe) for number, entry in numbered if entry.recipe],
    )


def _recipe_message(number: int, recipe: Recipe) -> pb.Recipe:
    parts = [
        pb.Part(
            content_bytes=part.content_bytes,
            output_bytes=part.output_bytes,
            codec=part.codec,
            parameters=list(part.parameters),
        )
        for part in recipe.parts
    ]
    return pb.Recipe(entry=number, sha256=recipe.sha256, parts=parts)


def _from_message(message: pb.PackageIndex) -> Index:
    if message.schema != SCHEMA:
        raise InvalidInputError(f"package index of schema {message.schema}; this program reads schema {SCHEMA}")
    count = len(message.entry_paths)
    columns = (message.entry_shared, message.entry_kinds, message.entry_modes, message.entry_sizes)
    if any(len(column) != count for column in columns):
        raise InvalidInputError("the columns of the package index differ in length")
    xattrs: dict[int, list[tuple[str, bytes]]] = {}
    for attribute in message.attributes:
        xattrs.setdefault(attribute.entry, []).append((attribute.name, attribute.value))
    runs = {sparse.entry: tuple(sparse.runs) for sparse in message.sparse}
    recipes = {recipe.entry: _recipe_of(recipe) for recipe in message.recipes}
    targets = iter(message.link_targets)
    files = []
    for number, path in enumerate(_front_decode(message.entry_paths, message.entry_shared)):
        try:
            kind = Kind(message.entry_kinds[number])
        except ValueError as error:
            raise InvalidInputError(f"{path!r} is of unknown kind {message.entry_kinds[number]}") from error
        files.append(
            FileEntry(
                path,
                kind,
                message.entry_modes[number],
                message.entry_sizes[number],
                next(targets, "") if kind is Kind.SYMLINK else "",
                tuple(xattrs.get(number, ())),
                runs.get(number, ()),
                recipes.get(number),
            )
        )
    return Index(tuple(files), tuple(_chunks_of(message)), message.average, message.root_mode)


def _chunks_of(message: pb.PackageIndex) -> Iterator[ChunkRef]:
    digests, sizes, lengths = message.chunk_digests, message.chunk_sizes, message.chunk_lengths
    packed = sum(1 for length in lengths if length)
    if len(digests) != _DIGEST_BYTES * len(sizes) or len(lengths) != len(sizes):
        raise InvalidInputError("the package index has not one digest, size and length for each chunk")
    if len(message.chunk_checks) != CHECK_BYTES * packed:
        raise InvalidInputError("the package index has not one check for each packed chunk")
    at = 0
    for number, (size, length) in enumerate(zip(sizes, lengths, strict=True)):
        check = message.chunk_checks[at : at + CHECK_BYTES] if length else b""
        at += len(check)
        yield ChunkRef(digests[number * _DIGEST_BYTES : (number + 1) * _DIGEST_BYTES], size, length, check)


def _recipe_of(message: pb.Recipe) -> Recipe:
    return Recipe(
        message.sha256,
        tuple(
            Part(part.content_bytes, part.output_bytes, part.codec, tuple(part.parameters)) for part in message.parts
        ),
    )


def _front_code(paths: Sequence[str]) -> tuple[list[str], list[int]]:
    """Each path without the components it shares with the one before, and how many those are."""
    parts = [path.split("/") for path in paths]
    rest, shared = ["/".join(parts[0])] if parts else [], [0] if parts else []
    for before, here in pairwise(parts):
        same = 0
        while same < len(before) and same < len(here) - 1 and before[same] == here[same]:
            same += 1
        rest.append("/".join(here[same:]))
        shared.append(same)
    return rest, shared


def _front_decode(rest: Sequence[str], shared: Sequence[int]) -> Iterator[str]:
    before: list[str] = []
    total = 0
    for text, same in zip(rest, shared, strict=True):
        if same > len(before):
            raise InvalidInputError(f"path {text!r} shares more with the path before than that has")
        before = before[:same] + text.split("/")
        path = "/".join(before)
        total += len(path)
        if total > _MAX_PATHS_BYTES:
            raise TooLargeError(f"the paths of the package index take more than {_MAX_PATHS_BYTES} bytes")
        yield path
