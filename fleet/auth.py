"""Who may call the operators' API: bearer tokens with scopes, or a signed-in member of staff.

A view names what it needs: `required_scopes = {"GET": "fleet:read", "POST": "fleet:write"}`. A method without an
entry is refused, so that a forgotten scope never opens a door.
"""

from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed, PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from fleet.operators.queries import Operator, find_operator
from fleet.operators.scopes import Scope, grants

_READS_LIKE = {"HEAD": "GET", "OPTIONS": "GET"}


class OperatorTokenAuthentication(BaseAuthentication):
    """Reads `Authorization: Bearer soc_...`."""

    def authenticate(self, request: Request) -> tuple[Operator, str] | None:
        """The operator behind the token; None without a bearer header, so that a session may be tried."""
        scheme, _, token = get_authorization_header(request).decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        operator = find_operator(token.strip())
        if operator is None:
            raise AuthenticationFailed("The token is unknown, expired or revoked.")
        return operator, operator.token_id

    def authenticate_header(self, _request: Request) -> str:
        """What a 401 asks for."""
        return "Bearer"


class HasScope(BasePermission):
    """The caller holds the scope that the view asks for with this method."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Refuse by name: a 403 says which scope is missing."""
        if not request.user.is_authenticated:
            return False
        method = _READS_LIKE.get(request.method, request.method)
        if method not in view.allowed_methods:
            return True  # the view answers 405
        needed = view.required_scopes.get(method)
        if needed is None or not grants(scopes_of(request.user), needed):
            raise PermissionDenied(f"This needs the scope {needed}.")
        return True


def scopes_of(user: Operator | AbstractBaseUser | Any) -> frozenset[str]:
    """Scopes of a token's operator; members of staff hold all, other users none."""
    if isinstance(user, Operator):
        return user.scopes
    return frozenset({Scope.ADMIN}) if getattr(user, "is_staff", False) else frozenset()


class OperatorTokenScheme(OpenApiAuthenticationExtension):
    """How the OpenAPI document describes bearer tokens."""

    target_class = OperatorTokenAuthentication
    name = "operatorToken"

    def get_security_definition(self, _auto_schema: Any) -> dict[str, str]:
        """HTTP bearer."""
        return {"type": "http", "scheme": "bearer", "description": "Made by `manage.py create_operator_token`."}
