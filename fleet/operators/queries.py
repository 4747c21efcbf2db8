"""Reads: which operator stands behind a token."""

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from django.db.models import Q, QuerySet
from django.utils import timezone

from fleet.operators.actions import hash_token
from fleet.operators.models import OperatorToken

# A row written with each request would make every read a write.
_LAST_USED_RESOLUTION = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Operator:
    """The caller behind a valid token; stands where Django has a user. `str()` is the actor's name in timelines."""

    token_id: int
    name: str
    scopes: frozenset[str]

    is_authenticated: ClassVar[bool] = True
    is_anonymous: ClassVar[bool] = False
    is_active: ClassVar[bool] = True
    is_staff: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"token:{self.name}"

    @property
    def pk(self) -> str:
        """What throttles and caches tell callers apart by."""
        return str(self)


def tokens() -> QuerySet[OperatorToken]:
    """All tokens, newest first."""
    return OperatorToken.objects.order_by("-created_at", "-pk")


def find_operator(token: str) -> Operator | None:
    """The operator with this token, unless it is unknown, expired or revoked. Notes its use once a minute."""
    now = timezone.now()
    valid = OperatorToken.objects.filter(Q(expires_at=None) | Q(expires_at__gt=now), revoked_at=None)
    row = valid.filter(token_hash=hash_token(token)).first()
    if row is None:
        return None
    if row.last_used_at is None or now - row.last_used_at >= _LAST_USED_RESOLUTION:
        OperatorToken.objects.filter(pk=row.pk).update(last_used_at=now)
    return Operator(row.pk, row.name, frozenset(row.scopes))
