import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.fleet.versions import newest, version_key

CHAINS = [
    # SemVer 2.0.0, section 11
    "1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0 2.0.0 2.1.1",
    # PEP 440
    "1.0.dev456 1.0a1 1.0a2.dev456 1.0a2 1.0b1 1.0b2 1.0rc1.dev1 1.0rc1 1.0 1.0.post1 1.1.dev1 1!0.5",
    # what packages of packages do
    "0.9.1-uds.0 0.9.1-uds.1 0.9.1-uds.10 0.10.0-uds.0 v0.11.0",
    "1.25.0 1.25.0-uds.0 1.25.1-rc.1 1.25.1",
    "9 10 11.2 11.10",
    "1.2.3 1.2.3+build.9 1.2.3+build.10",
    "latest 0.1",
    "2024-01-31 2024-02-01 2024.3",
]


@pytest.mark.parametrize("chain", CHAINS)
def test_known_orders(chain: str) -> None:
    versions = chain.split()
    for older, newer in itertools.combinations(versions, 2):
        assert version_key(older) < version_key(newer), f"{older} < {newer}"
    assert newest(reversed(versions)) == versions[-1]


def test_missing_parts_are_zero_and_ties_are_broken_the_same_way_everywhere() -> None:
    assert version_key("1.0")[:4] == version_key("1.0.0")[:4] == version_key("v1")[:4]
    assert newest(["1.0", "1.0.0"]) == newest(["1.0.0", "1.0"])


def test_the_newest_of_nothing() -> None:
    assert newest([]) is None


def test_absurd_numbers_cost_nothing() -> None:
    assert version_key("9" * 100_000 + "." + "9" * 100_000) > version_key("9" * 30)


VERSION = st.text(alphabet="0123456789.-+abrcdevV!:_~ é٣", max_size=16)


@given(st.lists(VERSION, min_size=2, max_size=6, unique=True))
def test_any_texts_have_one_order(versions: list[str]) -> None:
    back = versions[::-1]
    assert sorted(versions, key=version_key) == sorted(back, key=version_key)
    assert len({version_key(v) for v in versions}) == len(versions)
