"""Swarm: one to one, one to many, over a thin link, with bad peers, with deaths, with very many packages.

Agents are real processes with real stores and real libtorrent; links are emulated by bench/net. Rivals run on the same
link in the same run where they are installed. What agents know of each other is told to them twice a second, as the
mesh would.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from bench import store, update
from bench.net import Network, pair, parse, why_not
from bench.net.topology import Topology
from bench.result import Bench, Run, Scenario
from bench.rivals import RIVALS, Place, RivalError
from bench.swarm_fleet import fleet, random_file
from peat_p2p.content.publish import publish
from peat_p2p.content.store import ChunkStore
from peat_p2p.core.clock import SystemClock
from peat_p2p.swarm.torrent import torrent_builder

MB = 1_000_000
ETHERNET_SHARE = 1448 / 1500  # what is left of a full packet for TCP's payload


def _network(topology: Topology) -> Network:
    reason = why_not()
    if reason:
        raise RuntimeError(f"this scenario needs an emulated network: {reason}")
    return Network(topology)


def _star(names: Sequence[str], rate: float, seed: int) -> Topology:
    """Every agent at the end of its own line of `rate` bit/s both ways, 1 ms from the middle."""
    return parse(
        {
            "name": "star",
            "seed": seed,
            "sites": {"core": ["core"], **{name: [name] for name in names}},
            "links": [{"between": ["core", name], "rate": rate, "delay": 0.001} for name in names],
        }
    )


def _switch(names: Sequence[str], rate: float, seed: int) -> Topology:
    """Every agent at a port of one switch that the kernel makes, `rate` bit/s both ways."""
    return parse({"name": "switch", "seed": seed, "lan": rate, "sites": {"switch": list(names)}})


async def lan(run: Run) -> None:
    size = run.options.size * MB if run.options.size else (200 if run.quick else 2000) * MB
    rate = 1e9
    run.parameter(bytes=size, rate_bit_s=rate, profile="lan")
    run.note("two ports of a LAN switch made by the kernel alone, which takes no processor time of the emulator's")
    lan_of_two = _switch(["seed", "leech"], rate, run.seed)
    with _network(lan_of_two) as net:
        async with fleet({"rack": ["seed", "leech"]}, net) as here:
            here.publish("seed", random_file(here.root / "file", size, run.random))
            await here.start("seed")
            await here.start("leech")
            await here.fetch(["leech"])
            done = await here.until(here.complete(["leech"]), 60 + size / 5e6)
            leech, seed = here.agents["leech"], await here.agents["seed"].ask("status")
            await here.stop()
            run.record("agents", here.rows(["leech"]))
            run.record("damaged", here.verify(["leech"]))
            seconds = leech.seconds if done else None
            share = size * 8 / seconds / rate if seconds else None
            if seconds:
                run.record("seconds", seconds, unit="s")
                run.record("rate", size / seconds / MB, unit="MB/s")
                run.record("cpu_per_gb", (leech.last["cpu"] + seed["cpu"]) / (size / 1e9), unit="s/GB")
            run.at_least("share of the link", share, 0.9, "")
    for name in () if run.options.no_rivals else ("aria2", "rsync", "syncthing", "transmission", "libtorrent"):
        await asyncio.to_thread(_rival, run, name, lan_of_two, "seed", ("leech",), size, 60 + size / 20e6)


def _rival(
    run: Run, name: str, topology: Topology, holder: str, wanting: Sequence[str], size: int, patience: float
) -> dict[str, Any]:
    """Run one tool on a network of its own, for at most `patience` seconds; returns the link's byte counts."""
    kind = RIVALS[name]
    if kind.missing():
        run.note(f"{name} is not installed: {', '.join(kind.missing())}")
        return {}
    with tempfile.TemporaryDirectory(prefix="peat-bench-rival-") as folder, _network(topology) as net:
        package = random_file(Path(folder) / "package" / "package.bin", size, random.Random(run.seed))
        rival = kind(Place(net, holder, tuple(wanting), package, Path(folder)))
        try:
            rival.prepare()
            cpu, net_before, begun = rival.seconds_of_cpu(), net.stats(), time.monotonic()
            fetches = {host: rival.begin(host) for host in wanting}
            took: dict[str, float] = {}
            while len(took) < len(fetches) and time.monotonic() - begun < patience:
                for host, fetch in fetches.items():
                    if host not in took and fetch.is_done():
                        took[host] = time.monotonic() - begun
                time.sleep(0.05)
            used = rival.seconds_of_cpu() - cpu
            after = net.stats()
        except RivalError as error:
            run.note(f"{name}: {error}")
            return {}
        finally:
            for process in rival.processes:
                process.kill()
                process.wait()
    times = sorted(took.values())
    figures = {
        "finished": len(times),
        "of": len(wanting),
        "patience_s": patience,
        "last_s": round(times[-1], 2) if len(times) == len(wanting) else None,
        "median_s": round(statistics.median(times), 2) if times else None,
        "cpu_per_gb": round(used / (size * len(wanting) / 1e9), 2),
        "settings": kind.settings,
    }
    crossed = {
        f"{link} {way}": counts["delivered_bytes"] - net_before["links"][link][way]["delivered_bytes"]
        for link, ways in after["links"].items()
        for way, counts in ways.items()
    }
    run.baseline(name, figures)
    return {"figures": figures, "crossed": crossed}


