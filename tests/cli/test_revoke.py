from __future__ import annotations

import json

from peat_p2p.client import Heartbeat, SyncSidecarClient

PEER = "ab" * 32
MANIFEST = "cd" * 32


def test_nodes_and_packages_are_revoked_by_name_or_id(start) -> None:
    node = start("sidecar", "--dev", "--node-id", "boss")
    with SyncSidecarClient(node.ready["api"]) as sidecar:
        sidecar.heartbeat(Heartbeat(agent_id="edge-7", endpoint_id=PEER))
        sidecar.put_document("manifests", MANIFEST, {"name": "app", "version": "1.0", "arch": "amd64"})

        unknown = node.peat("revoke", "node", "nobody")
        assert unknown.returncode == 3
        assert "nobody" in unknown.stderr

        done = node.peat("revoke", "node", "edge-7", "--reason", "vehicle captured", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"kind": "endpoint", "subject": PEER}
        stored = sidecar.get_document("revocations", f"endpoint:{PEER}")
        assert stored is not None
        assert stored["reason"] == "vehicle captured"
        assert stored["envelope"]

        assert node.peat("revoke", "package", "app:2.0").returncode == 3
        assert node.peat("revoke", "package", "app:1.0", "--arch", "arm64").returncode == 3
        done = node.peat("revoke", "package", "app:1.0")
        assert done.returncode == 0, done.stderr
        assert MANIFEST in done.stdout
        assert node.peat("revoke", "package", f"blake3:{'ef' * 32}").returncode == 0

        listed = json.loads(node.peat("revoke", "list", "--json").stdout)
        assert {(it["kind"], it["subject"]) for it in listed} == {
            ("endpoint", PEER),
            ("package", MANIFEST),
            ("package", "ef" * 32),
        }
        assert "vehicle captured" in node.peat("revoke", "list").stdout


def test_two_that_could_be_meant_are_not_guessed_between(start) -> None:
    node = start("sidecar", "--dev", "--node-id", "boss")
    with SyncSidecarClient(node.ready["api"]) as sidecar:
        for digest, arch in ((MANIFEST, "amd64"), ("ef" * 32, "arm64")):
            sidecar.put_document("manifests", digest, {"name": "app", "version": "1.0", "arch": arch})
        refused = node.peat("revoke", "package", "app:1.0")
        assert refused.returncode == 1
        assert "--arch" in refused.stderr
        assert node.peat("revoke", "package", "app:1.0", "--arch", "arm64").returncode == 0
        assert sidecar.list_documents("revocations") == [f"package:{'ef' * 32}"]
