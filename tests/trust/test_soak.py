"""Long runs over everything that decodes what strangers send."""

import json
import random

import pytest

from peat_p2p.core.errors import UntrustedError
from peat_p2p.fleet.commands import Command, open_command, seal_command
from peat_p2p.trust.identity import Role
from peat_p2p.trust.revocation import Revocation, open_revocation, seal_revocation

ROUNDS = 100_000


def mutate(text: bytes, chance: random.Random) -> bytes:
    changed = bytearray(text)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[at] = chance.randrange(256)
            case 1:
                del changed[at : at + chance.randint(1, 8)]
            case 2:
                changed[at:at] = chance.randbytes(chance.randint(1, 8))
            case _:
                changed[at] ^= 1 << chance.randrange(8)
        if not changed:
            break
    return bytes(changed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2))
def test_no_mutated_document_is_believed(issue, now: float, seed: int) -> None:
    """Whatever is changed: refused, or what was signed."""
    hub = issue("hub", Role.HUB)
    chance = random.Random(seed)
    order = Command(id="c", target_id="*", command_type="pull", created_at=1, payload_json='{"package":"app"}')
    command = json.dumps({**order.to_fields(), "envelope": seal_command(hub, order)}).encode()
    revoked = Revocation.of_package("ab" * 32, created_at=int(now))
    revocation = json.dumps(seal_revocation(hub, revoked)).encode()
    certificate = hub.identity.certificate
    refused = 0
    for _ in range(ROUNDS // 2):
        try:
            found, signer = open_command("c", json.loads(mutate(command, chance)), hub.anchor, now)
            assert (found.sealed_fields(), signer) == (order.sealed_fields(), hub.identity)
        except (ValueError, AttributeError, UntrustedError):
            refused += 1
        try:
            document = json.loads(mutate(revocation, chance))
            if isinstance(document, dict):
                assert open_revocation(revoked.doc_id, document, hub.anchor).revocation == revoked
        except (ValueError, UntrustedError):
            refused += 1
        changed = mutate(certificate, chance)
        if changed != certificate:
            with pytest.raises(UntrustedError):
                hub.anchor.verify(changed, now)
    assert refused > ROUNDS // 4
