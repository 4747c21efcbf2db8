"""Rollouts: the list, one rollout with its devices and commands, and the form that plans one."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from fleet.dashboard.access import may, needs, page
from fleet.dashboard.blast import offers
from fleet.dashboard.forms import RolloutForm
from fleet.dashboard.reasons import step_reason
from fleet.dashboard.views.shell import not_found, page_of, show, tell, tell_problem
from fleet.operators.scopes import Scope
from fleet.rollouts import actions, queries, tasks
from fleet.rollouts.errors import RolloutNotFoundError, RolloutRefusedError, RolloutStateError
from fleet.rollouts.states import Command, RolloutState, Step

SECTION = "dashboard:rollouts"


@require_GET
@page
def rollout_list(request: HttpRequest) -> HttpResponse:
    """Rollouts, newest first, each with its progress."""
    state = _known(request.GET.get("state", ""), RolloutState)
    found = page_of(request, queries.rollouts(state=state))
    return show(
        request,
        "rollouts",
        SECTION,
        page=found,
        rows=[(rollout, queries.progress(rollout)) for rollout in found],
        state=state,
        counts=queries.state_counts(),
    )


@require_GET
@page
def rollout_detail(request: HttpRequest, rollout_id: str) -> HttpResponse:
    """One rollout: what it changes, how far it has come, each device with the reason."""
    try:
        rollout = queries.get_rollout(rollout_id)
    except RolloutNotFoundError as error:
        return not_found(request, SECTION, error)
    step = _known(request.GET.get("step", ""), Step)
    progress = queries.progress(rollout)
    found = page_of(request, queries.rollout_rows(rollout_id, state=step))
    return show(
        request,
        "rollout",
        SECTION,
        rollout=rollout,
        progress=progress,
        step=step,
        page=found,
        rows=[(row, step_reason(row)) for row in found],
        offers=offers(rollout.state, progress) if may(request.user, Scope.FLEET_WRITE) else [],
    )


@require_POST
@needs(Scope.FLEET_WRITE)
def rollout_command(request: HttpRequest, rollout_id: str, command: Command) -> HttpResponse:
    """Start, pause, resume or abort a rollout."""
    try:
        rollout = queries.get_rollout(rollout_id)
        actions.command(rollout=rollout, command=command, actor=request.user.get_username())
    except RolloutNotFoundError as error:
        return not_found(request, SECTION, error)
    except RolloutStateError as error:
        tell_problem(request, error)
    else:
        tasks.tick_rollout.delay_on_commit(rollout_id)
        tell(request, f"{rollout} was told to {command}.")
    return redirect("dashboard:rollout", rollout_id)


@require_http_methods(["GET", "POST"])
@needs(Scope.FLEET_WRITE)
def rollout_new(request: HttpRequest) -> HttpResponse:
    """Plan a rollout and start it."""
    form = RolloutForm(request.POST or None, initial=request.GET.dict())
    conflicts = []
    if form.is_valid():
        try:
            return _begin(request, form)
        except RolloutRefusedError as error:
            conflicts = error.fields["conflicts"]
    return show(request, "rollout_new", SECTION, form=form, conflicts=conflicts)


def _begin(request: HttpRequest, form: RolloutForm) -> HttpResponse:
    actor = request.user.get_username()
    rollout = actions.create_rollout(request=form.request, actor=actor)
    actions.command(rollout=rollout, command=Command.START, actor=actor)
    tasks.tick_rollout.delay_on_commit(rollout.pk)
    return redirect("dashboard:rollout", rollout.pk)


def _known(value: str, states: type[RolloutState] | type[Step]) -> str:
    """The state that the address names; none if there is no such."""
    return value if value in list(states) else ""
