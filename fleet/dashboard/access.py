"""Who may see the pages: signed-in users with the right to read the fleet. Everybody else is sent to sign in."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.models import AbstractBaseUser
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import resolve_url

from fleet.auth import scopes_of
from fleet.operators.scopes import Scope, grants

View = Callable[..., HttpResponse]


def may(user: Any, scope: Scope) -> bool:
    """Whether the signed-in user holds the scope, by the same rule as the API."""
    return user.is_authenticated and grants(scopes_of(user), scope)


def page(view: View) -> View:
    """A page for those who may read the fleet. A poll of somebody signed out moves the whole page to the door."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if may(request.user, Scope.FLEET_READ):
            return view(request, *args, **kwargs)
        door = redirect_to_login(request.get_full_path(), resolve_url("dashboard:login"))
        if request.headers.get("HX-Request") == "true":
            return HttpResponse(status=401, headers={"HX-Redirect": door.url})
        return door

    return guarded


def needs(scope: Scope) -> Callable[[View], View]:
    """A change that takes more than reading."""

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if not may(request.user, scope):
                raise PermissionDenied(f"This needs the scope {scope}.")
            return view(request, *args, **kwargs)

        return page(guarded)

    return decorate


class SignInForm(AuthenticationForm):
    """Name and password. Says at the door if the account may see nothing behind it."""

    def confirm_login_allowed(self, user: AbstractBaseUser) -> None:
        """Refuse accounts without the right to read the fleet."""
        super().confirm_login_allowed(user)
        if not may(user, Scope.FLEET_READ):
            raise ValidationError("This account may not see the fleet. An administrator can make it a member of staff.")
