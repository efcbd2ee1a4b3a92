from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from peat_p2p.cli.connect import Place
from peat_p2p.cli.options import find_endpoints, node_config, node_options
from peat_p2p.core.address import HostPort
from peat_p2p.core.config import NodeConfig
from peat_p2p.core.errors import NotFoundError, UnavailableError

EID = "ab" * 32


def run(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, NodeConfig | None]:
    seen: list[NodeConfig] = []

    @click.command()
    @node_options
    def command(**values: Any) -> None:
        seen.append(node_config(values))

    result = CliRunner(env=env).invoke(command, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 1, f"{type(result.exception).__name__}: {result.exception}", None
    return result.exit_code, result.output, seen[0] if seen else None


def test_every_setting_by_flag(tmp_path: Path) -> None:
    _, _, config = run(
        *("--data-dir", str(tmp_path), "--node-id", "e1", "--dev", "--listen", "tcp://127.0.0.1:0"),
        *("--listen", "unix:///tmp/x.sock", "--mesh-listen", "0.0.0.0:7", "--swarm-listen", "tcp://0.0.0.0:8"),
        *("--http-listen", "127.0.0.1:9", "--peer", f"{EID}@h:1", "--peer", f"{EID}@h:2", "--site", "alpha"),
        *(
            "--label",
            "a=b",
            "--label",
            "c=d=e",
            "--no-mdns",
            "--log-format",
            "json",
            "--ready-file",
            str(tmp_path / "r"),
        ),
    )
    assert config is not None
    assert config.data_dir == tmp_path
    assert [str(a) for a in config.api_listen] == ["tcp://127.0.0.1:0", "unix:///tmp/x.sock"]
    assert config.mesh_listen == HostPort("0.0.0.0", 7)
    assert config.swarm_listen == HostPort("0.0.0.0", 8)
    assert [str(p) for p in config.peers] == [f"{EID}@h:1", f"{EID}@h:2"]
    assert dict(config.labels) == {"a": "b", "c": "d=e"}
    assert (config.site, config.mdns, config.log_format) == ("alpha", False, "json")


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('site = "file"\nlog-format = "json"\ndev = true\nno-mdns = true\n[label]\nk = "v"\n')
    base = ["--config", str(file), "--data-dir", str(tmp_path)]
    _, _, config = run(*base)
    assert config is not None
    assert (config.site, config.log_format, config.mdns, dict(config.labels)) == ("file", "json", False, {"k": "v"})
    _, _, config = run(*base, env={"PEAT_SITE": "env"})
    assert config is not None
    assert config.site == "env"
    _, _, config = run(*base, "--site", "flag", env={"PEAT_SITE": "env"})
    assert config is not None
    assert config.site == "flag"


def test_environment_of_repeatable_and_negative_flags(tmp_path: Path) -> None:
    env = {"PEAT_PEER": f"{EID}@h:1 {EID}@h:2", "PEAT_DEV": "1", "PEAT_MDNS": "0", "PEAT_DATA_DIR": str(tmp_path)}
    _, _, config = run(env=env)
    assert config is not None
    assert len(config.peers) == 2
    assert config.mdns is False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dev", "--formation", "/x"], "give one of the two"),
        ([], "no certificates"),
        (["--dev", "--peer", "h:1"], "ENDPOINT_ID@HOST:PORT"),
        (["--dev", "--label", "x"], "KEY=VALUE"),
        (["--dev", "--site", "a b"], "site 'a b'"),
        (["--dev", "--node-id", "../x"], "node id"),
        (["--dev", "--listen", "http://x:1"], "tcp://HOST:PORT"),
        (["--config", "/nonexistent.toml"], "No such file"),
    ],
)
def test_wrong_settings_are_named(arguments: list[str], says: str) -> None:
    status, output, _ = run(*arguments)
    assert status != 0
    assert says in output


def test_an_unknown_or_broken_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("sight = 'x'\n")
    assert "no setting named 'sight'" in run("--config", str(file))[1]
    file.write_text("x = [")
    assert "c.toml" in run("--config", str(file))[1]


def test_endpoints_of_separate_processes_are_merged(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="peat up --dev"):
        find_endpoints(tmp_path)
    (tmp_path / "sidecar.json").write_text(json.dumps({"node_id": "n", "endpoint_id": "e", "api": "http://a"}))
    (tmp_path / "agent.json").write_text(json.dumps({"node_id": "n", "endpoint_id": "e", "http": "http://b"}))
    found = find_endpoints(tmp_path)
    assert (found.api, found.http) == ("http://a", "http://b")


def test_a_hub_is_no_agent(tmp_path: Path) -> None:
    hub = {"node_id": "n", "endpoint_id": "e", "api": "http://a", "http": "http://h", "hub": "http://h"}
    (tmp_path / "hub.json").write_text(json.dumps(hub))
    place = Place(data_dir=tmp_path, sidecar_url="", agent_url="", token_file=None)
    assert place.sidecar().address == "http://a"
    with pytest.raises(UnavailableError, match="no agent runs"):
        place.agent()
    (tmp_path / "agent.json").write_text(json.dumps({"node_id": "n", "endpoint_id": "e", "http": "http://b"}))
    (tmp_path / "hub.json").unlink()
    assert place.agent().address == "http://b"
