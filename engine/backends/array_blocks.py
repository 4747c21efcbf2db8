"""Blocks of back ends whose states are plain arrays: copies of slices. `native` shares memory instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.backends import Prefix

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ArrayBlock:
    """Keys and values of some tokens, [parts, kv_heads, block_tokens, head_dim]; a part is a layer's keys or values."""

    array: F32

    @property
    def data(self) -> NDArray[np.uint8]:
        """Its bytes."""
        return self.array.reshape(-1).view(np.uint8)

    @property
    def resident_bytes(self) -> int:
        """As if all pages were written."""
        return self.array.nbytes


class Blocks:
    """Cuts blocks out of arrays, and puts them back. The parts of a state are [kv_heads, max_tokens, head_dim] each."""

    def __init__(self, *, num_parts: int, kv_heads: int, block_tokens: int, head_dim: int) -> None:
        self.block_tokens = block_tokens
        self._shape = (num_parts, kv_heads, block_tokens, head_dim)

    @property
    def size_bytes(self) -> int:
        """Of a block."""
        return 4 * int(np.prod(self._shape))

    def read(self, data: NDArray[np.uint8]) -> ArrayBlock:
        """A block from its bytes; raises `ValueError` if it has another size."""
        return ArrayBlock(np.frombuffer(data.tobytes(), np.float32).reshape(self._shape))

    def full(self, parts: Sequence[F32], index: int, num_tokens: int) -> ArrayBlock:
        """Block `index` of a state of `num_tokens`; raises `ValueError` if it is not full."""
        if not 0 <= index < num_tokens // self.block_tokens:
            raise ValueError(f"block {index} is not full: the state holds {num_tokens} tokens")
        return self._cut(parts, index, self.block_tokens)

    def all(self, parts: Sequence[F32], num_tokens: int) -> tuple[ArrayBlock, ...]:
        """All blocks of a state of `num_tokens`, the last one padded with zeros."""
        starts = range(0, num_tokens, self.block_tokens)
        return tuple(
            self._cut(parts, index, min(self.block_tokens, num_tokens - start)) for index, start in enumerate(starts)
        )

    def paste(self, parts: Sequence[F32], prefix: Prefix) -> None:
        """Begin a state with the prefix's tokens; raises `ValueError` if its blocks do not hold as many."""
        if len(prefix.blocks) != -(-prefix.num_tokens // self.block_tokens):
            raise ValueError(f"{len(prefix.blocks)} blocks for the first {prefix.num_tokens} tokens")
        for index, block in enumerate(prefix.blocks):
            assert isinstance(block, ArrayBlock)
            start, end = index * self.block_tokens, min((index + 1) * self.block_tokens, prefix.num_tokens)
            for part, cached in zip(parts, block.array, strict=True):
                part[:, start:end] = cached[:, : end - start]

    def _cut(self, parts: Sequence[F32], index: int, num_tokens: int) -> ArrayBlock:
        start = index * self.block_tokens
        array = np.zeros(self._shape, np.float32)
        for target, part in zip(array, parts, strict=True):
            target[:, :num_tokens] = part[:, start : start + num_tokens]
        return ArrayBlock(array)
