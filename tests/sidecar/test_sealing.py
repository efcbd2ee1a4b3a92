import json
import time

import pytest

from peat_p2p.client import Command, CommandStatus, SidecarClient
from peat_p2p.core.errors import DeniedError, InvalidInputError
from peat_p2p.fleet.commands import may_act, open_command, seal_command
from peat_p2p.trust.credentials import NodeCredentials
from peat_p2p.trust.errors import BadSignatureError
from peat_p2p.trust.identity import Role
from peat_p2p.trust.revocation import RevocationSet, open_revocation

ORDER = Command(
    id="k", target_id="a", command_type="pull", status=CommandStatus.PENDING, payload_json='{"package":"p"}'
)


@pytest.fixture
async def client(run):
    async with run(node={"roles": (Role.HUB,)}) as endpoints, SidecarClient(endpoints.api) as client:
        yield client


@pytest.fixture
def anchor(formation):
    return formation.anchor


async def document(client, command_id="k"):
    return await client.get_document("commands", command_id)


def opened(document, anchor, at=None):
    return open_command("k", document, anchor, at or time.time())


async def test_put_command_signs(client, anchor):
    await client.put_command(ORDER)
    command, signer = opened(await document(client), anchor)
    assert command.sealed_fields() == ORDER.sealed_fields()
    assert (signer.node_id, may_act(signer, "a")) == ("n1", True)


async def test_a_command_put_as_a_document_is_signed_too(client, anchor):
    await client.put_document("commands", "k", {"target_id": "a", "command_type": "pull", "extra": 1.50})
    stored = await document(client)
    assert stored["extra"] == 1.5
    assert "id" not in stored
    command, _ = opened(stored, anchor)
    assert (command.id, command.target_id, command.command_type) == ("k", "a", "pull")


async def test_a_word_on_the_status_leaves_the_signature_as_it_is(client, anchor):
    await client.put_command(ORDER)
    before = (await document(client))["envelope"]
    await client.put_document("commands", "k", {"status": 2})
    await client.put_document("commands", "k", json.dumps({**ORDER.to_fields(), "status": 3}))
    stored = await document(client)
    assert stored["envelope"] == before
    assert opened(stored, anchor)[0].status is CommandStatus.COMPLETED


async def test_a_change_of_the_content_is_signed_anew(client, anchor):
    await client.put_command(ORDER)
    await client.put_document("commands", "k", {"target_id": "b"})
    command, _ = opened(await document(client), anchor)
    assert (command.target_id, command.command_type) == ("b", "pull")


async def test_an_envelope_of_the_callers_own_is_kept(client, anchor, formation, tmp_path):
    formation.issue("boss", (Role.OPERATOR,), tmp_path / "boss", replace=True)
    envelope = seal_command(NodeCredentials.load(tmp_path / "boss"), ORDER)
    await client.put_document("commands", "k", {**ORDER.to_fields(), "envelope": envelope})
    assert opened(await document(client), anchor)[1].node_id == "boss"


async def test_an_agents_sidecar_accepts_an_order_that_others_will_not_follow(run, anchor):
    async with run("edge") as endpoints, SidecarClient(endpoints.api) as client:
        await client.put_command(ORDER)
        _, signer = opened(await document(client), anchor)
        assert not may_act(signer, "a")
        assert may_act(signer, "edge")


async def test_an_envelope_of_another_command_does_not_pass(client, anchor):
    await client.put_command(ORDER)
    stored = await document(client)
    with pytest.raises(BadSignatureError):
        open_command("other", stored, anchor, time.time())


async def test_a_revocation_is_signed(client, anchor):
    endpoint = "ab" * 32
    await client.put_document("revocations", f"endpoint:{endpoint}", {"reason": "stolen", "note": 1.50})
    stored = await client.get_document("revocations", f"endpoint:{endpoint}")
    proved = open_revocation(f"endpoint:{endpoint}", stored, anchor)
    assert (proved.signer.node_id, proved.revocation.reason) == ("n1", "stolen")
    assert RevocationSet.of([proved]).endpoints() == {endpoint}


async def test_a_revocation_of_nothing_is_refused(client):
    with pytest.raises(InvalidInputError, match="endpoint:ENDPOINT_ID"):
        await client.put_document("revocations", "nonsense", {"reason": "x"})


async def test_an_agents_sidecar_does_not_revoke(run):
    async with run("edge") as endpoints, SidecarClient(endpoints.api) as client:
        with pytest.raises(DeniedError, match="may not revoke"):
            await client.put_document("revocations", f"endpoint:{'ab' * 32}", {"reason": "x"})
        assert await client.list_documents("revocations") == []
