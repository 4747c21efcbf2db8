"""Every error that leaves the service as RFC 9457 `application/problem+json`, rendered in one place.

Domain errors are `registry.errors.ApiError`; Django REST framework's and Django's own are translated here. Pages
for people keep Django's HTML; everything below /api and /device speaks JSON.
"""

import math
from http import HTTPStatus
from typing import Any

import structlog
from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
    ValidationError,
)
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views import defaults
from rest_framework import exceptions

from registry.errors import ApiError

CONTENT_TYPE = "application/problem+json"
_MACHINE_PATHS = ("/api/", "/device/")

_log = structlog.get_logger(__name__)


class MalformedRequestError(ApiError):
    """The request as such is wrong: not JSON, a bad cursor, a value that no field can hold."""

    code = "malformed_request"
    title = "Malformed request"


class PayloadTooLargeError(ApiError):
    """The body is larger than this endpoint reads."""

    code = "payload_too_large"
    status = 413
    title = "Payload too large"
    default_hint = "Send less at a time."


def problem_response(error: ApiError) -> JsonResponse:
    """The problem document of a domain error."""
    return _render(
        status=error.status,
        title=error.title,
        detail=error.detail,
        code=error.code,
        hint=error.hint,
        fields=error.fields,
        headers=error.headers,
    )


def exception_handler(error: Exception, _context: dict[str, Any]) -> HttpResponse | None:
    """Django REST framework's exception handler. None lets our own bugs through to Django's 500."""
    match error:
        case ApiError():
            response = problem_response(error)
        case exceptions.APIException():
            response = _framework_error(error)
        case Http404():
            response = _framework_error(exceptions.NotFound())
        case PermissionDenied():
            response = _framework_error(exceptions.PermissionDenied())
        case RequestDataTooBig():
            response = problem_response(PayloadTooLargeError("The body is too large."))
        case ValidationError():
            response = problem_response(MalformedRequestError("; ".join(error.messages)))
        case SuspiciousOperation() | BadRequest():
            response = problem_response(MalformedRequestError("The request cannot be read."))
        case _:
            response = None
    return response


def _framework_error(error: exceptions.APIException) -> JsonResponse:
    headers = {"WWW-Authenticate": "Bearer"} if error.status_code == 401 else {}
    if isinstance(error, exceptions.Throttled) and error.wait:
        headers["Retry-After"] = str(math.ceil(error.wait))
    fields: dict[str, list[str]] = {}
    detail, code = str(error.detail), str(getattr(error.detail, "code", error.default_code))
    if isinstance(error, exceptions.ValidationError):
        fields = dict(_flatten(error.detail))
        code = "invalid"
        detail = "; ".join(f"{place}: {texts[0]}" for place, texts in fields.items())
    return _render(
        status=error.status_code,
        title=HTTPStatus(error.status_code).phrase,
        detail=detail,
        code=code,
        fields=fields,
        headers=headers,
    )


def _flatten(detail: Any, place: str = "") -> list[tuple[str, list[str]]]:
    """Nested validation errors as (place, texts): `adapters.2` says which item of which field is wrong."""
    if isinstance(detail, dict):
        items = [(str(key), value) for key, value in detail.items()]
    elif isinstance(detail, list) and any(isinstance(item, (dict, list)) for item in detail):
        items = [(str(index), value) for index, value in enumerate(detail) if value]
    else:
        texts = detail if isinstance(detail, list) else [detail]
        return [(place or "non_field_errors", [str(text) for text in texts])]
    return [pair for key, value in items for pair in _flatten(value, f"{place}.{key}" if place else key)]


def _render(  # noqa: PLR0913 - the members of a problem document
    *,
    status: int,
    title: str,
    detail: str,
    code: str,
    hint: str = "",
    fields: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> JsonResponse:
    document = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "hint": hint,
        "fields": fields or {},
    }
    return JsonResponse(document, status=status, headers=headers, content_type=CONTENT_TYPE)


def _is_for_machines(request: HttpRequest) -> bool:
    return request.path.startswith(_MACHINE_PATHS)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's 400 outside of Django REST framework."""
    if _is_for_machines(request):
        return problem_response(MalformedRequestError("The request cannot be read."))
    return defaults.bad_request(request, exception)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's 403 outside of Django REST framework."""
    if _is_for_machines(request):
        return _framework_error(exceptions.PermissionDenied())
    return defaults.permission_denied(request, exception)


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's 404, for paths that no pattern matches."""
    if _is_for_machines(request):
        return _framework_error(exceptions.NotFound("There is nothing at this path."))
    return defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """Our own bugs: the log has the traceback, the caller learns only that it was not their fault."""
    if _is_for_machines(request):
        return _framework_error(exceptions.APIException())
    return defaults.server_error(request)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """A form without its token."""
    _log.warning("csrf_refused", path=request.path, reason=reason)
    return permission_denied(request, PermissionDenied(reason))
