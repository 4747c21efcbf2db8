"""Making and revoking operator tokens."""

import hashlib
import secrets
from collections.abc import Iterable
from datetime import datetime

from django.db import IntegrityError, transaction
from django.utils import timezone

from fleet.operators.models import OperatorToken
from fleet.operators.scopes import Scope
from registry.errors import ApiError

TOKEN_MARK = "soc_"  # noqa: S105 - the mark that lets secret scanners find leaked tokens
_SHOWN_CHARS = 12


class UnknownScopeError(ApiError):
    """A scope that does not exist."""

    code = "unknown_scope"
    status = 422
    title = "Unknown scope"


class TokenNameTakenError(ApiError):
    """Names tell tokens apart in lists and timelines, so each is used once."""

    code = "token_name_taken"
    status = 409
    title = "Token name taken"
    default_hint = "Choose another name."


def hash_token(token: str) -> str:
    """Tokens carry 256 random bits, so a plain hash is enough: there is nothing to guess."""
    return hashlib.sha256(token.encode()).hexdigest()


def create_token(
    *, name: str, scopes: Iterable[str], expires_at: datetime | None = None, created_by: str = ""
) -> tuple[OperatorToken, str]:
    """The stored token and its secret, which is shown this one time."""
    wanted = sorted(set(scopes))
    if unknown := [scope for scope in wanted if scope not in list(Scope)]:
        raise UnknownScopeError(f"{unknown[0]!r} is no scope.", hint=f"Scopes are: {', '.join(Scope)}.")
    secret = TOKEN_MARK + secrets.token_urlsafe(32)
    try:
        with transaction.atomic():
            token = OperatorToken.objects.create(
                name=name,
                prefix=secret[:_SHOWN_CHARS],
                token_hash=hash_token(secret),
                scopes=wanted,
                expires_at=expires_at,
                created_by=created_by,
            )
    except IntegrityError as error:
        raise TokenNameTakenError(f"A token named {name!r} exists.") from error
    return token, secret


def revoke_token(*, token_id: int) -> bool:
    """Revoke it; False if it was revoked before."""
    return bool(OperatorToken.objects.filter(pk=token_id, revoked_at=None).update(revoked_at=timezone.now()))
