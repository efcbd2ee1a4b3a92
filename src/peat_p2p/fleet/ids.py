"""The ids of documents: which agent, package or command a document is about.

Owns building and taking apart `AGENT:REST` ids and the names of the collections. An agent id holds no colon, whatever
comes after it may. Must not know what is inside the documents.
"""

from __future__ import annotations

PLATFORMS = "platforms"
DEPLOYMENTS = "deployments"
PACKAGES = "packages"
MANIFESTS = "manifests"
COMMANDS = "commands"
RECEIPTS = "receipts"
REVOCATIONS = "revocations"
ROLLOUTS = "rollouts"

FLEET_COLLECTIONS = (PLATFORMS, DEPLOYMENTS, PACKAGES, MANIFESTS, COMMANDS, RECEIPTS)

_DIGEST_PREFIX = "blake3:"


def deployment_id(agent_id: str, package: str) -> str:
    """The id in `deployments`."""
    return f"{agent_id}:{package}"


def holding_id(agent_id: str, reference: str, arch: str) -> str:
    """The id in `packages`; `reference` is "name:version"."""
    return f"{agent_id}:{reference}-{arch}"


def reference_of(name: str, version: str) -> str:
    """`name:version`; of no name, nothing."""
    return f"{name}:{version}" if name else ""


def receipt_id(command_id: str, agent_id: str) -> str:
    """The id in `receipts`."""
    return f"{command_id}:{agent_id}"


def manifest_id(digest: str) -> str:
    """The id in `manifests`, of a digest with or without its `blake3:`."""
    return digest.removeprefix(_DIGEST_PREFIX)


def manifest_digest(doc_id: str) -> str:
    """The digest that an id in `manifests` stands for."""
    return f"{_DIGEST_PREFIX}{doc_id}"


def split_agent_id(doc_id: str) -> tuple[str, str]:
    """The agent and the rest of an id in `deployments` or `packages`; the rest is empty if there is no colon."""
    agent_id, _, rest = doc_id.partition(":")
    return agent_id, rest


def split_receipt_id(doc_id: str) -> tuple[str, str]:
    """The command and the agent of an id in `receipts`; a command id may hold colons, so the last one parts them."""
    command_id, _, agent_id = doc_id.rpartition(":")
    return command_id, agent_id


def agent_of(collection: str, doc_id: str) -> str | None:
    """The agent whose own document this is, or None for documents that belong to no agent."""
    if collection == PLATFORMS:
        return doc_id
    if collection in (DEPLOYMENTS, PACKAGES):
        return split_agent_id(doc_id)[0]
    if collection == RECEIPTS:
        return split_receipt_id(doc_id)[1]
    return None
