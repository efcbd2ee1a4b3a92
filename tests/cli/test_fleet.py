"""`peat fleet`: who is there, and who is said to be up to no good."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from peat_p2p.client import SyncSidecarClient


def test_suspects_are_named_with_those_who_say_so(start: Callable[..., Any]) -> None:
    node = start("sidecar", "--dev")
    with SyncSidecarClient(node.ready["api"]) as sidecar:
        for agent, suspects in (("a1", ["m1", 7]), ("a2", ["m1", "m\x1b2"]), ("m1", "nonsense")):
            beat = {"agent_id": agent, "last_seen": int(time.time()), "suspects": suspects}
            sidecar.put_document("platforms", agent, beat)
    found = {agent["agent_id"]: agent for agent in json.loads(node.peat("fleet", "--json").stdout)}
    assert found["a1"]["suspects"] == ["m1"] and found["a1"]["suspected_by"] == []
    assert found["m1"]["suspects"] == [] and found["m1"]["suspected_by"] == ["a1", "a2"]
    shown = node.peat("fleet").stdout
    assert "suspect: m1 sent bytes that did not verify, says a1, a2" in shown
    assert "\x1b" not in shown
