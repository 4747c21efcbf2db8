"""Shows that a worker lives while it is silent: one step of a conversion may take minutes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from django.db import DatabaseError, connection

from registry import publications
from registry.publications import Claim, SupersededError

INTERVAL_S = 3.0

_log = structlog.get_logger(__name__)


@contextmanager
def heartbeat(claim: Claim, *, interval_s: float = INTERVAL_S) -> Iterator[None]:
    """Beat for the claim from a thread until the block ends. A beat that fails is logged and tried again."""
    stopped = threading.Event()
    thread = threading.Thread(target=_beat_until, args=(stopped, claim, interval_s), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _beat_until(stopped: threading.Event, claim: Claim, interval_s: float) -> None:
    try:
        while not stopped.wait(interval_s):
            _beat(claim)
    except SupersededError:
        return  # the worker finds out by itself
    finally:
        connection.close()


def _beat(claim: Claim) -> None:
    try:
        publications.beat(claim=claim)
    except DatabaseError as error:
        _log.warning("publication.heartbeat_missed", publication=str(claim.publication_id), error=str(error))
