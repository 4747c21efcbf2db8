"""The beginnings of prompts that were run, so that they need not run again.

Keys and values are kept in blocks, in a tree for each `Scope`: a node holds the tokens of a block and follows the node
of the tokens before. Tokens are compared one by one, never by a hash. A scope names everything else that keys and
values depend on, and whose they are: nothing is ever shared beyond it. The blocks of running requests are held by
leases; of the others, which are *idle*, the least recently used go first. What has been of use is written to the disk,
if there is one.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass, field
from itertools import takewhile

from engine.backends import Backend, Block, Prefix
from engine.business import Business
from engine.ledger import Kind, Ledger
from engine.prefix_disk import NO_DISK, StoredBlock, Tier
from engine.strict_json import canonical_json

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a prefix is bound to beside its tokens. `adapter` is a content digest, which covers its scale."""

    business: str
    base: str
    adapter: str | None
    tokenizer: str
    chat_template: str
    numerics: str

    @property
    def digest(self) -> str:
        """Names the scope."""
        return hashlib.sha256(canonical_json(asdict(self))).hexdigest()


class Node:
    """Tokens of one block, behind those of its parent. `block` is None while it lies on the disk alone.

    `write` brings it there, and says in the end whether it did; None if it was never tried.
    """

    __slots__ = ("block", "children", "digest", "num_leases", "parent", "scope", "tokens", "write")

    digest: str

    def __init__(self, scope: Scope, parent: Node | None, tokens: tuple[int, ...], block: Block | None) -> None:
        self.scope = scope
        self.parent = parent
        self.tokens = tokens
        self.block = block
        self.children: list[Node] = []
        self.num_leases = 0
        self.write: Future[bool] | None = None
        before = b"" if parent is None else parent.digest.encode()
        self.digest = hashlib.sha256(before + canonical_json(tokens)).hexdigest()

    @property
    def is_being_stored(self) -> bool:
        """Whether its block is still needed, to be written."""
        return self.write is not None and not self.write.done()

    @property
    def is_stored(self) -> bool:
        """Whether it lies on the disk, as far as is known."""
        return self.write is not None and self.write.done() and self.write.result()

    @property
    def is_idle(self) -> bool:
        """Whether its block is in memory and nobody needs it there."""
        return self.block is not None and not self.num_leases and not self.is_being_stored

    def best_child(self, tokens: Sequence[int]) -> tuple[Node | None, int]:
        """The child that begins like `tokens` for longest, and for how long."""
        common = [(_num_common(child.tokens, tokens), child) for child in self.children]
        length, child = max(common, key=lambda pair: pair[0], default=(0, None))
        return (child, length) if length else (None, 0)

    def path(self) -> Iterator[Node]:
        """The nodes from here to the beginning, without the root."""
        node: Node | None = self
        while node is not None and node.parent is not None:
            yield node
            node = node.parent


@dataclass(slots=True)
class Lease:
    """Blocks that a sequence uses, which stay as long. `num_tokens` of them are what it began with."""

    scope: Scope
    business: Business
    nodes: list[Node] = field(default_factory=list)
    num_tokens: int = 0

    @property
    def prefix(self) -> Prefix:
        """What a state begins with."""
        return Prefix(tuple(node.block for node in self.nodes if node.block is not None), self.num_tokens)


