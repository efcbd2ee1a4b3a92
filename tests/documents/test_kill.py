"""SIGKILL at any moment: what was acknowledged is there, and what others had been given is never different."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from peat_p2p.core.clock import SystemClock
from peat_p2p.documents.replica import Replica
from peat_p2p.documents.types import PartKey
from peat_p2p.trust.credentials import NodeCredentials

# Four lanes write as fast as they can, one write at a time each; what is acknowledged and what links could send is said
# on stdout. What a lane does next follows from its number, so the test knows the one write that may be under way.
WRITER = """
import asyncio, json, sys
from pathlib import Path
from peat_p2p.core.clock import SystemClock
from peat_p2p.documents.codec import encode_update
from peat_p2p.documents.replica import Replica
from peat_p2p.trust.credentials import NodeCredentials

PLAN

async def write(replica, lane, number):
    while True:
        number += 1
        kind, doc_id = plan(lane, number)
        if kind == "gone":
            await replica.delete("things", doc_id)
        elif kind == "beat":
            await replica.put("platforms", doc_id, json.dumps({"last_seen": 1700000000 + number}))
        else:
            await replica.put("things", doc_id, json.dumps({"n": number, "lane": lane}))
        print(json.dumps(["said", lane, number]), flush=True)

async def send(replica):
    # What a link would send: once it is out, this seq stands for this state for ever.
    sent = [0, 0, 0, 0]
    while True:
        for klass in range(4):
            for seq, key in replica.changed_since(klass, sent[klass], 50):
                update = replica.make_update(key)
                if update is not None and replica.seq(key) == seq:
                    print(json.dumps(["sent", list(key), list(replica.version(key) or ()), seq]), flush=True)
                sent[klass] = seq
        await asyncio.sleep(0.001)

async def main():
    credentials = NodeCredentials.load(Path(sys.argv[1]))
    async with Replica.open(Path(sys.argv[2]), credentials, SystemClock()) as replica:
        print(json.dumps(["open", replica.epoch.hex()]), flush=True)
        async with asyncio.TaskGroup() as group:
            for lane in range(4):
                group.create_task(write(replica, lane, int(sys.argv[3])))
            group.create_task(send(replica))

asyncio.run(main())
"""

LANES = range(4)


def plan(lane, number):
    """What a lane does as its write `number`: kind and document."""
    if number % 5 == 0:
        return "gone", f"{lane}-{number % 7}"
    if number % 3 == 0:
        return "beat", f"p{lane}"
    return "put", f"{lane}-{number % 7}"


WRITER = WRITER.replace("PLAN", inspect.getsource(plan))


class History:
    """What a writer said before it was killed."""

    def __init__(self) -> None:
        self.epoch = ""
        self.numbers = dict.fromkeys(LANES, 0)
        self.state: dict[str, int | None] = {}
        self.sent: dict[tuple, tuple[tuple, int]] = {}

    @property
    def start(self) -> int:
        return max(self.numbers.values()) + 10

    def hear(self, line: str) -> None:
        kind, *rest = json.loads(line)
        if kind == "open":
            assert self.epoch in ("", rest[0]), "another database"
            self.epoch = rest[0]
        elif kind == "sent":
            self.sent[tuple(rest[0])] = (tuple(rest[1]), rest[2])
        else:
            lane, number = rest
            what, doc_id = plan(lane, number)
            self.numbers[lane] = number
            self.state[doc_id] = None if what == "gone" else number


def run_and_kill(credentials: NodeCredentials, path: Path, history: History, seconds: float) -> None:
    history.numbers = dict.fromkeys(LANES, history.start)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(credentials.directory), str(path), str(history.numbers[0])],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    history.hear(process.stdout.readline())
    killer = threading.Timer(seconds, process.kill)
    killer.start()
    for line in process.stdout:
        if line.endswith("\n"):
            history.hear(line)
    assert process.wait() == -signal.SIGKILL
    killer.join()


async def check(credentials: NodeCredentials, path: Path, history: History) -> None:
    async with Replica.open(path, credentials, SystemClock()) as replica:
        assert replica.epoch.hex() == history.epoch
        # One write of each lane was under way: it may have been made, though nobody was told.
        under_way = {}
        for lane in LANES:
            what, doc_id = plan(lane, history.numbers[lane] + 1)
            under_way[doc_id] = None if what == "gone" else history.numbers[lane] + 1
        for doc_id in history.state | under_way:
            document = replica.get("platforms" if doc_id[0] == "p" else "things", doc_id)
            value = json.loads(document.json) if document else None
            found = None if value is None else value["n"] if "n" in value else value["last_seen"] - 1_700_000_000
            said = history.state.get(doc_id)
            assert found in {said, under_way.get(doc_id, said)}, f"{doc_id}: {found}, not {said}"
            history.state[doc_id] = found
        for fields, (version, seq) in history.sent.items():
            key = PartKey(*fields)
            if key.collection == "_certificates":
                continue
            now = replica.version(key)
            assert now is not None
            assert now >= version, "what was sent is undone"
            assert now != version or replica.seq(key) == seq, "a number stands for another state"


async def kills(credentials: NodeCredentials, path: Path, count: int, seed: int) -> None:
    randomness = random.Random(seed)
    history = History()
    for _ in range(count):
        await asyncio.to_thread(run_and_kill, credentials, path, history, randomness.uniform(0.01, 0.4))
        await check(credentials, path, history)
    assert history.start > 10 * count


async def test_acknowledged_writes_survive_sigkill(nodes, tmp_path):
    await kills(nodes["alpha"], tmp_path / "documents.db", 4, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_acknowledged_writes_survive_two_hundred_kills(nodes, tmp_path):
    await kills(nodes["alpha"], tmp_path / "documents.db", 200, seed=2)
