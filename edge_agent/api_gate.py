"""Who may ask the local API, decided before a request is looked at: by name of host, token and kind of body.

A web page that a person has open on the device can send requests to it. It can neither call it by a name of its own nor
send JSON without being asked first, which is refused.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from edge_agent.api_errors import BadRequestError, bad_request_response
from edge_agent.errors import UserError

OPEN_PATHS: Final = frozenset({"/health"})
"""What needs no token: whether the device serves is nobody's secret."""


class Gate:
    """ASGI middleware. `hosts`: names to call the API by, None for any. `token`: None asks for none."""

    def __init__(self, app: ASGIApp, *, hosts: Collection[str] | None, token: str | None) -> None:
        self._app = app
        self._hosts = hosts
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, or refuse it."""
        refusal = self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        try:
            self._check_host(request)
            self._check_token(request)
            _check_content_type(request)
        except BadRequestError as error:
            response = bad_request_response(error)
            if error.status == 401:
                response.headers["WWW-Authenticate"] = "Bearer"
            return response
        return None

    def _check_host(self, request: Request) -> None:
        name = request.headers.get("host", "").rpartition("@")[2].partition(":")[0].lower()
        if self._hosts is not None and name not in self._hosts:
            known = ", ".join(sorted(self._hosts))
            raise BadRequestError(f"the host {name!r:.80} is not known here: call {known}", code="unknown_host")

    def _check_token(self, request: Request) -> None:
        if self._token is None or request.url.path in OPEN_PATHS:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
            raise BadRequestError(
                "a token is needed that the agent was started with: send it as `Authorization: Bearer TOKEN`",
                code="invalid_api_key",
                status=401,
            )


def _check_content_type(request: Request) -> None:
    """A page may send forms and plain text anywhere, JSON only with the receiver's consent."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method == "POST" and kind != "application/json":
        raise BadRequestError(
            f"the content type {kind!r:.80} is not supported: send Content-Type: application/json",
            code="unsupported_media_type",
            status=415,
        )


def read_token(path: Path | None) -> str | None:
    """The token in a file; raises `UserError` if there is none or everybody can read it."""
    if path is None:
        return None
    try:
        token, mode = path.read_text().strip(), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"api_token_file {path} can't be read ({error}): give another") from error
    if mode & 0o007:
        raise UserError(f"api_token_file {path} is open to everybody: chmod 600 {path}")
    if not token.isascii() or not token.isprintable() or not token or " " in token:
        raise UserError(
            f"api_token_file {path} must hold one token of ASCII characters: write one, for instance with "
            f"`openssl rand -hex 32 > {path}`"
        )
    return token
