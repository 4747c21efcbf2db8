"""What a device's groups allow it: the tightest of each limit. Pure: what is kept in a group in, values out."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from edge_agent.protocol import Limits

Number = TypeVar("Number", int, float)


def limits_of(kept: Mapping[str, Any]) -> Limits:
    """A group's limits as devices read them; `download_window` is the one of the group."""
    window = kept.get("download_window")
    numbers = {name: value for name, value in kept.items() if name != "download_window"}
    return Limits(**numbers, download_windows=(window,) if window else ())


def tightest(limits: Iterable[Limits]) -> Limits:
    """What keeps to all of them: the least to spend, the highest floor, and every window."""
    known = list(limits)
    return Limits(
        memory_bytes=min(_given(one.memory_bytes for one in known), default=None),
        download_bytes_per_s=min(_given(one.download_bytes_per_s for one in known), default=None),
        min_decode_tokens_per_s=max(_given(one.min_decode_tokens_per_s for one in known), default=None),
        download_windows=tuple(sorted({window for one in known for window in one.download_windows})),
    )


def _given(values: Iterable[Number | None]) -> list[Number]:
    return [value for value in values if value is not None]
