"""What every page has: its section in the navigation, pages of long lists, domain errors as pages and messages."""

from typing import Any

from django.contrib import messages
from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from registry.errors import ApiError

ROWS_PER_PAGE = 50
NAVIGATION = (
    ("dashboard:overview", "Overview"),
    ("dashboard:devices", "Devices"),
    ("dashboard:releases", "Releases"),
    ("dashboard:rollouts", "Rollouts"),
)


def show(request: HttpRequest, template: str, section: str, **context: Any) -> HttpResponse:
    """A page of the given section (a name in NAVIGATION)."""
    frame = {"navigation": NAVIGATION, "section": section}
    return render(request, f"dashboard/{template}.html", frame | context)


def page_of(request: HttpRequest, rows: QuerySet[Any]) -> Page[Any]:
    """The page that the address names; the nearest one if there is none such."""
    return Paginator(rows, ROWS_PER_PAGE).get_page(request.GET.get("page"))


def not_found(request: HttpRequest, section: str, error: ApiError) -> HttpResponse:
    """A page that says what is not there."""
    response = show(request, "not_found", section, error=error)
    response.status_code = 404
    return response


def tell(request: HttpRequest, text: str) -> None:
    """Say at the top of the next page that something was done."""
    messages.success(request, text)


def tell_problem(request: HttpRequest, error: ApiError) -> None:
    """Say at the top of the next page why nothing was done."""
    messages.error(request, f"{error.detail} {error.hint}".strip())
