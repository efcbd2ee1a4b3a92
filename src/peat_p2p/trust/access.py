"""Who may call a node's API.

Owns the rule for callers that prove themselves by certificate. Being of the formation is not enough: what a sidecar is
told it signs, so whoever may call a hub's sidecar orders like a hub. Must not know HTTP.
"""

from __future__ import annotations

import ssl

from peat_p2p.core.errors import DeniedError
from peat_p2p.trust.credentials import NodeCredentials, peer_identity
from peat_p2p.trust.identity import Identity, Role
from peat_p2p.trust.revocation import RevocationSet


def may_call(caller: Identity, node: Identity) -> bool:
    """Whether `caller` may use the API of `node`: an operator, the node itself, or one that speaks for its agent.

    A hub may call agents' sidecars, but another hub's or an operator's only as an operator.
    """
    if caller.endpoint_id == node.endpoint_id or caller.has(Role.OPERATOR):
        return True
    if caller.has(Role.HUB):
        return not node.has(Role.HUB, Role.OPERATOR)
    # An agent whose certificate is not its sidecar's: it may only gain a voice that it has already.
    return caller.speaks_for(node.node_id) and node.roles <= caller.roles


def require_caller(
    ssl_object: ssl.SSLObject | ssl.SSLSocket,
    credentials: NodeCredentials,
    at: float,
    revoked: RevocationSet | None = None,
) -> Identity:
    """Who calls over a finished TLS handshake. Raises DeniedError (or UntrustedError) if it may not."""
    caller = peer_identity(ssl_object, credentials.anchor, at)
    if revoked is not None:
        revoked.check_identity(caller)
    if not may_call(caller, credentials.identity):
        raise DeniedError(
            f"{caller} may not use the API of {credentials.identity.node_id}: the role operator is needed"
        )
    return caller
