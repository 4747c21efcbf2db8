"""Enrolment: order tokens, see them once, copy the commands."""

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from fleet.dashboard.access import needs
from fleet.dashboard.forms import EnrolForm
from fleet.dashboard.views.shell import page_of, show
from fleet.devices import actions, queries
from fleet.operators.scopes import Scope

SECTION = "dashboard:devices"


@require_http_methods(["GET", "POST"])
@never_cache
@needs(Scope.FLEET_WRITE)
def enrol(request: HttpRequest) -> HttpResponse:
    """The form, and after it the new tokens, this one time."""
    form = EnrolForm(request.POST or None)
    secrets = []
    if form.is_valid():
        made = actions.create_enrolment_tokens(**form.order, actor=request.user.get_username())
        secrets = [secret for _, secret in made]
    return show(
        request,
        "enrol",
        SECTION,
        form=form,
        secrets=secrets,
        now=timezone.now(),
        page=page_of(request, queries.enrolment_tokens()),
    )