async def fanout(run: Run) -> None:
    count = 8
    rate = (run.options.rate or 50) * 1e6
    size = run.options.size * MB if run.options.size else (50 if run.quick else 500) * MB
    names = [f"a{n}" for n in range(count)]
    bound = max(size * 8 / rate, count * size * 8 / (rate * (count + 1)))
    run.parameter(bytes=size, rate_bit_s=rate, agents=count, bound_s=bound)
    run.note("ports of a switch made by the kernel alone: nine agents share the machine with nobody (see CPU seconds)")
    topology = _switch(["seed", *names], rate, run.seed)
    with _network(topology) as net:
        async with fleet({name: [name] for name in ["seed", *names]}, net) as here:
            here.publish("seed", random_file(here.root / "file", size, run.random))
            for name in ["seed", *names]:
                await here.start(name)
            await here.fetch(names)
            done = await here.until(here.complete(names), 60 + bound * 5)
            run.record("agents", here.rows(names))
            run.record("curves", here.curves(names))
            used = sum(agent.last["cpu"] for agent in here.agents.values() if "cpu" in agent.last)
            run.record("CPU seconds, agents", used, unit="s")
            times = [seconds for name in names if (seconds := here.agents[name].seconds)]
            left = sum(row["from"].get("seed", 0) for row in here.rows(names))
            run.record("copies that left the seed", left / here.total)
            run.record("waste", sum(row["wasted"] or 0 for row in here.rows(names)) / (here.total * count))
            await here.stop()
            run.record("damaged", here.verify(names))
    run.at_most("last / bound", max(times) / bound if done else None, 1.25, "")
    run.at_most("median / bound", statistics.median(times) / bound if done else None, 1.15, "")
    for rival in () if run.options.no_rivals else ("transmission", "curl"):
        # One server gives every agent the whole: eight times as long, so of an eighth, which shows the same ratio.
        part = size // count if rival == "curl" else size
        found = await asyncio.to_thread(_rival, run, rival, topology, "seed", names, part, 60 + bound * 5)
        for what in ("last", "median") if found else ():
            seconds = found["figures"][f"{what}_s"]
            run.baselines[rival][f"{what} / bound"] = seconds / (bound * part / size) if seconds else None


async def orphan(run: Run) -> None:
    count, rate = 5, (10 if run.quick else 20) * 1e6
    size = (15 if run.quick else 100) * MB
    names = [f"a{n}" for n in range(count)]
    run.parameter(bytes=size, rate_bit_s=rate, agents=count, copies=1.2)
    with _network(_star(["seed", *names], rate, run.seed)) as net:
        async with fleet({name: [name] for name in ["seed", *names]}, net) as here:
            here.publish("seed", random_file(here.root / "file", size, run.random))
            for name in ["seed", *names]:
                await here.start(name)
            await here.fetch(names)

            def left() -> float:
                return float(sum(row["from"].get("seed", 0) for row in here.rows(names)) / here.total)

            await here.until(lambda: left() >= 1.2 or here.complete(names)(), 60 + size * 8 / rate * 5)
            await here.agents["seed"].kill()
            run.record("copies that left the seed", left())
            run.record("whole at its death", sum(bool(here.agents[name].last.get("ended")) for name in names))
            await here.until(here.complete(names), 60 + size * 8 / rate * 5)
            run.record("agents", here.rows(names))
            complete = sum(bool(here.agents[name].last.get("ended")) for name in names)
            await here.stop()
            run.record("damaged", here.verify(names))
    run.at_least("agents that complete", complete, count, "")


async def thrift(run: Run) -> None:
    size = run.options.size * MB if run.options.size else (20 if run.quick else 100) * MB
    run.parameter(bytes=size, profile="lte", agents_per_site=4)
    run.note(
        "TCP alone adds 3.6 % of headers and, with an acknowledgement for two segments, 1.8 % on the way back; what "
        "counts for the bar is all of that"
    )
    for death, bar in ((False, 1.05), (True, 1.15)):
        await _thrift(run, size, death, bar)
    if not run.options.no_rivals:
        north, south = _SITES["north"], _SITES["south"]
        topology = pair("lte", near=north, far=south, seed=run.seed)
        naive = await asyncio.to_thread(_rival, run, "libtorrent", topology, "n0", (*north[1:], *south), size, 600.0)
        if naive:
            crossed = sum(naive["crossed"].values())
            run.baseline("libtorrent", naive["figures"] | {"bytes over the link / novel bytes": crossed / size})


