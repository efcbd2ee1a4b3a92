"""The links every degraded-link figure is given on, by name.

A profile has two shapes: `down` towards the edge site, `up` away from it. Schedules of hours are written in full here
and shrunk by a topology's time scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.net.shape import Episode, Outage, Shape, ShapeError


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of link: both directions, and whether they take turns on one channel."""

    name: str
    stands_for: str
    down: Shape
    up: Shape
    shared: bool = False

    def scaled(self, scale: float) -> Profile:
        """The same link with its outage schedule run `1 / scale` times as fast."""
        return replace(self, down=_scaled(self.down, scale), up=_scaled(self.up, scale))


def _scaled(shape: Shape, scale: float) -> Shape:
    return replace(shape, outage=shape.outage.scaled(scale)) if shape.outage else shape


def _both(name: str, stands_for: str, shape: Shape, *, up_rate: float = 0.0, shared: bool = False) -> Profile:
    return Profile(name, stands_for, shape, replace(shape, rate=up_rate or shape.rate), shared)


_GEO = Shape(rate=2e6, delay=0.3, loss=0.01)
_LAN = Shape(rate=1e9, delay=0.0002)
_MINUTE = 60.0

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        _both("lan", "ship, vehicle bay, rack", _LAN),
        _both("lte", "cellular edge", Shape(rate=20e6, delay=0.03, jitter=0.01, loss=0.001), up_rate=5e6),
        _both(
            "leo",
            "low-orbit satellite",
            Shape(rate=100e6, delay=0.025, jitter=0.008, loss=0.01, episodes=(Episode(0.5, 0.5, 15.0),)),
            up_rate=15e6,
        ),
        _both("geo", "geostationary satellite", _GEO, up_rate=512e3),
        _both("lossy-geo", "the probe of an untuned host", Shape(rate=2e6, delay=0.3, loss=0.02)),
        _both("manet", "mobile radio mesh", Shape(rate=1e6, delay=0.15, jitter=0.06, loss=0.1), shared=True),
        _both("radio", "tactical radio", Shape(rate=56e3, delay=0.5, jitter=0.1, loss=0.05)),
        _both("ship", "ship to shore", replace(_GEO, outage=Outage(20 * _MINUTE, 100 * _MINUTE)), up_rate=512e3),
        _both(
            "window",
            "surfaced vessel",
            Shape(rate=881e3, delay=0.3, loss=0.01, outage=Outage(5 * _MINUTE, 355 * _MINUTE)),
        ),
        _both("split", "contested network", replace(_LAN, outage=Outage(15 * _MINUTE, 45 * _MINUTE))),
    )
}


def profile(name: str) -> Profile:
    """The profile of that name; raises ShapeError naming the known ones."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ShapeError(f"no profile is called {name!r}; there are {', '.join(PROFILES)}") from None
