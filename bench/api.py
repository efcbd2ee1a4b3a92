"""Owns the measurement of the sidecar's API: calls per second and their times, beside bare HTTP handlers.

The sidecar is the real process on loopback; the caller is one process with a fixed number of calls in flight. The
baseline is an aiohttp handler that reads the body and answers with one of the same size, called in the same way: what
is between the two is Connect, the documents and (for writes) the disk.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from bench.result import Bench, Run, Scenario
from peat_p2p.client import Heartbeat, SidecarClient, SnapshotComplete, Upserted
from peat_p2p.core.lifecycle import read_endpoints

SERVICE = "/peat.sidecar.v1.PeatSidecar"
IN_FLIGHT = 16
AGENTS = 5_000


@asynccontextmanager
async def sidecar() -> AsyncIterator[str]:
    """A `peat sidecar` process; gives its URL."""
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "peat_p2p.cli.main", "sidecar", "--dev", "--no-mdns", "--log-level", "WARNING"),
            *("--data-dir", folder),
        )
        file = Path(folder) / "sidecar.json"
        try:
            async with asyncio.timeout(30):
                while not file.exists():  # noqa: ASYNC110  (another process makes it)
                    await asyncio.sleep(0.05)
            yield read_endpoints(file).api
        finally:
            process.terminate()
            await process.wait()


@asynccontextmanager
async def bare(answer: bytes) -> AsyncIterator[str]:
    """A bare handler in a process of its own that answers every POST with `answer`."""
    code = "import bench.api, sys; bench.api.serve_bare(bytes.fromhex(sys.argv[1]))"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, answer.hex()), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


def serve_bare(answer: bytes) -> None:
    """Run the bare handler for ever; its port goes to standard output."""

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=answer, content_type="application/json")

    async def main() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())


async def rate(call: Callable[[int], Awaitable[None]], seconds: float) -> dict[str, float]:
    """Calls per second with IN_FLIGHT at a time, and their median and 99th percentile in milliseconds."""
    times: list[float] = []
    loop = asyncio.get_running_loop()
    start = loop.time()
    end = start + seconds

    async def worker(number: int) -> None:
        turn = number
        while (before := loop.time()) < end:
            await call(turn)
            times.append(loop.time() - before)
            turn += IN_FLIGHT

    async with asyncio.TaskGroup() as group:
        for number in range(IN_FLIGHT):
            group.create_task(worker(number))
    cuts = statistics.quantiles(times, n=100)
    return {"per_s": len(times) / (loop.time() - start), "p50_ms": cuts[49] * 1e3, "p99_ms": cuts[98] * 1e3}


async def calls(run: Run) -> None:
    """Unary calls as any HTTP client makes them, in Connect JSON."""
    seconds = 1.0 if run.quick else 4.0
    beat = json.dumps(Heartbeat(agent_id="a", site="s", labels={"k": "v"}, last_seen=1).to_fields())
    run.parameter(seconds_each=seconds, in_flight=IN_FLIGHT, document_bytes=len(beat))
    async with sidecar() as url, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        def post(base: str, method: str, body: Callable[[int], object]) -> Callable[[int], Awaitable[None]]:
            async def call(turn: int) -> None:
                async with session.post(f"{base}{SERVICE}/{method}", json=body(turn)) as answer:
                    data = await answer.read()
                    if answer.status != 200:
                        raise RuntimeError(data.decode())

            return call

        def put(turn: int) -> object:
            return {
                "collection": "platforms",
                "docId": f"a{turn % 500}",
                "jsonData": beat.replace(": 1,", f": {turn},"),
            }

        def get(turn: int) -> object:
            return {"collection": "deployments", "docId": f"a{turn % 500}:p"}

        async with bare(json.dumps({"jsonData": beat}).encode()) as base:
            run.baseline("aiohttp handler, answers a document", await rate(post(base, "GetDocument", get), seconds))
            run.baseline("aiohttp handler, reads a document", await rate(post(base, "PutDocument", put), seconds))
        for name, method, body in (
            ("GetStatus", "GetStatus", lambda turn: {}),
            ("PutDocument (durable)", "PutDocument", put),
            ("GetDocument", "GetDocument", get),
        ):
            for figure, value in (await rate(post(url, method, body), seconds)).items():
                run.record(f"{name} {figure}", value)


async def collections(run: Run) -> None:
    """A fleet's heartbeats read in one call, and followed."""
    agents = 500 if run.quick else AGENTS
    run.parameter(agents=agents)
    async with sidecar() as url, SidecarClient(url, timeout=60) as client:
        async with asyncio.TaskGroup() as group:
            for part in range(IN_FLIGHT):
                group.create_task(_fill(client, range(part, agents, IN_FLIGHT)))

        async def timed(name: str, call: Callable[[], Awaitable[object]]) -> float:
            taken = []
            for _ in range(3):
                before = time.perf_counter()
                await call()
                taken.append(time.perf_counter() - before)
            return run.spread(name, taken, unit="s")

        one_by_one = time.perf_counter()
        for agent in range(min(agents, 200)):
            await client.get_document("platforms", f"agent-{agent}")
        run.baseline(
            "a call for each document", {"seconds": (time.perf_counter() - one_by_one) * agents / min(agents, 200)}
        )
        run.at_most(
            "read_collection", await timed("read_collection", lambda: client.read_collection("platforms")), 2, "s"
        )
        await timed("GetPlatforms", client.get_platforms)
        await timed("fleet()", client.fleet)

        async def snapshot() -> None:
            events = client.subscribe(["platforms"])
            async for event in events:
                if isinstance(event, SnapshotComplete):
                    break
            await events.aclose()

        await timed("snapshot of a subscription", snapshot)
        events = client.subscribe(["platforms"])
        while not isinstance(await anext(events), SnapshotComplete):
            pass
        delays = []
        for turn in range(200):
            before = time.perf_counter()
            await client.heartbeat(Heartbeat(agent_id="agent-0", last_seen=10_000 + turn))
            if not isinstance(await anext(events), Upserted):
                raise RuntimeError("a change was expected")
            delays.append(time.perf_counter() - before)
        await events.aclose()
        run.record("from a write to a subscriber, p99", statistics.quantiles(delays, n=100)[98] * 1e3, unit="ms")


async def _fill(client: SidecarClient, agents: range) -> None:
    for agent in agents:
        beat = Heartbeat(agent_id=f"agent-{agent}", site=f"site-{agent % 50}", labels={"rack": "7"}, last_seen=1)
        await client.heartbeat(beat)


BENCH = Bench(
    "api",
    "the sidecar's API: calls per second, whole collections, subscriptions",
    (
        Scenario("calls", "unary calls beside a bare aiohttp handler", calls),
        Scenario("collections", "5,000 heartbeats read in one call and followed", collections),
    ),
)
