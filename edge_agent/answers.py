"""Answers on their way from an engine process to whoever asked. Knows pieces and calls, not where they come from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from edge_agent.engine_wire import Piece
from edge_agent.errors import AgentError


class Answers:
    """The pieces of one or several answers as they come, mixed. An error of one of them ends them all.

    `place_of` a piece's call is the answer's number. Closing early cancels the requests.
    """

    def __init__(
        self,
        call_ids: Collection[str],
        queue: asyncio.Queue[Piece | AgentError],
        release: Callable[[Collection[str]], None],
    ) -> None:
        self.place_of: Mapping[str, int] = {call_id: place for place, call_id in enumerate(call_ids)}
        self._queue = queue
        self._release = release
        self._open = set(call_ids)
        self._has_failed = False
        self._is_closed = False

    def __aiter__(self) -> Answers:
        return self

    async def __anext__(self) -> Piece:
        if self._has_failed or not self._open:
            raise StopAsyncIteration
        piece = await self._queue.get()
        if isinstance(piece, AgentError):
            self._has_failed = True
            raise piece
        if piece.finish_reason is not None:
            self._open.discard(piece.call_id)
        return piece

    def close(self) -> None:
        """Give up what has not come yet."""
        if not self._is_closed:
            self._is_closed = True
            self._release(self._open)
