from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peat_p2p.core.address import HostPort, ListenAddress, PeerAddress
from peat_p2p.core.errors import ConfigError

hosts = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True) | st.ip_addresses().map(str)


@given(hosts, st.integers(0, 65535))
def test_a_host_and_port_read_back_as_written(host: str, port: int) -> None:
    address = HostPort(host, port)
    assert HostPort.parse(str(address)) == address


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    for parse in (HostPort.parse, ListenAddress.parse, PeerAddress.parse):
        try:
            parse(text)
        except ConfigError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("localhost", "names no port"),
        (":80", "names no host"),
        ("h:70000", "0 to 65535"),
        ("h:-1", "0 to 65535"),
        ("::1:80", "brackets"),
        ("[::1", "brackets"),
    ],
)
def test_a_bad_address_is_named_with_the_way_out(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        HostPort.parse(text)


def test_a_host_alone_takes_the_default_port() -> None:
    assert HostPort.parse("edge", default_port=7400) == HostPort("edge", 7400)
    assert HostPort.parse("[::1]", default_port=7400) == HostPort("::1", 7400)


def test_listen_addresses() -> None:
    assert ListenAddress.parse("tcp://0.0.0.0:0").host_port == HostPort("0.0.0.0", 0)
    assert ListenAddress.parse("unix:///run/peat.sock").path == Path("/run/peat.sock")
    assert str(ListenAddress.parse("127.0.0.1:5")) == "tcp://127.0.0.1:5"
    with pytest.raises(ConfigError, match="absolute"):
        ListenAddress.parse("unix://relative")
    with pytest.raises(ConfigError, match="tcp://"):
        ListenAddress.parse("http://127.0.0.1:1")


def test_a_peer_names_its_endpoint_id() -> None:
    peer = PeerAddress.parse("ab" * 32 + "@10.0.0.5:7400")
    assert (peer.endpoint_id, peer.host_port) == ("ab" * 32, HostPort("10.0.0.5", 7400))
    with pytest.raises(ConfigError, match="ENDPOINT_ID@HOST:PORT"):
        PeerAddress.parse("10.0.0.5:7400")
    with pytest.raises(ConfigError, match="64 lower-case hex"):
        PeerAddress.parse("XYZ@10.0.0.5:7400")


def test_loopback() -> None:
    assert HostPort("127.0.0.9", 1).is_loopback
    assert HostPort("::1", 1).is_loopback
    assert HostPort("localhost", 1).is_loopback
    assert not HostPort("0.0.0.0", 1).is_loopback
    assert not HostPort("edge.example", 1).is_loopback
