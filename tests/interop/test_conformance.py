"""The official conformance suite of the Connect protocol, against the way the sidecar serves and the SDK calls.

Needs Go: the suite's runner is a Go program. So it runs with the long tests, `make soak`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.interop, pytest.mark.soak]
HERE = Path(__file__).parent / "conformance"
VERSION = "v1.0.7"
SUITE = "connectrpc.com/conformance"


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The suite's runner, and the code generated from its proto files."""
    folder = tmp_path_factory.mktemp("conformance")
    environment = {**os.environ, "GOBIN": str(folder)}
    subprocess.run(["go", "install", f"{SUITE}/cmd/connectconformance@{VERSION}"], env=environment, check=True)
    modules = subprocess.run(["go", "env", "GOMODCACHE"], check=True, capture_output=True, text=True).stdout.strip()
    proto = Path(modules) / f"{SUITE}@{VERSION}" / "proto"
    out = folder / "gen"
    out.mkdir()
    tools = Path(sys.executable).parent
    names = ("config", "service", "suite", "server_compat", "client_compat")
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{proto}", f"--py_out={out}", f"--connectrpc_out={out}"),
            f"--plugin=protoc-gen-py={tools}/protoc-gen-py",
            f"--plugin=protoc-gen-connectrpc={tools}/protoc-gen-connectrpc",
            *(f"connectrpc/conformance/v1/{name}.proto" for name in names),
        ],
        check=True,
    )
    return folder / "connectconformance", out


@pytest.mark.parametrize("mode", ["server", "client"])
def test_the_official_suite_passes(suite, mode):
    runner, out = suite
    done = subprocess.run(
        [
            *(str(runner), "--mode", mode, "--conf", str(HERE / f"{mode}.yaml")),
            *("--", sys.executable, str(HERE / f"{mode}.py"), str(out)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " 0 failed" in done.stdout + done.stderr