_SITES = {"north": ("n0", "n1", "n2", "n3"), "south": ("s0", "s1", "s2", "s3")}


async def _thrift(run: Run, size: int, death: bool, bar: float) -> None:
    north, south = _SITES["north"], _SITES["south"]
    label = "with a death" if death else "all alive"
    with _network(pair("lte", near=north, far=south, seed=run.seed)) as net:
        async with fleet(_SITES, net) as here:
            here.publish("n0", random_file(here.root / "file", size, run.random))
            for name in (*north, *south):
                await here.start(name)
            before = _over(net)
            wanting = [*north[1:], *south]
            await here.fetch(wanting)
            if death:
                await here.until(lambda: here.agents["s1"].last.get("verified", 0) > here.total / 8, 300)
                await here.agents["s1"].kill()
                here.agents["s1"].fetching = False
                wanting.remove("s1")
            done = await here.until(here.complete(wanting), 120 + size * 8 / 20e6 * 6)
            after = _over(net)
            towards, back = after["near>far"] - before["near>far"], after["far>near"] - before["far>near"]
            rows = here.rows([*north[1:], *south])
            payload = sum(
                count
                for row in rows
                for source, count in row["from"].items()
                if row["agent"] in south and source not in south
            )
            run.record(f"agents, {label}", rows)
            run.record(f"payload over the link / novel bytes, {label}", payload / here.total)
            run.record(f"bytes towards the site, headers included / novel bytes, {label}", towards / here.total)
            run.record(f"last, {label}", max((r["seconds"] or 0) for r in rows), unit="s")
            await here.stop()
            run.record(f"damaged, {label}", here.verify(wanting))
    share = (towards + back) / here.total if done else None
    run.at_most(f"all bytes both ways, headers included / novel bytes, {label}", share, bar, "")


def _over(net: Network) -> dict[str, int]:
    """Bytes that the link between the two sites has delivered each way so far, headers included."""
    ways = net.stats()["links"]["link"]
    return {way: int(counts["delivered_bytes"]) for way, counts in ways.items()}


async def hostile(run: Run) -> None:
    size = (20 if run.quick else 200) * MB
    run.parameter(bytes=size, corrupt_share=0.01, agents=3)
    givers, names = ["honest", "corrupt", "stalls", "lies"], ["a0", "a1", "a2"]
    async with fleet({"": [*givers, *names]}) as here:
        here.publish("honest", random_file(here.root / "file", size, run.random))
        for giver in givers[1:]:
            here.copy("honest", giver)
        await here.start("honest", upload_limit=5 * MB)
        await here.start("corrupt", upload_limit=5 * MB)
        await here.start("stalls", upload_limit=1000)
        await here.start("lies", upload_limit=5 * MB)
        await here.agents["corrupt"].ask("rot", share=0.01, seed=run.seed)
        await here.agents["lies"].ask("forget", share=0.5, seed=run.seed)
        for name in names:
            await here.start(name, upload_limit=5 * MB)
        await here.fetch(names)
        done = await here.until(here.complete(names), 120 + size / MB)
        rows = here.rows(names)
        run.record("agents", rows)
        told = {name: dict(here.agents[name].last.get("suspects", ())) for name in names}
        run.record("what each tells the mesh of others", told)
        run.record("curves", here.curves(names))
        run.record("rates seen", {name: here.agents[name].last.get("rates", {}) for name in names})
        waste = sum(row["wasted"] or 0 for row in rows) / (here.total * len(names))
        await here.stop()
        run.record("damaged", here.verify(names))
    suspects = set().union(*told.values())
    run.at_least("agents that complete", len(names) if done else None, len(names), "")
    run.at_most("waste", waste if done else None, 0.01, "")
    run.at_least("hostile peers named in the mesh", len(suspects.intersection(givers[1:])), 3, "")
    run.at_most("others named in the mesh", len(suspects.difference(givers[1:])), 0, "")


