"""`Idempotency-Key` on any POST of the operators' API: a repeat gets the first answer instead of a second effect.

Knows requests and answers as bytes, nothing of what they mean. The key belongs to the caller's credential; method,
path and body make the fingerprint.
"""

import hashlib
import re
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from fleet.errors import MalformedRequestError, PayloadTooLargeError, problem_response
from fleet.idempotency import actions
from registry.errors import ApiError

_API = "/api/v1/"
_KEY = re.compile(r"[!-~]{1,200}")
_MAX_BODY_BYTES = 1 << 20
# Not carried out, or worth another try with the same key.
_NOT_KEPT = {401, 403, 429}

Answer = Callable[[HttpRequest], HttpResponse]


class IdempotencyMiddleware:
    """Wraps the views; see the module."""

    def __init__(self, get_response: Answer) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer, or repeat an earlier answer."""
        key = request.headers.get("Idempotency-Key")
        if key is None or request.method != "POST" or not request.path.startswith(_API):
            return self._get_response(request)
        try:
            return self._answer_once(request, key)
        except ApiError as error:
            return problem_response(error)

    def _answer_once(self, request: HttpRequest, key: str) -> HttpResponse:
        if not _KEY.fullmatch(key):
            raise MalformedRequestError("An idempotency key has 1 to 200 printable ASCII characters.")
        record, is_first = actions.claim(caller=_caller(request), key=key, fingerprint=_fingerprint(request))
        if not is_first:
            return HttpResponse(
                bytes(record.body or b""),
                status=record.status,
                content_type=record.content_type,
                headers={"Idempotency-Replayed": "true"},
            )
        response = self._get_response(request)
        if response.status_code >= 500 or response.status_code in _NOT_KEPT:
            actions.release(record)
        else:
            content_type = response.headers.get("Content-Type", "")
            actions.keep_answer(record, status=response.status_code, content_type=content_type, body=response.content)
        return response


def _caller(request: HttpRequest) -> str:
    """Who sent it, before anybody has looked whether the credential is good: its hash."""
    credential = request.headers.get("Authorization") or request.session.session_key or ""
    return hashlib.sha256(credential.encode()).hexdigest()


def _fingerprint(request: HttpRequest) -> str:
    if int(request.headers.get("Content-Length") or 0) > _MAX_BODY_BYTES:
        raise PayloadTooLargeError("A request with an idempotency key may have at most 1 MiB.")
    head = f"{request.method} {request.get_full_path()}\n".encode()
    return hashlib.sha256(head + request.body).hexdigest()
