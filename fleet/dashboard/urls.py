"""The pages' addresses. Filters, ranges and page numbers stand in the query string, so that addresses can be shared."""

from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path, reverse_lazy

from fleet.dashboard.access import SignInForm
from fleet.dashboard.views import charts, devices, enrolment, overview, releases, rollouts
from fleet.rollouts.states import Command

app_name = "dashboard"

_login = LoginView.as_view(
    template_name="dashboard/login.html",
    authentication_form=SignInForm,
    next_page=reverse_lazy("dashboard:overview"),
)

urlpatterns = [
    path("login", _login, name="login"),
    path("logout", LogoutView.as_view(next_page=reverse_lazy("dashboard:login")), name="logout"),
    path("", overview.overview, name="overview"),
    path("devices", devices.device_list, name="devices"),
    path("devices.csv", devices.device_csv, name="devices-csv"),
    path("devices/enrol", enrolment.enrol, name="enrol"),
    path("devices/<str:device_id>", devices.device_detail, name="device"),
    path("releases", releases.release_list, name="releases"),
    path("releases/<str:name>", releases.release_detail, name="release"),
    path("rollouts", rollouts.rollout_list, name="rollouts"),
    path("rollouts/new", rollouts.rollout_new, name="rollout-new"),
    path("rollouts/<str:rollout_id>", rollouts.rollout_detail, name="rollout"),
    *(
        path(
            f"rollouts/<str:rollout_id>/{command}",
            rollouts.rollout_command,
            {"command": command},
            name=f"rollout-{command}",
        )
        for command in (Command.START, Command.PAUSE, Command.RESUME, Command.ABORT)
    ),
    path("charts/<str:name>", charts.chart, name="chart"),
]
