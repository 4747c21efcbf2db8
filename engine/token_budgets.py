"""How many tokens businesses may use: a bucket for each, filled evenly (a token bucket that may be overdrawn once)."""

from __future__ import annotations

from dataclasses import dataclass

from engine.business import Business
from engine.errors import RateLimitError


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at_s: float


class TokenBudgets:
    """The buckets of the businesses that have a budget. One holds a minute's tokens and begins full."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def require(self, business: Business, now_s: float) -> None:
        """Raise `RateLimitError` while the business has used up its budget."""
        if business.tokens_per_minute is None:
            return
        bucket = self._fill(business, business.tokens_per_minute, now_s)
        if bucket.tokens <= 0:
            retry_after_s = 60 * (1 - bucket.tokens) / business.tokens_per_minute
            raise RateLimitError(
                f"{business.name!r} has used its {business.tokens_per_minute} tokens a minute: "
                f"try again in {retry_after_s:.0f} s",
                retry_after_s=retry_after_s,
            )

    def spend(self, business: Business, num_tokens: int, now_s: float) -> None:
        """Take tokens that were used, also if there are fewer."""
        if business.tokens_per_minute is not None:
            self._fill(business, business.tokens_per_minute, now_s).tokens -= num_tokens

    def _fill(self, business: Business, per_minute: int, now_s: float) -> _Bucket:
        bucket = self._buckets.setdefault(business.name, _Bucket(per_minute, now_s))
        bucket.tokens = min(per_minute, bucket.tokens + (now_s - bucket.filled_at_s) * per_minute / 60)
        bucket.filled_at_s = now_s
        return bucket
