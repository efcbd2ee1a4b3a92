"""Finding what a peer lacks when no cursor tells.

Owns the hash tree over the versions of one class and the descent that compares two of them. Keeps the rule that
comparing equal replicas costs a few hundred bytes, and different ones an amount that follows the difference. Digests
are sums of short hashes: they find accidental differences; what is then sent is verified by signatures, not by them.
Must not know what a part holds.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from peat_p2p.mesh.frames import DIGEST, FANOUT, LEAF_DEPTH, MAX_NODES, Listing, Summary, Version, Want
from peat_p2p.mesh.ports import Key, Store

_LEAVES = FANOUT**LEAF_DEPTH
_MASK = (1 << 64) - 1
_LIST_BELOW = 16
_REFRESH = 4096


class VersionTree:
    """The hash tree of one class of one store; brought up to date when asked for."""

    def __init__(self, store: Store, klass: int) -> None:
        self._store = store
        self._klass = klass
        self._seq = 0
        self._hashes: dict[Key, tuple[int, int]] = {}
        self._index: dict[int, Key] | None = None
        self._leaves: dict[int, set[Key]] = {}
        # Sparse: most nodes have few parts in most classes.
        self._levels: list[defaultdict[int, int]] = [defaultdict(int) for _ in range(LEAF_DEPTH + 1)]
        self._counts: list[defaultdict[int, int]] = [defaultdict(int) for _ in range(LEAF_DEPTH + 1)]

    def find(self, fingerprint: int) -> Key | None:
        """The part of this name, if it is here."""
        self.refresh()
        if self._index is None:
            self._index = {fingerprint: key for key, (fingerprint, _) in self._hashes.items()}
        return self._index.get(fingerprint)

    def refresh(self) -> None:
        """Take in what changed in the store since the last time."""
        while changed := self._store.changed_since(self._klass, self._seq, _REFRESH):
            for seq, key in changed:
                self._seq = seq
                version = self._store.version(key)
                if version is not None:
                    self._put(key, version)

    def digest(self, depth: int, node: int) -> int:
        """The digest of a node; 0 if nothing is below it."""
        return self._levels[depth].get(node, 0)

    @property
    def empty(self) -> bool:
        """Whether the class has no parts here."""
        return not self._counts[0].get(0)

    def keys(self, depth: int, node: int) -> list[Key]:
        """The parts below a node."""
        if not self._counts[depth].get(node):
            return []
        width = FANOUT ** (LEAF_DEPTH - depth)
        found: list[Key] = []
        for leaf in range(node * width, (node + 1) * width):
            found.extend(self._leaves.get(leaf, ()))
        return found

    def fingerprint(self, key: Key) -> int:
        """The name of a part in listings."""
        return self._hashes[key][0]

    def answer(self, want: Want) -> Summary | Listing:
        """What this replica holds below the nodes of `want`, in the shorter form."""
        self.refresh()
        if want.depth == LEAF_DEPTH or self._few(want):
            return self._listing(want)
        children = [child for node in want.nodes for child in range(node * FANOUT, (node + 1) * FANOUT)]
        digests = tuple(self._levels[want.depth + 1].get(child, 0) for child in children)
        return Summary(want.klass, want.depth, want.nodes, digests)

    def _few(self, want: Want) -> bool:
        return sum(self._counts[want.depth].get(node, 0) for node in want.nodes) <= _LIST_BELOW * len(want.nodes)

    def _listing(self, want: Want) -> Listing:
        parts: list[tuple[int, Version]] = []
        for node in want.nodes:
            for key in self.keys(want.depth, node):
                version = self._store.version(key)
                if version is None:
                    self._drop(key)
                else:
                    parts.append((self._hashes[key][0], version))
        return Listing(want.klass, want.depth, want.nodes, tuple(parts))

    def _put(self, key: Key, version: Version) -> None:
        old = self._hashes.get(key)
        if old is None:
            fingerprint = fingerprint_of(self._store.encode_key(key))
            if self._index is not None:
                self._index[fingerprint] = key
        else:
            fingerprint = old[0]
        text = b"%d %d %d %d" % (fingerprint, *version)
        value = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        leaf = fingerprint % _LEAVES
        self._hashes[key] = (fingerprint, value)
        self._leaves.setdefault(leaf, set()).add(key)
        self._add(leaf, value - (old[1] if old else 0), 0 if old else 1)

    def _drop(self, key: Key) -> None:
        fingerprint, value = self._hashes.pop(key)
        if self._index is not None:
            self._index.pop(fingerprint, None)
        leaf = fingerprint % _LEAVES
        self._leaves[leaf].discard(key)
        self._add(leaf, -value, -1)

    def _add(self, leaf: int, value: int, count: int) -> None:
        node = leaf
        for depth in range(LEAF_DEPTH, -1, -1):
            level = self._levels[depth]
            level[node] = (level[node] + value) & _MASK
            self._counts[depth][node] += count
            node //= FANOUT


def fingerprint_of(encoded_key: bytes) -> int:
    """The short name of a part, from its key's wire form."""
    return int.from_bytes(hashlib.blake2b(encoded_key, digest_size=DIGEST).digest(), "big")


class Repair:
    """One descent: asks a peer what it holds and collects in `lacks` the parts to offer it."""

    def __init__(self, tree: VersionTree, klass: int) -> None:
        self._tree = tree
        self._klass = klass
        self._asked: set[tuple[int, int]] = set()
        self.lacks: list[Key] = []

    @property
    def done(self) -> bool:
        """Whether every question was answered."""
        return not self._asked

    def begin(self) -> list[Want]:
        """The first question; none if there is nothing here that the peer could lack."""
        self._tree.refresh()
        if self._tree.empty:
            return []
        return self._ask(0, [0])

    def summary(self, summary: Summary) -> list[Want]:
        """Compare digests; returns further questions."""
        self._answered(summary.depth, summary.nodes)
        depth = summary.depth + 1
        differ: list[int] = []
        at = 0
        for node in summary.nodes:
            for child in range(node * FANOUT, (node + 1) * FANOUT):
                theirs, ours = summary.digests[at], self._tree.digest(depth, child)
                at += 1
                if ours in (0, theirs):
                    continue
                if theirs == 0:
                    self.lacks.extend(self._tree.keys(depth, child))
                else:
                    differ.append(child)
        return self._ask(depth, differ)

    def listing(self, listing: Listing) -> list[tuple[Key, Version]]:
        """Compare parts; returns which of ours the peer has and how new."""
        self._answered(listing.depth, listing.nodes)
        theirs = dict(listing.parts)
        known: list[tuple[Key, Version]] = []
        for node in listing.nodes:
            for key in self._tree.keys(listing.depth, node):
                version = theirs.get(self._tree.fingerprint(key))
                if version is not None:
                    known.append((key, version))
                self.lacks.append(key)
        return known

    def _answered(self, depth: int, nodes: Iterable[int]) -> None:
        for node in nodes:
            if (depth, node) not in self._asked:
                raise UnaskedError
            self._asked.discard((depth, node))

    def _ask(self, depth: int, nodes: list[int]) -> list[Want]:
        self._asked.update((depth, node) for node in nodes)
        return [Want(self._klass, depth, tuple(nodes[at : at + MAX_NODES])) for at in range(0, len(nodes), MAX_NODES)]


class UnaskedError(Exception):
    """An answer to a question that was not asked."""
