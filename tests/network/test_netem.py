"""Links made by the kernel's own emulation are the links that ours makes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from bench.net import pair, parse
from bench.net.netem import second_stage, why_not
from bench.net.shape import Burst, Episode, Pipe, Shape
from bench.net.topology import TopologyError
from tests.network import other_kernel
from tests.network.test_network import BACKENDS

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 300


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 20)
def test_the_network_tests_pass_on_a_kernel_that_has_netem(tmp_path: Path) -> None:
    if why_not(pair()) is None:
        assert "netem" in BACKENDS  # this kernel has it: the network tests beside this one use it
        return
    reason = other_kernel.why_not()
    if reason is not None:
        pytest.skip(f"this kernel has no netem, and no other can be started: {reason}")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp=/run/tmp/pytest", "-rA"]
    words += ["tests/network/test_network.py", "-k", "not killed_bench"]  # its tools take minutes in there
    code, log = other_kernel.run(words, tmp_path, ROOT, SECONDS, {"PEAT_TEST_BACKEND": "netem"})
    assert code == 0, log
    passed = re.search(r"(\d+) passed", log)
    assert passed is not None
    assert "skipped" not in log, log
    assert "PASSED tests/network/test_network.py::test_burst_loss[netem]" in log


def test_what_netem_cannot_do_is_said() -> None:
    channel = parse({"sites": {"a": ["a0"], "b": ["b0"], "c": ["c0"]}, "links": [{"between": ["a", "b", "c"]}]})
    assert why_not(channel) == "a-b-c is a shared channel"
    assert why_not(pair("manet")) == "link is a shared channel"
    assert why_not(pair(delay=0.1, jitter=0.05, reorder=True)) == "link lets packets overtake"
    with pytest.raises(TopologyError, match="there is no backend 'ether'; there are auto, tun, netem"):
        pair(backend="ether")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (Shape(rate=2e6, delay=0.3, loss=0.01), "delay 300000us loss 1% rate 2000000bit"),
        (Shape(), "delay 0us loss 0% rate 100000000000bit"),
        (Shape(burst=Burst(0.02, 0.25, 0.5), loss=0.1), "delay 0us loss gemodel 2% 25% 55% 10% rate 100000000000bit"),
        (
            Shape(delay=0.05, loss=0.5, episodes=(Episode(0.5, 2.0, 10.0),)),
            "delay 50000us loss 75% rate 100000000000bit",
        ),
    ],
)
def test_what_tc_is_told(shape: Shape, words: str) -> None:
    assert second_stage(Pipe(shape, "seed", epoch=0.0), 11.0, 0.0) == words


def test_a_link_that_is_down_lets_nothing_pass() -> None:
    pipe = Pipe(Shape(delay=0.05, burst=Burst(0.1, 0.1)), "seed")
    assert second_stage(pipe, 1.0, 0.02, down=True) == "delay 70000us loss 100% rate 100000000000bit"
