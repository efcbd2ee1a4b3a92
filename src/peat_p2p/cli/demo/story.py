"""The demo's story, told while it happens.

Owns the order of events and the measurements taken on the way. Every fact comes from the processes' own interfaces
(the sidecars' API, the agents' control service) or from the disk; nothing is asserted that was not seen.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from peat_p2p.cli.demo.compare import differences
from peat_p2p.cli.demo.fleet import ALPHA, BRAVO, DEPOT, EDGE, EVERYONE, HUB, LATE, Fleet, Member
from peat_p2p.cli.demo.processes import processes
from peat_p2p.cli.demo.report import AgentResult, KillResult, Report
from peat_p2p.cli.demo.sample import copy_installed_packages, packed_size
from peat_p2p.client import AgentClient, SidecarClient
from peat_p2p.core.errors import InvalidInputError, UnavailableError
from peat_p2p.fleet.commands import Command, CommandStatus
from peat_p2p.wire.gen.peat.agent.v1.agent_pb import Package, Transfer

T = TypeVar("T")
C = TypeVar("C", AgentClient, SidecarClient)

NAME, VERSION = "field-tools", "1.0"

POLL_SECONDS = 0.1
STEP_SECONDS = 90.0
# An edge agent may fetch so fast that a transfer takes about this long: time enough to be killed half way.
TRANSFER_SECONDS = 7.0
KILL_BETWEEN = (0.35, 0.85)
LEAST_CHUNKS = 8
LAST_BLOCKS, BLOCK_BYTES = 8, 16 * 1024


class Story:
    """One run of the demo in the empty folder `root`."""

    def __init__(self, console: Console, root: Path, package: Path | None) -> None:
        self._console = console
        self._root = root
        self._source = package
        self._command = ""
        self._package = Package()
        self._last: dict[str, Transfer] = {}
        self._kill: KillResult | None = None
        self._began = time.monotonic()
        self._agents = _Clients(AgentClient)
        self._sidecars = _Clients(SidecarClient)

    async def run(self) -> Report:
        """Play it. Raises a PeatError when a step does not come to pass in time."""
        source = await asyncio.to_thread(self._choose_source)
        size = await asyncio.to_thread(packed_size, source)
        async with self._agents, self._sidecars, processes(self._root) as started:
            fleet = Fleet(self._root, started, limit=int(max(size / TRANSFER_SECONDS, 64 * 1024)))
            await self._form(fleet)
            await self._publish_and_order(fleet, source)
            await self._deliver(fleet, ALPHA, "alpha's agents see the command in their own sidecars and fetch")
            await self._lose_the_centre(fleet)
            await self._go_on_without(fleet)
            self._step("6", "comparing what is on every agent's disk with what was published, byte for byte")
            agents = [await asyncio.to_thread(self._judge, fleet, member, source) for member in (*EDGE, LATE)]
            problems = await started.stop_all()
        return Report(
            package=f"{NAME} {VERSION}",
            files=self._package.files,
            total_bytes=self._package.total_bytes,
            digest=self._package.digest,
            agents=agents,
            kill=self._kill,
            seconds=time.monotonic() - self._began,
            problems=problems,
        )

    # 1

    async def _form(self, fleet: Fleet) -> None:
        self._step("1", "a formation, a hub with its sidecar, a publisher, four edge nodes in two sites")
        fleet.form("demo")
        self._say(f"formation demo: one CA, {len(EVERYONE)} node certificates with roles")
        for wave in ((HUB,), (DEPOT, ALPHA[0]), (ALPHA[1],), (BRAVO[0],), (BRAVO[1],)):
            await _all(fleet.start_sidecar(member) for member in wave)
        await _all(fleet.start_agent(member) for member in (DEPOT, *EDGE))
        names = [member.name for member in (DEPOT, *EDGE)]
        self._say(f"started {len(fleet.sidecars)} sidecars and {len(fleet.agents)} agents, each a process of its own")

        async def all_live(member: Member) -> bool | None:
            sidecar = await self._sidecars.get(fleet.sidecars[member.name].endpoints.api)
            platforms = await sidecar.read_collection("platforms")
            recent = time.time() - 15
            return all(platforms.get(name, {}).get("last_seen", 0) >= recent for name in names) or None

        for member in (HUB, DEPOT, *EDGE):
            await _until_value(partial(all_live, member), f"{member.name} does not see the whole fleet")
        self._say(f"every sidecar sees {len(names)} live agents: {', '.join(names)}")

    # 2

    async def _publish_and_order(self, fleet: Fleet, source: Path) -> None:
        for member in BRAVO:
            async with SidecarClient(fleet.sidecars[member.name].endpoints.api) as sidecar:
                await sidecar.stop_sync()
        self._step("2", "site bravo falls out of contact; an operator publishes a package and orders it")
        self._say("bravo's sidecars no longer exchange documents with anyone (StopSync)")
        with self._progress() as progress:
            task = progress.add_task(f"publish {NAME}", total=None)
            async with AgentClient(fleet.agents[DEPOT.name].endpoints.http) as agent:
                async for step in agent.publish(str(source), NAME, VERSION):
                    if step.bytes_total:
                        progress.update(task, total=step.bytes_total, completed=step.bytes_done)
                    if step.done is not None:
                        self._package = step.done
        package = self._package
        if package.chunks < LEAST_CHUNKS:
            raise InvalidInputError(
                f"{source} makes {package.chunks} chunks: nothing can be killed half way through so little;"
                " name something of 1 MB or more with --package"
            )
        self._say(
            f"{package.name} {package.version}: {package.total_bytes / 1e6:.1f} MB in {package.files} files and"
            f" {package.chunks} chunks, digest {package.digest[:23]}…, signed by {package.publisher}"
        )
        self._command = f"deploy-{NAME}-{int(time.time())}"
        async with SidecarClient(fleet.sidecars[HUB.name].endpoints.api) as hub:
            now = int(time.time())
            await hub.put_command(
                Command(
                    id=self._command,
                    target_id="*",
                    command_type="deploy",
                    status=CommandStatus.PENDING,
                    created_at=now,
                    expires_at=now + 24 * 3600,
                    payload_json=json.dumps({"package": NAME, "version": VERSION}),
                )
            )
        self._say(f"command {self._command} for every agent, written through the hub's sidecar, which signed it")

    # 3

    async def _lose_the_centre(self, fleet: Fleet) -> None:
        await fleet.kill_agent(DEPOT)
        await _all(fleet.kill_sidecar(member) for member in (HUB, DEPOT))
        self._say("[bold]hub and publisher killed with SIGKILL[/]: hub, its sidecar, the publisher's sidecar and agent")

    # 4 and 5

    async def _go_on_without(self, fleet: Fleet) -> None:
        self._step("4", "bravo comes back into contact, and bravo-3 joins only now; the hub is dead")
        async with SidecarClient(fleet.sidecars[BRAVO[0].name].endpoints.api) as sidecar:
            if self._command in await sidecar.read_collection("commands"):
                raise UnavailableError("bravo learned of the command while it was out of contact")
        for member in BRAVO:
            async with SidecarClient(fleet.sidecars[member.name].endpoints.api) as sidecar:
                await sidecar.start_sync()
        async with asyncio.TaskGroup() as group:
            # Not waited for before looking: the other two begin at once.
            group.create_task(self._join_late(fleet))
            await self._deliver(
                fleet, (*BRAVO, LATE), "bravo's agents learn of it from the mesh alone", victim=BRAVO[1]
            )

    async def _join_late(self, fleet: Fleet) -> None:
        await fleet.start_sidecar(LATE)
        await fleet.start_agent(LATE)

    async def _deliver(self, fleet: Fleet, members: Sequence[Member], what: str, victim: Member | None = None) -> None:
        """Follow the transfers of `members` until each wrote its receipt; kill and restart `victim` half way."""
        if members is ALPHA:
            self._step("3", what)
        else:
            self._say(what)
        deadline = time.monotonic() + STEP_SECONDS
        with self._progress() as progress:
            tasks = {m.name: progress.add_task(m.name, total=None) for m in members}
            waiting = list(members)
            while waiting:
                if time.monotonic() > deadline:
                    raise UnavailableError(self._late(waiting))
                for member in list(waiting):
                    if member.name not in fleet.agents:
                        continue
                    transfer = await self._observe(fleet, member, progress, tasks[member.name])
                    if member is victim and self._kill is None and transfer is not None:
                        await self._kill_half_way(fleet, member, transfer, progress)
                    if await self._receipt(fleet, member) == CommandStatus.COMPLETED:
                        await self._observe(fleet, member, progress, tasks[member.name])
                        waiting.remove(member)
                await asyncio.sleep(POLL_SECONDS)
        if victim is not None and self._kill is not None:
            final = self._last[victim.name]
            self._kill.received_after_restart = final.received_bytes - self._kill.received_at_restart
            kill = self._kill
            self._say(
                f"{victim.name} had {kill.verified_at_kill / 1e6:.1f} MB verified when it was killed and"
                f" {kill.verified_after_restart / 1e6:.1f} MB after its restart;"
                f" it received {kill.fetched_twice / 1e6:.2f} MB twice"
            )
        travelled = self._last[members[0].name].total_bytes
        if members is ALPHA and travelled < self._package.total_bytes:
            self._say(
                f"the {self._package.total_bytes / 1e6:.1f} MB travel as {travelled / 1e6:.1f} MB:"
                " chunks are stored and sent packed where that makes them smaller, and equal ones once"
            )
        for member in members:
            final = self._last[member.name]
            self._say(f"{member.name} verified and deployed it in {final.elapsed_s:.1f} s")

    async def _kill_half_way(self, fleet: Fleet, member: Member, transfer: Transfer, progress: Progress) -> None:
        share = transfer.verified_bytes / max(1, transfer.total_bytes)
        if transfer.state != "fetching" or not KILL_BETWEEN[0] <= share <= KILL_BETWEEN[1]:
            return
        killed = fleet.agents[member.name]
        await fleet.kill_agent(member)
        progress.console.print(
            f"    [bold]5  {member.name}'s agent killed with SIGKILL at {share:.0%}[/]; starting it again"
        )
        fleet.agents[member.name] = await fleet.processes.restart(killed)
        after = await _until_value(
            lambda: self._transfer(fleet, member, resumed=True), f"{member.name} does not resume its transfer"
        )
        self._kill = KillResult(
            agent=member.name,
            verified_at_kill=transfer.verified_bytes,
            received_at_kill=transfer.received_bytes,
            verified_after_restart=after.verified_bytes,
            received_at_restart=after.received_bytes,
            to_receive=transfer.total_bytes - transfer.reused_bytes,
            # What had arrived in chunks not yet whole, what arrived between the last look and the kill, and the last
            # blocks of all, which libtorrent asks of several peers at once.
            in_flight_bytes=transfer.received_bytes
            - (transfer.verified_bytes - transfer.reused_bytes)
            + int(2 * POLL_SECONDS * fleet.limit)
            + LAST_BLOCKS * BLOCK_BYTES,
        )

    # 6

    def _judge(self, fleet: Fleet, member: Member, source: Path) -> AgentResult:
        transfer = self._last[member.name]
        deployed = fleet.data_dir(member) / "deployments" / NAME / "current"
        sources: dict[str, int] = {}
        for peer in transfer.sources:
            sources[peer.agent_id] = sources.get(peer.agent_id, 0) + peer.bytes
        return AgentResult(
            agent=member.name,
            site=member.site,
            phase="hub alive" if member in ALPHA else "hub dead",
            digest=transfer.digest,
            verified=transfer.state == "complete" and transfer.verified_bytes == transfer.total_bytes,
            seconds=transfer.elapsed_s,
            received_bytes=transfer.received_bytes,
            wasted_bytes=transfer.wasted_bytes,
            reused_bytes=transfer.reused_bytes,
            bytes_by_source=sources,
            differences=differences(source, deployed)[:20],
        )

    # looking

    async def _observe(self, fleet: Fleet, member: Member, progress: Progress, task: TaskID) -> Transfer | None:
        transfer = await self._transfer(fleet, member)
        if transfer is not None:
            self._last[member.name] = transfer
            progress.update(
                task,
                total=transfer.total_bytes or None,
                completed=transfer.verified_bytes,
                description=f"{member.name} {transfer.state}",
            )
        return transfer

    async def _transfer(self, fleet: Fleet, member: Member, *, resumed: bool = False) -> Transfer | None:
        agent = await self._agents.get(fleet.agents[member.name].endpoints.http)
        for transfer in await agent.transfers():
            if transfer.name == NAME and transfer.version == VERSION:
                settled = transfer.state in ("fetching", "verifying", "complete")
                return transfer if settled or not resumed else None
        return None

    async def _receipt(self, fleet: Fleet, member: Member) -> int:
        sidecar = await self._sidecars.get(fleet.sidecars[member.name].endpoints.api)
        receipt = await sidecar.get_document("receipts", f"{self._command}:{member.name}")
        status = int((receipt or {}).get("status", 0))
        if status == CommandStatus.FAILED:
            raise UnavailableError(f"{member.name} reports failure: {(receipt or {}).get('message')}")
        return status

    def _late(self, waiting: Sequence[Member]) -> str:
        states = []
        for member in waiting:
            last = self._last.get(member.name)
            states.append(f"{member.name}: {f'{last.state}, {last.reason}' if last else 'no transfer seen'}")
        return f"not delivered within {STEP_SECONDS:.0f} s: {'; '.join(states)} (logs are in {self._root}/log)"

    # telling

    def _choose_source(self) -> Path:
        if self._source is not None:
            return self._source.absolute()
        source = self._root / "package"
        names = copy_installed_packages(source)
        self._say(f"the package: a copy of Python packages installed here ({', '.join(names)})")
        return source

    def _step(self, number: str, text: str) -> None:
        self._console.print(
            f"\n[bold cyan]{number}[/]  [bold]{text}[/]  [dim]({time.monotonic() - self._began:.1f} s)[/]"
        )

    def _say(self, text: str) -> None:
        self._console.print(f"    {text}")

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("    {task.description:<22}"),
            BarColumn(bar_width=34),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=self._console,
        )


class _Clients(Generic[C]):
    """Clients by URL, opened on first use and kept: a look every tenth of a second should not dial each time."""

    def __init__(self, make: Callable[[str], C]) -> None:
        self._make: Callable[[str], C] = make
        self._stack = AsyncExitStack()
        self._open: dict[str, C] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._stack.aclose()

    async def get(self, url: str) -> C:
        """The client of `url`."""
        if url not in self._open:
            self._open[url] = await self._stack.enter_async_context(self._make(url))
        return self._open[url]


async def _all(jobs: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(job)


async def _until_value(read: Callable[[], Awaitable[T | None]], complaint: str) -> T:
    """Call `read` until it gives something. Raises UnavailableError with `complaint` after STEP_SECONDS."""
    deadline = time.monotonic() + STEP_SECONDS
    while True:
        value = await read()
        if value is not None:
            return value
        if time.monotonic() > deadline:
            raise UnavailableError(f"{complaint} after {STEP_SECONDS:.0f} s")
        await asyncio.sleep(POLL_SECONDS)
