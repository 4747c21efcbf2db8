"""A file's bytes as an answer: whole or one range, streamed in pieces, or left to nginx.

Knows a path and a span. Who may have the file is decided before; nothing here touches the database.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from fleet.device_api.errors import RangeNotSatisfiableError
from fleet.device_api.ranges import Span, parse_range

PIECE_BYTES = 256 << 10
NGINX_PREFIX = "/_blobs/"
_CONTENT_TYPE = "application/octet-stream"


def answer_file(request: HttpRequest, *, sha256: str, path: Path, size_bytes: int) -> HttpResponseBase:
    """The file or the range of it that the request asks for. The content's SHA-256 is its ETag."""
    etag = f'"{sha256}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, immutable, max-age=31536000"}
    if etag in _tags(request.headers.get("If-None-Match", "")):
        return HttpResponse(status=304, headers=headers)
    if settings.SOCLE_SENDFILE == "nginx":
        relative = path.relative_to(settings.SOCLE_BLOB_DIR)
        return HttpResponse(
            headers=headers | {"X-Accel-Redirect": f"{NGINX_PREFIX}{relative}"}, content_type=_CONTENT_TYPE
        )
    span = _wanted_span(request, etag, size_bytes)
    status = 200
    if span is not None:
        status = 206
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size_bytes}"
    span = span or Span(0, size_bytes)
    headers["Content-Length"] = str(span.size_bytes)
    if request.method == "HEAD":
        return HttpResponse(status=status, headers=headers, content_type=_CONTENT_TYPE)
    return StreamingHttpResponse(
        _pieces(request, path, span), status=status, headers=headers, content_type=_CONTENT_TYPE
    )


def _wanted_span(request: HttpRequest, etag: str, size_bytes: int) -> Span | None:
    """The range, unless the client's copy is of other content (If-Range): then the whole file."""
    header = request.headers.get("Range")
    if header is None or request.headers.get("If-Range", etag) != etag:
        return None
    try:
        return parse_range(header, size_bytes)
    except ValueError as error:
        raise RangeNotSatisfiableError(
            f"The file has no such bytes: {error}.", headers={"Content-Range": f"bytes */{size_bytes}"}
        ) from error


def _tags(header: str) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}


def _pieces(request: HttpRequest, path: Path, span: Span) -> Iterator[bytes] | AsyncIterator[bytes]:
    """Under ASGI an async iterator, so that a slow device holds no thread; under WSGI a plain one."""
    file = path.open("rb")  # opened here: a file that has gone is an error and not a broken stream
    return _read_async(file, span) if isinstance(request, ASGIRequest) else _read(file, span)


def _read(file: BinaryIO, span: Span) -> Iterator[bytes]:
    with file:
        file.seek(span.start)
        left = span.size_bytes
        while left and (piece := file.read(min(PIECE_BYTES, left))):
            left -= len(piece)
            yield piece


async def _read_async(file: BinaryIO, span: Span) -> AsyncIterator[bytes]:
    pieces = _read(file, span)
    try:
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield piece
    finally:
        pieces.close()
