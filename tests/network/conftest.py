"""Networks for tests: built only where they can be, with the reason said where they cannot."""

from __future__ import annotations

import pytest

from bench.net import why_not


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    for item in items:
        if item.get_closest_marker("network") is not None and reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
