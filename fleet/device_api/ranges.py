"""Single byte ranges of RFC 9110. Pure: header in, span out."""

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` to before `stop` of a file."""

    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        """How many bytes these are."""
        return self.stop - self.start


def parse_range(header: str, size_bytes: int) -> Span | None:
    """The span that is asked for; None where the whole file is to be sent: several ranges, or no range we know.

    Raises:
        ValueError: The range begins behind the end of the file, or asks for the last 0 bytes.
    """
    found = _RANGE.fullmatch(header.strip())
    if found is None or found.group() == "bytes=-":
        return None
    first, last = found.groups()
    if not first:
        return _suffix(int(last), size_bytes)
    start = int(first)
    if last and int(last) < start:
        return None  # not a valid range at all, and those are ignored
    if start >= size_bytes:
        raise ValueError(f"byte {start} of {size_bytes}")
    return Span(start, min(int(last) + 1, size_bytes) if last else size_bytes)


def _suffix(num_bytes: int, size_bytes: int) -> Span:
    if num_bytes == 0 or size_bytes == 0:
        raise ValueError("an empty suffix")
    return Span(max(0, size_bytes - num_bytes), size_bytes)
