import contextlib

import pytest
from connectrpc.codec import proto_json_codec
from connectrpc.protocol import ProtocolType
from pyqwest import Client as HttpClient

from peat_p2p.core.config import NodeConfig
from peat_p2p.sidecar.app import open_sidecar
from peat_p2p.sidecar.config import SidecarConfig
from peat_p2p.trust.formation import Formation
from peat_p2p.trust.identity import Role
from peat_p2p.wire.gen.peat.node.v1.node_connect import PeatNodeClient
from peat_p2p.wire.gen.peat.sidecar.v1.sidecar_connect import PeatSidecarClient
from peat_p2p.wire.transport import AiohttpTransport

FORMS = {
    "binary": {},
    "json": {"codec": proto_json_codec()},
    "grpc-web": {"protocol": ProtocolType.GRPC_WEB},
}


@pytest.fixture(scope="session")
def formation(tmp_path_factory):
    return Formation.init(tmp_path_factory.mktemp("formation") / "ca", "test")


@pytest.fixture
def node_config(formation, tmp_path):
    """Makes the settings of a node of the formation; the same name gives the same folder and certificate."""

    def make(name="n1", *, roles=(Role.AGENT,), **options):
        folder = tmp_path / "nodes" / name
        if not folder.exists():
            formation.issue(name, roles, folder, replace=True)
        return NodeConfig(data_dir=tmp_path / "data" / name, formation=folder, mdns=False, **options)

    return make


@pytest.fixture
def run(node_config):
    """Runs a sidecar: `async with run("n1") as endpoints`. Options go to SidecarConfig, `node` to NodeConfig."""

    @contextlib.asynccontextmanager
    async def running(name="n1", *, node=None, **options):
        config = SidecarConfig(node=node_config(name, **(node or {})), **options)
        async with open_sidecar(config) as endpoints:
            yield endpoints

    return running


@pytest.fixture
async def endpoints(run):
    async with run() as endpoints:
        yield endpoints


@contextlib.asynccontextmanager
async def connect(address, form="binary", *, token=None, kind=PeatSidecarClient):
    async with AiohttpTransport(address, token=token) as transport:
        yield kind(transport.base_url, http_client=HttpClient(transport), **FORMS[form])


@pytest.fixture
def stub():
    """A generated client: `async with stub(address, form) as api`."""
    return connect


@pytest.fixture(params=[*FORMS, "unix"])
async def api(request, endpoints):
    """The sidecar through a generated client, in each protocol and over each kind of socket."""
    tcp, unix = endpoints.apis
    form = "binary" if request.param == "unix" else request.param
    async with connect(unix if request.param == "unix" else tcp, form) as client:
        yield client


@pytest.fixture
async def node_api(endpoints):
    async with connect(endpoints.api, kind=PeatNodeClient) as client:
        yield client
