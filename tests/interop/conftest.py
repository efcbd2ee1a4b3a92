import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROTO = HERE.parents[1] / "proto"


@pytest.fixture(scope="session")
def stock_client():
    """The script of a stock client, with its packages installed and its code generated from our proto."""
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=HERE, check=True)
    out = HERE / "gen"
    out.mkdir(exist_ok=True)
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}"),
            f"--plugin=protoc-gen-es={HERE}/node_modules/.bin/protoc-gen-es",
            f"--es_out={out}",
            "--es_opt=target=js,import_extension=js",
            *(str(path) for path in sorted(PROTO.glob("peat/*/v1/*.proto")) if path.parts[-3] in ("sidecar", "node")),
        ],
        check=True,
    )
    return HERE / "stock.mjs"
