"""What is wrong by the server's word: status codes, problem documents, and the headers that say when to come again."""

from __future__ import annotations

import email.utils
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from edge_agent.errors import RefusedError, UnavailableError
from edge_agent.trust import Signer

MAX_ANSWER_BYTES: Final = 1 << 20
"""Of anything but a file, a manifest or an index."""
_TRY_LATER: Final = frozenset({408, 425, 429})


def error_of(status: int, headers: Mapping[str, str], body: bytes, signer: Signer) -> UnavailableError | RefusedError:
    """The error that an answer stands for; its headers are looked up in any case.

    A device whose clock is wrong sets the signer's by the server's and may try again.
    """
    problem = _problem(body)
    code = str(problem.get("code") or f"http_{status}")
    detail = str(problem.get("detail") or problem.get("title") or f"the server answered {status}")[:500]
    server_now = _http_date(headers.get("Date"))
    if code == "clock_skew" and server_now:
        signer.set_clock(server_now.timestamp())
        return UnavailableError(detail, code=code)
    if status >= 500 or status in _TRY_LATER:
        return UnavailableError(detail, code=code, retry_after_s=_retry_after_s(headers.get("Retry-After")))
    return RefusedError(detail, status=status, code=code)


def seconds(value: str | None) -> float | None:
    """A header's number of seconds; None if it is none."""
    return float(value) if value and re.fullmatch(r"\d{1,9}(\.\d{1,6})?", value) else None


def _problem(body: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        problem = json.loads(body)
        if isinstance(problem, dict):
            return problem
    return {}


def _retry_after_s(value: str | None) -> float | None:
    """Seconds from a Retry-After header in either of its forms."""
    if (given_s := seconds(value)) is not None:
        return given_s
    at = _http_date(value)
    return max(0.0, (at - datetime.now(UTC)).total_seconds()) if at else None


def _http_date(value: str | None) -> datetime | None:
    with suppress(TypeError, ValueError):
        return email.utils.parsedate_to_datetime(value or "").replace(tzinfo=UTC)  # HTTP's dates are all in GMT
    return None
