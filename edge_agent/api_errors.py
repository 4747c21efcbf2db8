"""What goes wrong in the local API, in OpenAI's form. The one place where errors become status codes.

Wrong requests are 4xx and name the field. What is worth trying again is 503, or 429 if the business has used up its own
budget, with Retry-After. Anything else is 500: the device has to be looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from edge_agent.errors import CLIENTS_FAULTS, AgentError, EngineRefusedError, TransientError

_CLIENT_CLOSED_REQUEST: Final = 499


class BadRequestError(Exception):
    """The request is wrong; `param` names the field, `status` is HTTP's word for it."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str = "invalid_value", status: int = 400
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


def error_document(message: str, *, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(status: int, document: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """ASCII alone, as the message may quote what can't be encoded otherwise."""
    return Response(json.dumps(document), status_code=status, headers=headers, media_type="application/json")


def as_clients_fault(error: AgentError, prompt_field: str) -> BadRequestError | None:
    """The engine's word on a request that is wrong in itself; None if it is not the request's fault."""
    if not isinstance(error, EngineRefusedError) or error.code not in CLIENTS_FAULTS:
        return None
    return BadRequestError(
        str(error), code=error.code, param=prompt_field if error.code == "context_length_exceeded" else None
    )


def bad_request_response(error: BadRequestError) -> Response:
    """With the field's name."""
    document = error_document(str(error), kind="invalid_request_error", code=error.code, param=error.param)
    return error_response(error.status, document)


def agent_error_response(error: AgentError) -> Response:
    """With Retry-After if it may pass."""
    if not isinstance(error, TransientError):
        return error_response(500, error_document(str(error), kind="server_error", code=error.code))
    headers = {"Retry-After": str(math.ceil(error.retry_after_s or 1))}
    if error.code == "rate_limited":
        return error_response(429, error_document(str(error), kind="rate_limit_error", code=error.code), headers)
    return error_response(503, error_document(str(error), kind="server_error", code=error.code), headers)


async def _bad_request(_request: Request, error: Exception) -> Response:
    assert isinstance(error, BadRequestError)
    return bad_request_response(error)


async def _agent_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, AgentError)
    return agent_error_response(error)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    document = error_document(error.detail, kind="invalid_request_error", code=None)
    return error_response(error.status_code, document, error.headers)


async def _client_gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _bug(_request: Request, _error: Exception) -> Response:
    message = "the agent has a bug here: look at its log"
    return error_response(500, error_document(message, kind="server_error", code="internal_error"))


HANDLERS: Final[Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]]] = {
    BadRequestError: _bad_request,
    AgentError: _agent_error,
    HTTPException: _http_error,
    ClientGoneError: _client_gone,
    Exception: _bug,
}
"""For Starlette."""
