"""Saying in time that the certificate will expire."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from peat_p2p.core.config import NodeConfig
from peat_p2p.sidecar.app import open_sidecar
from peat_p2p.sidecar.config import SidecarConfig
from peat_p2p.sidecar.expiry import remark
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role

DAY = 86_400.0


def test_it_is_said_from_thirty_days_before_on(tmp_path: Path) -> None:
    identity = Formation.init(tmp_path / "ca", "test").issue("edge-1", [Role.AGENT], tmp_path / "node", days=90)
    end = identity.not_after
    assert remark(identity, tmp_path, end - 31 * DAY) is None
    for left, words in (
        (29.5, "expires in 29 days"),
        (1.5, "expires in 1 day ("),
        (0.5, "expires in 0 days"),
        (-1, "has expired"),
    ):
        said = remark(identity, tmp_path / "node", end - left * DAY)
        assert said is not None
        assert words in said
        assert "edge-1" in said
        assert "peat formation renew" in said


async def test_a_sidecar_says_so_when_it_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    formation = Formation.init(tmp_path / "ca", "test")
    for name, days, said in (("soon", 10, True), ("late", 300, False)):
        formation.issue(name, [Role.AGENT], tmp_path / name, days=days)
        node = NodeConfig(data_dir=tmp_path / f"data-{name}", formation=tmp_path / name, mdns=False)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            async with open_sidecar(SidecarConfig(node=node)):
                await asyncio.sleep(0.1)
        assert ("expires in 9 days" in caplog.text) is said
