"""Whether the process lives (`/healthz`) and whether it can do its work (`/readyz`). For load balancers."""

import os
from collections.abc import Callable

import structlog
from django.conf import settings
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_safe

from fleet.celery import app

_BROKER_TIMEOUT_S = 2
_log = structlog.get_logger(__name__)


class NotReadyError(Exception):
    """What is missing, in words for the operator."""


@require_safe
def healthz(_request: HttpRequest) -> JsonResponse:
    """The process answers."""
    return JsonResponse({"status": "ok"})


@require_safe
def readyz(_request: HttpRequest) -> JsonResponse:
    """Each thing that requests need, by name: "ok" or what is wrong."""
    results = {name: _outcome(name, check) for name, check in CHECKS.items()}
    is_ready = all(result == "ok" for result in results.values())
    status = 200 if is_ready else 503
    return JsonResponse({"status": "ok" if is_ready else "not ready", "checks": results}, status=status)


def _outcome(name: str, check: Callable[[], None]) -> str:
    try:
        check()
    except NotReadyError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it means not ready
        _log.warning("readiness_check_failed", check=name, error=repr(error))
        return "failed, see the server's log"
    return "ok"


def _check_database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _check_migrations() -> None:
    executor = MigrationExecutor(connection)
    if executor.migration_plan(executor.loader.graph.leaf_nodes()):
        raise NotReadyError("there are migrations to apply: run manage.py migrate")


def _check_blob_dir() -> None:
    if not os.access(settings.SOCLE_BLOB_DIR, os.R_OK | os.W_OK | os.X_OK):
        raise NotReadyError("the blob directory can't be written: look at SOCLE_BLOB_DIR")


def _check_broker() -> None:
    with app.connection_for_write(connect_timeout=_BROKER_TIMEOUT_S) as broker:
        broker.ensure_connection(max_retries=0, timeout=_BROKER_TIMEOUT_S)


CHECKS: dict[str, Callable[[], None]] = {
    "database": _check_database,
    "migrations": _check_migrations,
    "blobs": _check_blob_dir,
    "broker": _check_broker,
}