class PrefixCache:
    """The trees of all scopes, within the ledger's cap for them."""

    def __init__(self, backend: Backend, ledger: Ledger, tier: Tier = NO_DISK) -> None:
        self._backend = backend
        self._ledger = ledger
        self._tier = tier
        self._roots: dict[str, Node] = {}
        self._businesses: dict[str, Business] = {}
        self._recent: OrderedDict[Node, None] = (
            OrderedDict()
        )  # with blocks in memory; a parent is more recent than a child

    @property
    def blocks(self) -> list[Block]:
        """Those in memory."""
        return [node.block for node in self._recent if node.block is not None]

    def idle_bytes(self, business: str | None = None) -> int:
        """What `shrink` could give up, of one business or of all."""
        return len(self._idle(business)) * self._backend.block_bytes

    def lookup(self, scope: Scope, business: Business, token_ids: Sequence[int]) -> Lease:
        """The longest beginning of `token_ids` that is there; it stays until `release`."""
        lease = Lease(scope, business)
        node = self._root(scope)
        while True:
            child, length = node.best_child(token_ids[lease.num_tokens : lease.num_tokens + self._backend.block_tokens])
            is_whole = length == self._backend.block_tokens
            if child is None or not (is_whole or self._backend.cuts_anywhere) or not self._is_at_hand(child, business):
                break
            self._hold(lease, child)
            lease.num_tokens += length
            node = child
            if not is_whole:
                break
        self._touch(node)
        return lease

    def note_use(self, lease: Lease) -> None:
        """A sequence has begun with what was found, which is worth a place on the disk."""
        for node in lease.nodes:
            self._store(node)
        # A block is of no use without those before it: they count as more recent.
        self._tier.touch(lease.scope.digest, [node.digest for node in reversed(lease.nodes) if node.write is not None])

    def share(self, lease: Lease, token_ids: Sequence[int], blocks: Sequence[Block]) -> int:
        """Let others begin with full blocks of a running sequence's `token_ids`, as far as there is room.

        The cache answers for them from now on: what the ledger had for them as KV goes over. Returns those bytes.
        """
        return self._insert(lease, token_ids, blocks, is_shared=True) * self._backend.block_bytes

    def extend(self, lease: Lease, token_ids: Sequence[int], blocks: Sequence[Block]) -> None:
        """Keep the blocks of a sequence that has ended, as far as there is room."""
        self._insert(lease, token_ids, blocks, is_shared=False)

    def release(self, lease: Lease) -> None:
        """The sequence that held the lease is over."""
        for node in lease.nodes:
            node.num_leases -= 1
        lease.nodes.clear()

    def shrink(self, size_bytes: float, business: str | None = None) -> bool:
        """Give up at least so many bytes, of one business or of any, if that is possible; says whether it was."""
        candidates = self._idle(business)
        num_needed = max(0, math.ceil(size_bytes / self._backend.block_bytes)) if math.isfinite(size_bytes) else 0
        if len(candidates) < num_needed:
            return False
        for victim in candidates[:num_needed]:
            self._drop_block(victim)
        return True

    def forget(self, adapter: str) -> None:
        """Drop what was computed with an adapter that goes, on the disk too."""
        for digest, root in list(self._roots.items()):
            if root.scope.adapter == adapter:
                self._forget_tree(root)
                del self._roots[digest]
        self._tier.forget(adapter)

    def wait_for_disk(self) -> bool:
        """Until no block is kept for the disk's sake; says whether there were any."""
        writes = [node.write for node in self._recent if node.write is not None and not node.write.done()]
        wait(writes)
        return bool(writes)

    def close(self) -> None:
        """Write what is to be written."""
        self._tier.close()

    def _root(self, scope: Scope) -> Node:
        digest = scope.digest
        if digest not in self._roots:
            self._roots[digest] = root = Node(scope, None, (), None)
            self._restore(root)
        return self._roots[digest]

    def _restore(self, root: Node) -> None:
        """Hang what the disk has of a scope into its tree; what follows nothing is of no use."""
        nodes = {root.digest: root}
        for stored in self._tier.blocks(root.scope.digest, asdict(root.scope)):
            parent = nodes.get(stored.parent)
            if parent is None or not 0 < len(stored.tokens) <= self._backend.block_tokens:
                continue
            node = Node(root.scope, parent, stored.tokens, None)
            node.write = _WRITTEN
            parent.children.append(node)
            nodes[node.digest] = node

    def _is_at_hand(self, node: Node, business: Business) -> bool:
        """Whether the block is in memory, if need be again; one that cannot be read is forgotten."""
        if node.block is not None:
            return True
        if not self._make_room(business):
            return False
        block = self._read(node)
        if block is None:
            self._forget_tree(node)
            return False
        self._ledger.reserve(Kind.PREFIX_CACHE, self._backend.block_bytes, business)
        self._keep(node, block, business)
        return True

    def _read(self, node: Node) -> Block | None:
        data = self._tier.read(node.scope.digest, node.digest)
        try:
            return None if data is None else self._backend.block_from(data)
        except ValueError:  # of another size
            return None

    def _insert(self, lease: Lease, token_ids: Sequence[int], blocks: Sequence[Block], *, is_shared: bool) -> int:
        """Hang blocks into the tree; how many of them were new."""
        node, num_new = self._root(lease.scope), 0
        for index, block in enumerate(blocks):
            start = index * self._backend.block_tokens
            tokens = tuple(token_ids[start : start + self._backend.block_tokens])
            child, length = node.best_child(tokens)
            if child is None or length < len(tokens):
                child = self._add(node, tokens, block, lease, is_shared=is_shared)
                if child is None:
                    break
                num_new += 1
            elif child.block is None:
                break
            if child not in lease.nodes:
                self._hold(lease, child)
            node = child
        self._touch(node)
        return num_new

    def _add(
        self, parent: Node, tokens: tuple[int, ...], block: Block, lease: Lease, *, is_shared: bool
    ) -> Node | None:
        """A new node, if there is room; one that is a shorter beginning of it goes."""
        size_bytes, business = self._backend.block_bytes, lease.business
        if is_shared:  # is reserved already
            if not self._make_kind_room():
                return None
            self._ledger.move(size_bytes, Kind.KV, Kind.PREFIX_CACHE, business)
        else:
            if not self._make_room(business):
                return None
            self._ledger.reserve(Kind.PREFIX_CACHE, size_bytes, business)
        shorter = [c for c in parent.children if not c.children and c.tokens == tokens[: len(c.tokens)]]
        for other in shorter:
            if other in lease.nodes:  # the sequence began with it and holds the longer one from now on
                lease.nodes.remove(other)
                other.num_leases -= 1
            if other.is_idle or other.block is None:
                self._forget_tree(other)
        node = Node(lease.scope, parent, tokens, None)
        parent.children.append(node)
        self._keep(node, block, business)
        return node

    def _make_room(self, business: Business) -> bool:
        """Room for one block more, within all caps."""
        size_bytes = self._backend.block_bytes
        own_missing = size_bytes - self._ledger.business_room_bytes(business)
        if own_missing > 0 and not self.shrink(own_missing, business.name):
            return False
        missing = size_bytes - self._ledger.room_bytes(Kind.PREFIX_CACHE)
        return missing <= 0 or self.shrink(missing)

    def _make_kind_room(self) -> bool:
        """Room for one block more, within the cap of cached prompts."""
        return self.shrink(self._backend.block_bytes - self._ledger.kind_room_bytes(Kind.PREFIX_CACHE))

    def _idle(self, business: str | None) -> list[Node]:
        """The least recently used first."""
        return [n for n in self._recent if n.is_idle and business in (None, n.scope.business)]

    def _keep(self, node: Node, block: Block, business: Business) -> None:
        self._businesses[business.name] = business
        node.block = block
        self._recent[node] = None

    def _drop_block(self, node: Node) -> None:
        node.block = None
        del self._recent[node]
        business = self._businesses[node.scope.business]
        self._ledger.release(Kind.PREFIX_CACHE, self._backend.block_bytes, business)
        if not node.is_stored and not node.children:
            self._unhang(node)

    def _forget_tree(self, node: Node) -> None:
        """A node and what follows it; nobody holds them."""
        self._unhang(node)
        for below in [*_below(node), node]:
            if below.block is not None:
                self._drop_block(below)

    @staticmethod
    def _unhang(node: Node) -> None:
        if node.parent is not None and node in node.parent.children:
            node.parent.children.remove(node)

    def _hold(self, lease: Lease, node: Node) -> None:
        node.num_leases += 1
        lease.nodes.append(node)

    def _touch(self, node: Node) -> None:
        for used in node.path():
            if used in self._recent:
                self._recent.move_to_end(used)

    def _store(self, node: Node) -> None:
        """On the disk once it has been of use: most prompts end in a way that never comes again."""
        if node.is_stored or node.is_being_stored or node.block is None:
            return
        parent = node.parent
        assert parent is not None
        stored = StoredBlock(node.digest, parent.digest, node.tokens)
        node.write = self._tier.write(node.scope.digest, asdict(node.scope), stored, node.block)


def _num_common(first: Sequence[int], second: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _below(root: Node) -> list[Node]:
    """All nodes of a tree but its root, children before their parents."""
    below: list[Node] = []
    left = list(root.children)
    while left:
        node = left.pop()
        below.append(node)
        left += node.children
    return below[::-1]


def _written() -> Future[bool]:
    future: Future[bool] = Future()
    future.set_result(True)
    return future


_WRITTEN = _written()
"""Of a node that was found on the disk."""
