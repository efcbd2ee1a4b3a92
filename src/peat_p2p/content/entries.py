"""The entries of a package: files, directories, symbolic links.

Owns the types and the rules one entry must keep by itself; rules between entries are `index.py`'s. Must not touch a
disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from peat_p2p.core.errors import InvalidInputError

_PATH_BYTES = 4095
_NAME_BYTES = 255
# What `check_path` accepts, but for the total length; packages have a hundred thousand paths. No possessive
# quantifiers: re of Python 3.11.2 (Debian 12) lets "a/" pass with one.
_GOOD_PATH = re.compile(rb"(?!\.{1,2}(?:/|\Z))[^/\0]{1,255}(?:/(?!\.{1,2}(?:/|\Z))[^/\0]{1,255})*", re.DOTALL)
_MODE_BITS = 0o7777
_SIZE_LIMIT = 1 << 60
_XATTR_NAME = re.compile(r"[!-~]{1,255}")
_XATTR_BYTES = 65536
_CODEC = re.compile(r"[a-z][a-z0-9-]{0,31}")
_PARAMETERS = 16


class Kind(IntEnum):
    """What an entry is."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a file: `content_bytes` of the content stream become `output_bytes` of the file through `codec`."""

    content_bytes: int
    output_bytes: int
    codec: str = ""
    parameters: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a file is put together from parts, and the SHA-256 it must have then."""

    sha256: bytes
    parts: tuple[Part, ...]

    @property
    def codecs(self) -> tuple[str, ...]:
        """The codecs that make it, each once, with the level first of their parameters: `deflate 6`, `zstd 3`."""
        names = (f"{part.codec} {part.parameters[0]}" for part in self.parts if part.codec and part.parameters)
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file, directory or symbolic link. Raises InvalidInputError if it breaks a rule.

    `runs` of a sparse file are the lengths of hole, data, hole, data ... from its start; only data is in the content.
    """

    path: str
    kind: Kind
    mode: int
    size: int = 0
    target: str = ""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    runs: tuple[int, ...] = ()
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        check_path(self.path)
        if not 0 <= self.mode <= _MODE_BITS:
            raise InvalidInputError(f"{self.path!r}: mode {self.mode:o} is outside 0-7777")
        if not 0 <= self.size < _SIZE_LIMIT:
            raise InvalidInputError(f"{self.path!r}: size {self.size} is out of range")
        if self.kind is not Kind.FILE and (self.size or self.runs or self.recipe):
            raise InvalidInputError(f"{self.path!r} is no file but has content")
        if self.kind is Kind.SYMLINK:
            _check_target(self.path, self.target)
            if self.mode:
                raise InvalidInputError(f"{self.path!r}: a link has no mode of its own")
        elif self.target:
            raise InvalidInputError(f"{self.path!r} is no link but has a target")
        if self.xattrs:
            _check_xattrs(self.path, self.xattrs)
        if self.runs:
            _check_runs(self.path, self.size, self.runs)
        if self.recipe:
            _check_recipe(self.path, self.size, self.recipe)
            if self.runs:
                raise InvalidInputError(f"{self.path!r}: a sparse file has no recipe")

    @property
    def content_bytes(self) -> int:
        """How much of the content stream belongs to this entry."""
        if self.recipe:
            return sum(part.content_bytes for part in self.recipe.parts)
        return sum(self.runs[1::2]) if self.runs else self.size

    @property
    def is_plain(self) -> bool:
        """Whether the file's bytes are its part of the content stream as it is."""
        return self.kind is Kind.FILE and not self.runs and self.recipe is None

    def data_extents(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of each stretch of data in the file, in order. Not for a file with a recipe."""
        if not self.runs:
            yield (0, self.size)
            return
        offset = 0
        for number, length in enumerate(self.runs):
            if number % 2:
                yield (offset, length)
            offset += length


def components(path: str) -> tuple[bytes, ...]:
    """The sort key of entries: the components' UTF-8 bytes."""
    return tuple(path.encode().split(b"/"))


def check_path(path: str) -> None:
    """Refuse what could lie outside the package or could not be a file. Raises InvalidInputError."""
    try:
        data = path.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"path {path!r} is not UTF-8; rename the file") from error
    if len(data) <= _PATH_BYTES and _GOOD_PATH.fullmatch(data):
        return
    if not data or len(data) > _PATH_BYTES or b"\0" in data:
        raise InvalidInputError(f"path {path!r} is empty, longer than {_PATH_BYTES} bytes or has a NUL")
    for name in data.split(b"/"):
        if name in (b"", b".", b".."):
            raise InvalidInputError(f"path {path!r} is absolute or has an empty, '.' or '..' component")
    raise InvalidInputError(f"path {path!r} has a component longer than {_NAME_BYTES} bytes")


def _check_target(path: str, target: str) -> None:
    try:
        data = target.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"link {path!r}: its target {target!r} is not UTF-8") from error
    if not data or len(data) > _PATH_BYTES or b"\0" in data:
        raise InvalidInputError(f"link {path!r}: its target is empty, longer than {_PATH_BYTES} bytes or has a NUL")


def _check_xattrs(path: str, xattrs: tuple[tuple[str, bytes], ...]) -> None:
    names = [name for name, _ in xattrs]
    if sorted(set(names)) != names:
        raise InvalidInputError(f"{path!r}: extended attributes are not in ascending order")
    for name, value in xattrs:
        if not _XATTR_NAME.fullmatch(name) or len(value) > _XATTR_BYTES:
            raise InvalidInputError(f"{path!r}: extended attribute {name!r} has a bad name or is too long")


def _check_runs(path: str, size: int, runs: tuple[int, ...]) -> None:
    # One form for one layout: a hole only at the very start may be empty, so that data may come first.
    if len(runs) > 1 << 20 or any(run <= 0 for run in runs[1:]) or runs[0] < 0 or sum(runs) != size:
        raise InvalidInputError(f"{path!r}: its holes do not add up to its size")
    if len(runs) < 3 and runs[0] == 0:
        raise InvalidInputError(f"{path!r}: marked sparse but has no hole")


def _check_recipe(path: str, size: int, recipe: Recipe) -> None:
    if len(recipe.sha256) != 32:
        raise InvalidInputError(f"{path!r}: its SHA-256 is not 32 bytes")
    if not recipe.parts or len(recipe.parts) > 1 << 16:
        raise InvalidInputError(f"{path!r}: its recipe has no parts or too many")
    output = 0
    for part in recipe.parts:
        if not (0 <= part.content_bytes < _SIZE_LIMIT and 0 < part.output_bytes < _SIZE_LIMIT):
            raise InvalidInputError(f"{path!r}: a part of its recipe has an impossible size")
        if part.codec:
            if not _CODEC.fullmatch(part.codec) or len(part.parameters) > _PARAMETERS:
                raise InvalidInputError(f"{path!r}: a part of its recipe names codec {part.codec!r} wrongly")
        elif part.content_bytes != part.output_bytes or part.parameters:
            raise InvalidInputError(f"{path!r}: a plain part of its recipe changes size")
        output += part.output_bytes
    if output != size:
        raise InvalidInputError(f"{path!r}: the parts of its recipe make {output} bytes, not {size}")
