"""Which of two versions is newer.

Owns one total order over any version text, in the spirit of SemVer, PEP 440 and the package managers: numbers compare
as numbers, missing trailing parts are zero, words that announce a release (`alpha`, `beta`, `rc`, `dev`) come before
it, any other suffix (`-uds.1`, `.post1`, `-2`) after it. `1!2.0` and `1:2.0` give an epoch. Build metadata after `+`
and then the text itself break ties, so that no two texts are equal and every agent agrees. Needs no library: those
that exist know one scheme each, and refuse the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias

_Token: TypeAlias = tuple[int, int, str]
VersionKey: TypeAlias = tuple[int, tuple[int, ...], tuple[_Token, ...], tuple[_Token, ...], str]

_EPOCH = re.compile(r"(\d{1,9})[!:](.+)", re.DOTALL)
_RELEASE = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_PART = re.compile(r"[0-9]+|[a-z]+")
_BEFORE = {"dev": 0, "snapshot": 0, "nightly": 0, "a": 1, "alpha": 1, "b": 2, "beta": 2, "pre": 3, "preview": 3}
_BEFORE |= {"c": 4, "rc": 4}
_RANK_BEFORE, _RANK_END, _RANK_NUMBER, _RANK_WORD = 0, 1, 2, 3
_END: _Token = (_RANK_END, 0, "")
# int() of a long text of digits is quadratic, and refuses over 4,300 digits.
_MAX_DIGITS = 40


@lru_cache(maxsize=65536)
def version_key(version: str) -> VersionKey:
    """A key that sorts versions from old to new."""
    rest, _, build = version.strip().lower().partition("+")
    epoch = 0
    if found := _EPOCH.fullmatch(rest):
        epoch, rest = int(found[1]), found[2]
    rest = rest.removeprefix("v")
    release: list[int] = []
    if found := _RELEASE.match(rest):
        release = [_number(part) for part in found[0].split(".")]
        rest = rest[found.end() :]
    while release and release[-1] == 0:
        release.pop()
    return epoch, tuple(release), _tokens(rest), _tokens(build) if build else (), version


def newest(versions: Iterable[str]) -> str | None:
    """The newest version, or None if there is none."""
    return max(versions, key=version_key, default=None)


def _tokens(text: str) -> tuple[_Token, ...]:
    parts = _PART.findall(text)
    # SemVer: 1.0-alpha.beta comes after 1.0-alpha. PEP 440: 1.0a1.dev1 comes before 1.0a1.
    early = bool(parts) and parts[0] in _BEFORE
    return (*(_token(part, before=n == 0 or not early or part == "dev") for n, part in enumerate(parts)), _END)


def _token(part: str, *, before: bool) -> _Token:
    if part.isdigit():
        return (_RANK_NUMBER, _number(part), "")
    if before and part in _BEFORE:
        return (_RANK_BEFORE, _BEFORE[part], "")
    return (_RANK_WORD, 0, part)


def _number(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS
