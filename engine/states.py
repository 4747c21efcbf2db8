"""What running sequences hold: keys and values, what they share with the prefix cache, and their adapter.

`SequenceStates` reserves it in the ledger before a sequence starts and gives it back when the sequence ends, is
cancelled or has to make way. Where the engine's cap is reached, idle cached prompts give way first, then idle adapters.
Knows no order and no steps.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

from engine.adapters import ResidentAdapters
from engine.backends import Backend
from engine.errors import CapacityError
from engine.ledger import Kind, Ledger
from engine.prefix_cache import Lease, PrefixCache, Scope
from engine.scheduler import Admission
from engine.sequence import Sequence

ScopeOf = Callable[[Sequence], Scope]


class SequenceStates:
    """Gives sequences their memory and takes it back."""

    def __init__(
        self, backend: Backend, ledger: Ledger, adapters: ResidentAdapters, prefixes: PrefixCache, scope_of: ScopeOf
    ) -> None:
        self._backend = backend
        self._ledger = ledger
        self._adapters = adapters
        self._prefixes = prefixes
        self._scope_of = scope_of

    def start(self, sequence: Sequence) -> Admission:
        """Reserve what the sequence needs and begin its state, with what the cache has of its prompt.

        Raises `InvalidInputError` if its adapter's bundle is damaged.
        """
        lease = self._lookup(sequence)
        admission = Admission.NO_ROOM
        try:
            admission = self._reserve(sequence, lease)
        finally:
            if admission is not Admission.ADMITTED:
                self._prefixes.release(lease)
        if admission is not Admission.ADMITTED:
            return admission
        self._prefixes.note_use(lease)
        sequence.state = self._backend.new_state(sequence.num_max_tokens, lease.prefix)
        sequence.prefix = lease
        sequence.num_computed = lease.num_tokens
        if not sequence.num_evictions:
            sequence.num_cached_tokens = lease.num_tokens
        return Admission.ADMITTED

    def follow(self, sequence: Sequence, leader: Sequence) -> bool:
        """Begin a sequence where its leader stands, who has just run the prompt of both; False if there is no room."""
        assert leader.state is not None
        lease = Lease(self._scope_of(sequence), sequence.business)
        if self._reserve(sequence, lease) is not Admission.ADMITTED:
            return False
        sequence.state = leader.state.fork(sequence.num_max_tokens)
        sequence.prefix = lease
        sequence.num_computed = sequence.num_prompt_tokens
        sequence.num_cached_tokens = sequence.num_prompt_tokens
        return True

    def keep_prompt(self, sequence: Sequence) -> None:
        """Let others begin with the full blocks of a prompt that has just run."""
        if not sequence.business.prompt_cache or not self._backend.shares_blocks:
            return
        assert sequence.state is not None
        assert sequence.prefix is not None
        num_full = sequence.num_computed // self._backend.block_tokens
        blocks = [sequence.state.block(index) for index in range(num_full)]
        tokens = sequence.token_ids[: num_full * self._backend.block_tokens]
        sequence.kv_bytes -= self._prefixes.share(sequence.prefix, tokens, blocks)

    def end(self, sequence: Sequence) -> None:
        """Give everything back; a business that caches prompts keeps the beginning of what was computed."""
        if sequence.state is None:
            return
        assert sequence.prefix is not None
        keeps = sequence.business.prompt_cache and sequence.error is None
        blocks = sequence.state.take() if keeps else ()
        sequence.state.close()
        sequence.state = None
        self._ledger.release(Kind.KV, sequence.kv_bytes, sequence.business)
        sequence.kv_bytes = 0
        if blocks:
            num_kept = self._num_kept(sequence)
            num_blocks = -(-num_kept // self._backend.block_tokens)
            self._prefixes.extend(sequence.prefix, sequence.token_ids[:num_kept], blocks[:num_blocks])
        self._prefixes.release(sequence.prefix)
        sequence.prefix = None
        if sequence.adapter is not None:
            self._adapters.unpin(sequence.adapter)

    def outlook(self, sequence: Sequence, without: SequenceOf[Sequence]) -> Admission:
        """Whether `start` may succeed once other sequences have made way; at best, since they may share what they hold.

        Takes nothing.
        """
        size_bytes = self._backend.state_bytes(sequence.num_max_tokens)
        business = sequence.business
        own = [other for other in without if other.business.name == business.name]
        own_room = self._ledger.business_room_bytes(business) + self._prefixes.idle_bytes(business.name)
        if size_bytes > own_room + self._held_bytes(own):
            return Admission.OVER_OWN_CAP
        kv_room = self._ledger.kind_room_bytes(Kind.KV) + sum(other.kv_bytes for other in without)
        idle_bytes = self._prefixes.idle_bytes() + self._adapters.idle_bytes
        unpinned = {other.adapter for other in without if other.adapter is not None} - {sequence.adapter}
        total_room = self._ledger.total_room_bytes + idle_bytes + self._held_bytes(without)
        total_room += sum(self._adapters.size_bytes(digest) for digest in unpinned)
        if size_bytes > min(kv_room, total_room):
            return Admission.NO_ROOM
        return Admission.ADMITTED

    def _num_kept(self, sequence: Sequence) -> int:
        """For how many of its tokens the blocks have the bits that any other sequence would compute."""
        if self._backend.cuts_anywhere:
            return sequence.num_computed
        num_cut_alike = min(sequence.num_computed, sequence.num_prompt_tokens)  # an answer's tokens ran one by one
        return num_cut_alike - num_cut_alike % self._backend.block_tokens

    def _held_bytes(self, sequences: SequenceOf[Sequence]) -> int:
        """At most, with what the prefix cache answers for."""
        return sum(self._backend.state_bytes(sequence.num_max_tokens) for sequence in sequences)

    def _lookup(self, sequence: Sequence) -> Lease:
        """What there is of its tokens; the last one always runs, since its logits are wanted."""
        scope = self._scope_of(sequence)
        if not sequence.business.prompt_cache:
            return Lease(scope, sequence.business)
        return self._prefixes.lookup(scope, sequence.business, sequence.token_ids[:-1])

    def _reserve(self, sequence: Sequence, lease: Lease) -> Admission:
        """KV for all tokens that the sequence can get, and its adapter; nothing gives way unless that helps."""
        size_bytes = self._backend.state_bytes(sequence.num_max_tokens)
        if self._backend.shares_blocks:
            size_bytes -= lease.num_tokens // self._backend.block_tokens * self._backend.block_bytes
        business = sequence.business
        own_missing = size_bytes - self._ledger.business_room_bytes(business)
        if own_missing > self._prefixes.idle_bytes(business.name):
            return Admission.OVER_OWN_CAP
        if self._ledger.kind_room_bytes(Kind.KV) < size_bytes or not self._pin(sequence):
            return Admission.NO_ROOM
        if not self._make_room(size_bytes - self._ledger.total_room_bytes):
            if sequence.adapter is not None:
                self._adapters.unpin(sequence.adapter)
            return Admission.NO_ROOM
        self._prefixes.shrink(size_bytes - self._ledger.business_room_bytes(business), business.name)
        self._ledger.reserve(Kind.KV, size_bytes, business)
        sequence.kv_bytes = size_bytes
        return Admission.ADMITTED

    def _pin(self, sequence: Sequence) -> bool:
        if sequence.adapter is None:
            return True
        try:
            self._adapters.pin(sequence.adapter, sequence.business.priority)
        except CapacityError:
            return False
        return True

    def _make_room(self, missing_bytes: float) -> bool:
        """Below the engine's cap."""
        cached_bytes = self._prefixes.idle_bytes()
        if missing_bytes > cached_bytes + self._adapters.idle_bytes:
            return False
        self._prefixes.shrink(min(missing_bytes, cached_bytes))
        return self._adapters.shrink(missing_bytes - cached_bytes)
