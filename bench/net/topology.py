"""Who is joined to whom: hosts, sites, links and cuts, from a small TOML file or from Python. Pure.

    name = "geo2"
    congestion = "cubic"            # of every host; a host may say its own
    time_scale = 0.01               # schedules of outages and cuts run 100 times as fast
    backend = "auto"                # or "tun", or "netem" (the kernel's); by itself netem where the kernel has it
    lan = "1G"                      # rate of every port of the LAN switches; without it they are as fast as the kernel
    [sites]
    base = ["holder"]               # one host: the link ends in it
    boat = ["one", "two", "three"]  # several: a LAN switch, and a gateway that the link ends in
    [[links]]
    between = ["base", "boat"]      # the first is upstream: "down" goes from it to the other
    profile = "geo"                 # and any property of bench/net/shape.py, for both directions
    down = { rate = "2M" }          # or for one
    [[cuts]]
    link = "base-boat"
    at = 10
    seconds = 30

A link with more than two ends is a shared channel: all ends send on one wire, and a multicast reaches every other end.
"""

from __future__ import annotations

import re
import tomllib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.net.profiles import profile
from bench.net.shape import Outage, Shape, ShapeError, parse_rate

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
GATEWAY = "gw-"
BACKENDS = ("auto", "tun", "netem")
_WORDS = {"name", "congestion", "time_scale", "seed", "mtu", "lan", "backend", "sites", "hosts", "links", "cuts"}


