import contextlib
import socket
import stat

import pytest

from peat_p2p.client import SidecarClient
from peat_p2p.core.address import HostPort, ListenAddress
from peat_p2p.core.config import NodeConfig
from peat_p2p.core.errors import ConfigError, ConflictError
from peat_p2p.sidecar.app import open_sidecar
from peat_p2p.sidecar.config import SidecarConfig
from peat_p2p.sidecar.listen import listening


def tcp(port=0, host="127.0.0.1"):
    return ListenAddress(host_port=HostPort(host, port))


def test_port_0_gives_the_port_the_system_chose():
    with listening(tcp()) as listener:
        assert listener.address.host_port.port != 0
        assert listener.url() == f"http://127.0.0.1:{listener.address.host_port.port}"
        assert listener.url(tls=True).startswith("https://127.0.0.1:")
        socket.create_connection(("127.0.0.1", listener.address.host_port.port), 1).close()


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_the_url_is_one_that_can_be_called(host, url):
    with listening(tcp(host=host)) as listener:
        assert listener.url().startswith(url)


def test_a_port_in_use_is_refused_in_words():
    with (
        listening(tcp()) as taken,
        pytest.raises(ConflictError, match="in use by another process"),
        listening(taken.address),
    ):
        pass
    with listening(taken.address):
        pass


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_refused(host):
    with pytest.raises(ConfigError, match=host), listening(tcp(host=host)):
        pass


def test_a_unix_socket_is_for_its_owner_alone_and_goes_away(tmp_path):
    path = tmp_path / "new" / "folder" / "s.sock"
    with listening(ListenAddress(path=path)) as listener:
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert listener.url() == f"unix://{path}"
        assert list(path.parent.iterdir()) == [path]
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as caller:
            caller.connect(str(path))
    assert list(path.parent.iterdir()) == []


def test_a_stale_socket_is_replaced(tmp_path):
    path = tmp_path / "s.sock"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(path))
    with listening(ListenAddress(path=path)), contextlib.closing(socket.socket(socket.AF_UNIX)) as caller:
        caller.connect(str(path))


def test_a_live_socket_is_refused_and_stays(tmp_path):
    path = tmp_path / "s.sock"
    with listening(ListenAddress(path=path)):
        with pytest.raises(ConflictError, match="another process answers"), listening(ListenAddress(path=path)):
            pass
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as caller:
            caller.connect(str(path))
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConflictError, match="no socket"), listening(ListenAddress(path=path)):
        pass
    assert path.read_text() == "data"


def test_the_socket_of_a_successor_is_not_removed(tmp_path):
    path = tmp_path / "s.sock"
    with listening(ListenAddress(path=path)):
        path.unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(path))
    assert path.exists()
    successor.close()


@pytest.mark.parametrize("length", [100, 105, 107, 108, 120, 400])
def test_a_deep_folder_will_do(tmp_path, length):
    folder = tmp_path
    while len(str(folder)) < length - 20:
        folder /= "f" * min(50, length - 12 - len(str(folder)))
    path = folder / ("s" * max(1, length - len(str(folder)) - 1))
    for _ in range(2):
        with listening(ListenAddress(path=path)) as listener:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert listener.url() == f"unix://{path}"
            with pytest.raises(ConflictError, match="another process answers"), listening(ListenAddress(path=path)):
                pass
        assert list(folder.iterdir()) == []


async def test_a_sidecar_in_a_deep_folder_is_reached_by_its_socket(formation, tmp_path):
    data = tmp_path / ("d" * 100) / "data"
    node = NodeConfig(data_dir=data, dev=True, node_id="deep", mdns=False)
    async with open_sidecar(SidecarConfig(node=node)) as endpoints, SidecarClient(endpoints.apis[1]) as client:
        assert len(endpoints.apis[1]) > 120
        assert (await client.get_status()).node_id == "deep"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot listen"), listening(ListenAddress(path=tmp_path / "file" / "s")):
        pass


async def test_a_sidecar_answers_on_all_its_addresses(run, tmp_path):
    addresses = (tcp(), tcp(), ListenAddress(path=tmp_path / "a.sock"), ListenAddress(path=tmp_path / "b.sock"))
    async with run(node={"listen": addresses}) as endpoints:
        assert len(endpoints.apis) == 4
        assert endpoints.api == endpoints.apis[0]
        for url in endpoints.apis:
            async with SidecarClient(url) as client:
                assert (await client.get_status()).node_id == "n1"


async def test_a_sidecar_whose_port_is_taken_says_so_and_leaves_nothing_behind(run):
    with listening(tcp()) as taken, pytest.raises(ConflictError, match=str(taken.address.host_port)):
        async with run(node={"listen": (taken.address,)}):
            pass
    async with run(node={"listen": (taken.address,)}) as endpoints:
        assert endpoints.api == taken.url()
