"""Lets an upload that is cut off keep what has arrived, under ASGI. Knows the protocol, not what is uploaded.

Django reads a body to its end before it calls a view, and drops it if the client goes away meanwhile: half an hour's
upload would start again from the last request's offset. For uploads, the cut becomes the end of the body instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class KeepCutUploads:
    """Wraps an ASGI application; acts on PATCH requests below `path_prefix` alone."""

    def __init__(self, application: Application, *, path_prefix: str) -> None:
        self._application = application
        self._path_prefix = path_prefix

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection or request."""
        is_upload = (
            scope["type"] == "http" and scope["method"] == "PATCH" and scope["path"].startswith(self._path_prefix)
        )
        await self._application(scope, _CutIsEnd(receive) if is_upload else receive, send)


class _CutIsEnd:
    """Receives a request's messages, with a disconnection within the body told as the body's end."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_body_ended = False
        self._is_cut = False

    async def __call__(self) -> Message:
        if self._is_cut:
            await asyncio.Future()  # Django waits for a disconnection while the view works, and cancels this then
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._has_body_ended:
            self._is_cut = True
            return {"type": "http.request", "body": b"", "more_body": False}
        self._has_body_ended = not message.get("more_body", False)
        return message