async def kill(run: Run) -> None:
    kills = run.options.kills or (8 if run.quick else 50)
    size = (16 if run.quick else 100) * MB
    rate = 2 * MB
    run.parameter(bytes=size, kills=kills, rate_bytes_s=rate)
    async with fleet({"": ["seed", "leech"]}) as here:
        package = here.publish("seed", random_file(here.root / "file", size, run.random))
        await here.start("seed", upload_limit=rate)
        verified, regressions, done_kills = 0, 0, 0
        span = size / rate / kills  # with the second before it and the start: the last kill comes before the end
        while True:
            leech = await here.start("leech")
            leech.last = {}
            await here.fetch(["leech"])
            if done_kills == kills:
                break
            ended = await here.until(here.complete(["leech"]), 1.0 + run.random.random() * span)
            now = leech.last.get("verified", 0)
            regressions += leech.last.get("state") == "fetching" and now < verified
            verified = max(verified, now)
            await leech.kill()
            if ended:
                break
            done_kills += 1
        done = await here.until(here.complete(["leech"]), 60 + 3 * size / rate)
        # What the agent itself lost count of when it was killed, the seed knows: all that it sent, headers included.
        await asyncio.sleep(1)
        await here.tell()
        sent = (await here.agents["seed"].ask("status"))["traffic"]
        wasted = max(0, sent - here.total)
        run.record("kills", done_kills)
        run.record("waste by the agent's account", leech.last["wasted"], unit="bytes")
        run.record("agents", here.rows(["leech"]))
        await here.stop()
        run.record("damaged", here.verify(["leech"]))
        largest = max(chunk.size for chunk in package.index.chunks)
    allowed = 0.01 * here.total + done_kills * largest
    run.record("waste", wasted / here.total)
    run.record("waste per kill", wasted / max(1, done_kills), unit="bytes")
    run.record("chunk", largest, unit="bytes")
    run.at_most("times that verified bytes were lost", regressions, 0, "")
    run.at_most("waste / (1 % + a chunk a kill)", wasted / allowed if done else None, 1.0, "")


async def many(run: Run) -> None:
    count = run.options.packages or (300 if run.quick else 10_000)
    idle = 20.0 if run.quick else 60.0
    run.parameter(packages=count, bytes_each=20_000, idle_s=idle)
    async with fleet({"": ["seed", "leech"]}) as here:
        source = random_file(here.root / "file", 20_000, run.random)
        credentials = here.credentials("seed")
        with ChunkStore.open(here.agents["seed"].store) as chunks:
            builder = torrent_builder(chunks, credentials.ca_pem)
            for number in range(count - 1):
                source.write_bytes(run.random.randbytes(20_000))
                publish(source, f"p{number}", "1.0", "any", chunks, credentials, builder, SystemClock())
        here.publish("seed", source)
        seed = here.agents["seed"]
        seed.holds = False
        empty = await here.start("leech")
        seed.holds = True
        begun = time.monotonic()
        seed.holds = False
        await here.start("seed")
        offered = await seed.ask("seed")
        run.record("start until all are offered", time.monotonic() - begun, unit="s")
        run.record("offering alone", offered["seconds"], unit="s")
        seed.holds = True
        await asyncio.sleep(2)
        assert seed.process is not None
        before, process = await seed.ask("status"), psutil.Process(seed.process.pid)
        sent = process.io_counters().write_chars
        await asyncio.sleep(idle)
        after = await seed.ask("status")
        run.record("memory beyond an empty agent", after["rss"] - (await empty.ask("status"))["rss"], unit="bytes")
        per = (after["rss"] - (await empty.ask("status"))["rss"]) / count
        run.record("memory per package", per, unit="bytes")
        run.record("idle CPU", 100 * (after["cpu"] - before["cpu"]) / idle, unit="%")
        written = process.io_counters().write_chars - sent
        run.record("bytes written while idle, all files and sockets", written, unit="bytes")
        await here.fetch(["leech"])
        done = await here.until(here.complete(["leech"]), 30)
        run.record("fetching one of them", here.agents["leech"].seconds if done else None, unit="s")
    run.at_least("one of them can be fetched", 1 if done else None, 1, "")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=0, help="package size in MB (lan, fanout, thrift)")
    parser.add_argument("--rate", type=float, default=0, help="line rate in Mbit/s (fanout)")
    parser.add_argument("--kills", type=int, default=0, help="how often (kill)")
    parser.add_argument("--packages", type=int, default=0, help="how many (many)")
    parser.add_argument("--no-rivals", action="store_true", help="leave out what is not ours")


BENCH = Bench(
    "swarm",
    "fetching between agents: LAN, fan-out, thin links, bad peers, deaths, ten thousand packages",
    (
        Scenario("lan", "one seed to one agent on 1 Gbit/s", lan),
        Scenario("fanout", "one seed to eight agents, every line alike", fanout),
        Scenario("orphan", "the publisher dies when 1.2 copies have left it", orphan),
        Scenario("update", "two releases of three package sets (bench update)", update.every_set),
        Scenario("thrift", "two sites of four agents with an LTE link between", thrift),
        Scenario("hostile", "one peer corrupts, one stalls, one promises what it has not", hostile),
        Scenario("kill", "an agent is killed again and again", kill),
        Scenario("many", "thousands of packages on offer", many),
        Scenario("store", "publish, verify and gc of 5 GB in 100,000 files (bench store)", store.whole),
    ),
    arguments=_arguments,
)
