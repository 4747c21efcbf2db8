"""Bodies from devices: read with a limit, unpacked with a limit, decoded strictly."""

import re
import zlib
from typing import TypeVar

from django.http import HttpRequest

from engine.strict_json import DecodeError, decode
from fleet.device_api.errors import BadBodyError, BodyTooLargeError, UnsupportedEncodingError

T = TypeVar("T")

# NUL and halves of surrogate pairs are JSON, but no database keeps them. Agents write UTF-8 and need no escapes.
_UNSTORABLE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


def read_record(cls: type[T], request: HttpRequest, *, max_bytes: int) -> T:
    """The record in the request's body, of at most `max_bytes` once unpacked; raises `ApiError`s."""
    if len(request.body) > max_bytes:
        raise BodyTooLargeError(f"The body has {len(request.body)} bytes; at most {max_bytes} are taken.")
    body = _unpacked(request, max_bytes)
    if _UNSTORABLE.search(body):
        raise BadBodyError("The body holds escapes of NUL or of surrogates.")
    try:
        return decode(cls, body)
    except (DecodeError, OverflowError) as error:
        raise BadBodyError(str(error)) from error


def _unpacked(request: HttpRequest, max_bytes: int) -> bytes:
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "identity":
        return request.body
    if encoding != "gzip":
        raise UnsupportedEncodingError(f"The encoding {encoding!r:.40} is not spoken here.")
    return gunzip(request.body, max_bytes)


def gunzip(packed: bytes, max_bytes: int) -> bytes:
    """One gzip member, unpacked only as far as allowed: a bomb costs `max_bytes` of memory and no more."""
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        body = stream.decompress(packed, max_bytes + 1)
    except zlib.error as error:
        raise BadBodyError(f"The body is not gzip: {error}.") from error
    if len(body) > max_bytes:
        raise BodyTooLargeError(f"Unpacked, the body has more than {max_bytes} bytes.")
    if not stream.eof or stream.unused_data:
        raise BadBodyError("The gzip body is cut short, or something follows it.")
    return body
