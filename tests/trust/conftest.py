import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role

NOW = float(int(time.time()))  # real: OpenSSL looks at the machine's clock

Issue = Callable[..., NodeCredentials]


@pytest.fixture(scope="session")
def now() -> float:
    return NOW


@pytest.fixture(scope="session")
def formation(tmp_path_factory: pytest.TempPathFactory) -> Formation:
    return Formation.init(tmp_path_factory.mktemp("formation"), "alpha", NOW)


@pytest.fixture(scope="session")
def issue(formation: Formation, tmp_path_factory: pytest.TempPathFactory) -> Issue:
    """Credentials of a node with the given roles, of the given (or the common) formation, made once each."""
    made: dict[tuple[object, ...], NodeCredentials] = {}

    def credentials(
        node_id: str, *roles: Role, of: Formation | None = None, agents: tuple[str, ...] = ()
    ) -> NodeCredentials:
        chosen = of or formation
        key = (chosen.directory, node_id, roles, agents)
        if key not in made:
            out: Path = tmp_path_factory.mktemp(f"node-{node_id}")
            chosen.issue(node_id, roles or (Role.AGENT,), out, agents=agents, at=NOW, replace=True)
            made[key] = NodeCredentials.load(out, NOW)
        return made[key]

    return credentials


@pytest.fixture(scope="session")
def other_formation(tmp_path_factory: pytest.TempPathFactory) -> Formation:
    """Another formation that took the same name: only the CA's key tells them apart."""
    return Formation.init(tmp_path_factory.mktemp("other"), "alpha", NOW)


@pytest.fixture(scope="session")
def shake() -> Callable[[ssl.SSLContext, ssl.SSLContext], tuple[ssl.SSLObject, ssl.SSLObject]]:
    """Makes a TLS handshake in memory."""

    def in_memory(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
        a_in, a_out, b_in, b_out = (ssl.MemoryBIO() for _ in range(4))
        a = server.wrap_bio(a_in, a_out, server_side=True)
        b = client.wrap_bio(b_in, b_out, server_side=False)
        for _ in range(6):
            for side, out, into in ((b, b_out, a_in), (a, a_out, b_in)):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    pass
                into.write(out.read())
        return a, b

    return in_memory
