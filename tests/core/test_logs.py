from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from peat_p2p.core.logs import configure_logging


@pytest.fixture(autouse=True)
def _restore_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_carry_the_message_the_extras_and_the_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    configure_logging("json")
    try:
        raise ValueError("bad")
    except ValueError:
        logging.getLogger("x").exception("it failed: %s", "so", extra={"peer": "e1"})
    line = json.loads(out.getvalue())
    assert line["message"] == "it failed: so"
    assert line["level"] == "error"
    assert line["peer"] == "e1"
    assert "ValueError: bad" in line["exception"]


def test_text_lines_name_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    configure_logging("text", node_id="edge-1")
    logging.getLogger("x").info("hello")
    assert " edge-1 x: hello" in out.getvalue()
