"""Agents in processes of their own, killed with SIGKILL."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from peat_p2p.content.store import ChunkStore

CHILD = Path(__file__).parent / "kill_child.py"


async def test_a_killed_agent_fetches_nothing_twice_but_what_was_in_flight(node, content, tmp_path, formation_dir):
    ann = node("ann")
    package = ann.publish(content(size=6_000_000))
    engine = await ann.start(upload_limit=2_000_000)
    await engine.seed(package)
    (tmp_path / "envelope").write_text(json.dumps(package.envelope))
    arguments = json.dumps(
        {
            "node": str(formation_dir / "bob"),
            "endpoint": ann.credentials.identity.endpoint_id,
            "swarm": str(engine.swarm_address),
            "metadata": str(engine.metadata_address),
            "envelope": str(tmp_path / "envelope"),
            "store": str(tmp_path / "bob-store"),
        }
    )

    async def run(kill_at: int | None) -> list[list]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(CHILD), arguments, stdout=asyncio.subprocess.PIPE
        )
        seen = []
        assert process.stdout is not None
        async for line in process.stdout:
            seen.append(json.loads(line))
            if kill_at is not None and seen[-1][0] == "fetching" and seen[-1][1] >= kill_at:
                process.kill()
                break
        await process.wait()
        return seen

    total = package.index.unique_bytes
    async with asyncio.timeout(60):
        first = await run(total // 3)
        second = await run(2 * total // 3)
        third = await run(None)
    assert first[-1][0] == second[-1][0] == "fetching"
    assert next(status[1] for status in second if status[0] == "fetching") >= first[-1][1]
    assert next(status[1] for status in third if status[0] == "fetching") >= second[-1][1]
    state, verified, received, wasted = third[-1]
    assert (state, verified) == ("complete", total)
    largest = max(chunk.size for chunk in package.index.chunks)
    # Each kill costs what was in flight: a few started chunks and the last tick's worth of the limited rate.
    assert wasted == received - total <= 2 * (2_000_000 + 4 * largest)
    with ChunkStore.open(tmp_path / "bob-store") as store:
        assert store.missing(package.index) == set()
        assert store.package(package.manifest_digest) == package