class TopologyError(ValueError):
    """A topology is described in a way that cannot be built."""


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace with one address."""

    name: str
    site: str
    congestion: str = "cubic"


@dataclass(frozen=True, slots=True)
class Link:
    """Joins sites. `down` leads from the first end to the others, `up` back; `shared` makes both use one wire."""

    name: str
    ends: tuple[str, ...]
    down: Shape
    up: Shape
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """A link that is out from `at` for `seconds` of the schedule's clock."""

    link: str
    at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Topology:
    """A network to build."""

    name: str
    hosts: tuple[Host, ...]
    links: tuple[Link, ...]
    cuts: tuple[Cut, ...] = ()
    time_scale: float = 1.0
    seed: int = 1
    mtu: int = 1500
    lan: float | None = None
    backend: str = "auto"
    _places: dict[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [host.name for host in self.hosts]
        for name in (*names, *self.sites, self.name):
            if not _NAME.fullmatch(name):
                raise TopologyError(f"{name!r} is no name: lower-case letters, digits and dashes, at most 31")
        if len(set(names)) != len(names):
            raise TopologyError("two hosts have the same name")
        if any(name.startswith(GATEWAY) for name in names):
            raise TopologyError(f"names that start with {GATEWAY!r} are the gateways'")
        sites = self.sites
        for link in self.links:
            if len(link.ends) < 2 or len(set(link.ends)) != len(link.ends):
                raise TopologyError(f"link {link.name} needs two or more different sites")
            for end in link.ends:
                if end not in sites:
                    raise TopologyError(f"link {link.name} ends in site {end!r}, which has no hosts")
        if self.backend not in BACKENDS:
            raise TopologyError(f"there is no backend {self.backend!r}; there are {', '.join(BACKENDS)}")
        if len({link.name for link in self.links}) != len(self.links):
            raise TopologyError("two links have the same name; give one a name")
        for cut in self.cuts:
            if cut.link not in {link.name for link in self.links}:
                raise TopologyError(f"there is no link {cut.link!r} to cut")
        if not 1 <= len(sites) <= 250 or any(len(members) > 250 for members in sites.values()):
            raise TopologyError("between 1 and 250 sites of at most 250 hosts can be addressed")
        places: dict[str, str] = {}
        for number, members in enumerate(sites.values()):
            for place, name in enumerate(members):
                places[name] = f"10.{number + 1}.0.{place + 2}"
        object.__setattr__(self, "_places", places)

    @property
    def sites(self) -> dict[str, list[str]]:
        """The names of the hosts of every site, in order."""
        out: dict[str, list[str]] = {}
        for host in self.hosts:
            out.setdefault(host.site, []).append(host.name)
        return out

    def address(self, host: str) -> str:
        """The address of a host."""
        try:
            return self._places[host]
        except KeyError:
            raise TopologyError(f"there is no host {host!r}; there are {', '.join(self._places)}") from None

    def subnet(self, site: str) -> str:
        return f"10.{list(self.sites).index(site) + 1}.0.0/24"

    def router(self, site: str) -> str:
        """The node that the site's links end in: its only host, or its gateway."""
        members = self.sites[site]
        return members[0] if len(members) == 1 else GATEWAY + site

    def next_hops(self, site: str) -> dict[str, tuple[str, str]]:
        """For every other site that can be reached: the link to take and the site at its other end."""
        hops: dict[str, tuple[str, str]] = {}
        waiting: deque[str] = deque([site])
        seen = {site}
        while waiting:
            here = waiting.popleft()
            for link in self.links:
                if here not in link.ends:
                    continue
                for there in link.ends:
                    if there not in seen:
                        seen.add(there)
                        hops[there] = hops.get(here, (link.name, there))
                        waiting.append(there)
        return hops

    def link(self, name: str) -> Link:
        for link in self.links:
            if link.name == name:
                return link
        raise TopologyError(f"there is no link {name!r}; there are {', '.join(one.name for one in self.links)}")

    def multicast_sites(self, link: Link) -> list[str]:
        """Ends whose only host sits on the link itself: a multicast reaches those, gateways do not pass it on."""
        return [end for end in link.ends if len(self.sites[end]) == 1]


def load(path: Path) -> Topology:
    """Read a topology file."""
    try:
        return parse(tomllib.loads(path.read_text()), path.stem)
    except (tomllib.TOMLDecodeError, ShapeError) as error:
        raise TopologyError(f"{path}: {error}") from error


def parse(table: Mapping[str, Any], name: str = "net") -> Topology:
    """A topology from what a TOML file holds."""
    unknown = set(table) - _WORDS
    if unknown:
        raise TopologyError(f"a topology has no {', '.join(sorted(unknown))}")
    congestion = str(table.get("congestion", "cubic"))
    own = table.get("hosts", {})
    hosts = tuple(
        Host(host, site, str(own.get(host, {}).get("congestion", congestion)))
        for site, members in table.get("sites", {}).items()
        for host in members
    )
    scale = float(table.get("time_scale", 1.0))
    links = tuple(_link(one, scale) for one in table.get("links", ()))
    cuts = tuple(
        Cut(str(one["link"]), float(one["at"]) * scale, float(one["seconds"]) * scale) for one in table.get("cuts", ())
    )
    return Topology(
        name=str(table.get("name", name)),
        hosts=hosts,
        links=links,
        cuts=cuts,
        time_scale=scale,
        seed=int(table.get("seed", 1)),
        mtu=int(table.get("mtu", 1500)),
        lan=parse_rate(table["lan"]) if "lan" in table else None,
        backend=str(table.get("backend", "auto")),
    )


def _link(table: Mapping[str, Any], scale: float) -> Link:
    rest = dict(table)
    ends = tuple(str(end) for end in rest.pop("between", ()))
    name = str(rest.pop("name", "-".join(ends)))
    named = rest.pop("profile", None)
    down_only, up_only = rest.pop("down", {}), rest.pop("up", {})
    shared = bool(rest.pop("shared", len(ends) > 2))
    down = up = Shape()
    if named is not None:
        chosen = profile(str(named)).scaled(scale)
        down, up, shared = chosen.down, chosen.up, shared or chosen.shared
    if isinstance(rest.get("outage"), Mapping):
        full = Outage(**{key: float(value) for key, value in rest.pop("outage").items()}).scaled(scale)
        rest["outage"] = {"up": full.up, "down": full.down, "offset": full.offset}
    try:
        return Link(name, ends, down.changed(rest).changed(down_only), up.changed(rest).changed(up_only), shared)
    except (ShapeError, TypeError, ValueError) as error:
        raise TopologyError(f"link {name}: {error}") from error


def pair(
    profile_name: str | None = None,
    *,
    near: Sequence[str] = ("a",),
    far: Sequence[str] = ("b",),
    congestion: str = "cubic",
    time_scale: float = 1.0,
    seed: int = 1,
    backend: str = "auto",
    **shape: Any,
) -> Topology:
    """Two sites and the link between them: what most measurements need. `near` is upstream."""
    link: dict[str, Any] = {"name": "link", "between": ["near", "far"], **shape}
    if profile_name is not None:
        link["profile"] = profile_name
    return parse(
        {
            "name": profile_name or "pair",
            "congestion": congestion,
            "time_scale": time_scale,
            "seed": seed,
            "backend": backend,
            "sites": {"near": list(near), "far": list(far)},
            "links": [link],
        }
    )


def as_table(topology: Topology) -> dict[str, Any]:
    """The topology as the relay reads it and as result files keep it."""
    return {
        "name": topology.name,
        "seed": topology.seed,
        "mtu": topology.mtu,
        "time_scale": topology.time_scale,
        "lan": topology.lan,
        "backend": topology.backend,
        "hosts": [
            {"name": h.name, "site": h.site, "congestion": h.congestion, "address": topology.address(h.name)}
            for h in topology.hosts
        ],
        "links": [
            {
                "name": link.name,
                "ends": list(link.ends),
                "down": link.down.as_json(),
                "up": link.up.as_json(),
                "shared": link.shared,
            }
            for link in topology.links
        ],
        "cuts": [{"link": cut.link, "at": cut.at, "seconds": cut.seconds} for cut in topology.cuts],
    }


def from_table(table: Mapping[str, Any]) -> Topology:
    """The inverse of `as_table`; times are already scaled."""
    return Topology(
        table["name"],
        tuple(Host(one["name"], one["site"], one["congestion"]) for one in table["hosts"]),
        tuple(
            Link(
                one["name"],
                tuple(one["ends"]),
                Shape().changed(one["down"]),
                Shape().changed(one["up"]),
                bool(one["shared"]),
            )
            for one in table["links"]
        ),
        tuple(Cut(one["link"], one["at"], one["seconds"]) for one in table["cuts"]),
        table["time_scale"],
        table["seed"],
        table["mtu"],
        table["lan"],
        table["backend"],
    )
