"""`peat demo`: a package crosses a fleet of real processes while the hub is dead."""

from __future__ import annotations

from peat_p2p.cli.demo.command import demo

__all__ = ["demo"]
