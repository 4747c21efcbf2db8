"""Workers that die, hang or come too late: a table of places to die at, and what the next worker makes of it."""

from __future__ import annotations

import os
import signal
import threading
from datetime import timedelta
from unittest import mock

import pytest
import time_machine
from celery.exceptions import SoftTimeLimitExceeded
from django.db import connections
from django.utils import timezone

from registry import publications, publishing, tasks
from registry.heartbeat import heartbeat
from registry.models import Publication, Release, Upload
from registry.publications import MAX_ATTEMPTS, STALLED_AFTER, SupersededError
from registry.queries import named_blobs
from registry.states import TRANSITIONS, PublicationState, sources
from tests.registry.releases import put_base
from tests.registry.sources import adapter_files, tar_of

# Where the worker is killed, and the state that it leaves the publication in.
PLACES_TO_DIE = {
    "before the archive is opened": ("registry.publishing._unpack", "validating"),
    "at the first file of the archive": ("registry.archives._write", "validating"),
    "between unpacking and converting": ("registry.publications.begin_conversion", "validating"),
    "before the conversion": ("registry.publishing.convert_adapter", "converting"),
    "in the conversion": ("engine.convert.adapter.write_manifest", "converting"),
    "after the conversion": ("registry.publishing.check_fits", "converting"),
    "before the files become blobs": ("registry.publications.publish", "converting"),
    "between two blobs": ("registry.storage.sync_directory", "converting"),
    "between blobs and rows": ("registry.publications._create_release", "converting"),
    "between rows and commit": ("registry.publications._finish", "converting"),
    "after the commit": ("registry.publishing.collect_garbage", "published"),
}


@pytest.fixture
def queued(publisher, transactional_db, tmp_path):
    """An adapter's publication that waits for a worker; its message was lost."""
    put_base(tmp_path, "tiny@1.0.0")
    archive = tar_of(adapter_files())
    publication = publisher.announce(archive, kind="adapter", name="home", version="1.0.0", base="tiny").json()
    publisher.patch(publication["upload"]["url"], archive)
    with mock.patch.object(tasks.process_publication, "apply_async"):
        publisher.send("POST", f"/publications/{publication['id']}/finish")
    return Publication.objects.get(pk=publication["id"])


def kill_worker_at(place: str, publication: Publication) -> None:
    """Run a real process that works on the publication until it comes to `place`, where SIGKILL hits it."""
    connections.close_all()  # a SQLite connection must not be carried into a child
    child = os.fork()
    if child == 0:
        with mock.patch(place, side_effect=lambda *_args, **_kwargs: os.kill(os.getpid(), signal.SIGKILL)):
            publishing.process(publication.pk)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the worker did not come to this place"


def sweep_later() -> None:
    with time_machine.travel(timezone.now() + STALLED_AFTER + timedelta(seconds=1), tick=True):
        tasks.sweep()


def assert_published_and_clean(publication: Publication, stored) -> None:
    publication.refresh_from_db()
    assert (publication.state, publication.problem) == ("published", None)
    assert Release.objects.filter(artifact__name="home").count() == 1
    assert_clean(stored)


def assert_clean(stored) -> None:
    """Nothing lies in the store but the releases' files, objects and indexes."""
    assert {name.rsplit("/", 1)[-1] for name in stored()} == named_blobs()
    assert not Upload.objects.exists()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("place", PLACES_TO_DIE)
def test_a_publication_outlives_its_worker(queued, stored, place) -> None:
    function, state_left = PLACES_TO_DIE[place]
    kill_worker_at(function, queued)
    queued.refresh_from_db()
    assert queued.state == state_left
    assert Release.objects.filter(artifact__name="home").exists() == (state_left == "published")
    sweep_later()
    tasks.collect_garbage()
    assert_published_and_clean(queued, stored)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_publication_that_kills_its_workers_fails_and_leaves_nothing(queued, stored) -> None:
    for attempt in range(MAX_ATTEMPTS):
        kill_worker_at("registry.publications._create_release", queued)
        queued.refresh_from_db()
        assert queued.attempt == attempt + 1
        with (
            mock.patch.object(tasks.process_publication, "apply_async"),
            time_machine.travel(timezone.now() + STALLED_AFTER + timedelta(seconds=1)),
        ):
            tasks.sweep()
    tasks.collect_garbage()
    queued.refresh_from_db()
    assert (queued.state, queued.problem["code"]) == ("failed", "interrupted")
    assert_clean(stored)


def test_a_lost_message_is_sent_again(queued, stored) -> None:
    tasks.sweep()
    queued.refresh_from_db()
    assert queued.state == "queued"
    sweep_later()
    assert_published_and_clean(queued, stored)


def test_a_message_that_comes_twice_is_worked_on_once(queued, stored) -> None:
    for _ in range(2):
        tasks.process_publication(str(queued.pk))
    assert_published_and_clean(queued, stored)
    assert queued.attempt == 1


def claim_again(publication: Publication) -> None:
    """Another worker takes the publication over and has it in hand."""
    publications.requeue_stalled(now=timezone.now() + STALLED_AFTER + timedelta(seconds=1))
    assert publications.claim(publication_id=publication.pk).attempt == 2


@pytest.mark.parametrize("go_on", [claim_again, lambda _publication: sweep_later()], ids=["in hand", "published"])
def test_a_worker_that_was_taken_for_dead_changes_nothing(queued, tmp_path, go_on) -> None:
    late = publications.claim(publication_id=queued.pk)
    go_on(queued)
    before = Publication.objects.values().get(pk=queued.pk)
    put_base(tmp_path, "other@1.0.0", content="other")
    bundle = tmp_path / "bundles" / "other@1.0.0"
    for belated in (
        lambda: publications.beat(claim=late),
        lambda: publications.advance(claim=late, step="late", progress=0.5),
        lambda: publications.begin_conversion(claim=late),
        lambda: publications.publish(claim=late, bundle=bundle),
    ):
        with pytest.raises(SupersededError):
            belated()
    publications.fail(claim=late, problem={"code": "late"})
    assert Publication.objects.values().get(pk=queued.pk) == before


def test_a_worker_that_is_overtaken_in_its_work_gives_up(queued, stored) -> None:
    attempts = []

    def overtake_the_first(*_args) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            sweep_later()

    with mock.patch("registry.publishing.check_fits", side_effect=overtake_the_first):
        publishing.process(queued.pk)
    assert len(attempts) == 2
    assert_published_and_clean(queued, stored)


def test_a_silent_worker_that_lives_is_left_in_peace(queued) -> None:
    claim = publications.claim(publication_id=queued.pk)
    long_ago = timezone.now() - 2 * STALLED_AFTER
    Publication.objects.filter(pk=queued.pk).update(heartbeat_at=long_ago)
    with heartbeat(claim, interval_s=0.01):
        for _ in range(1000):
            if Publication.objects.get(pk=queued.pk).heartbeat_at > long_ago:
                break
            threading.Event().wait(0.01)
        assert publications.requeue_stalled(now=timezone.now()) == []


ENDS = {
    "time_limit": SoftTimeLimitExceeded(),
    "storage_full": OSError(28, "No space left on device"),
    "internal_error": KeyError("a bug of ours"),
}


@pytest.mark.parametrize("code", ENDS)
def test_trouble_on_our_side_is_told_and_leaves_nothing(queued, stored, code) -> None:
    with mock.patch("registry.publishing.convert_adapter", side_effect=ENDS[code]):
        tasks.process_publication(str(queued.pk))
    queued.refresh_from_db()
    assert (queued.state, queued.problem["code"]) == ("failed", code)
    assert queued.problem["hint"]
    assert_clean(stored)


def test_progress_only_grows_and_is_written_in_moderation(queued, monkeypatch) -> None:
    seen = []
    advance = publications.advance
    monkeypatch.setattr(publications, "advance", lambda **values: (seen.append(values["progress"]), advance(**values)))
    monkeypatch.setattr(publishing, "_PROGRESS_INTERVAL_S", 0.0)
    tasks.process_publication(str(queued.pk))
    assert len(seen) > 4
    assert seen == sorted(seen)
    seen.clear()
    monkeypatch.setattr(publishing, "_PROGRESS_INTERVAL_S", 3600.0)
    show = publishing._Progress(publications.Claim(queued.pk, 1)).share(0.0, 1.0)
    with pytest.raises(SupersededError):
        show("first", 0.1)
    show("second", 0.2)
    assert seen == [0.1]


def test_every_state_has_its_transitions_and_ends_are_ends() -> None:
    assert set(TRANSITIONS) == set(PublicationState)
    ends = {state for state, targets in TRANSITIONS.items() if not targets}
    assert ends == {PublicationState.PUBLISHED, PublicationState.FAILED}
    assert sources(PublicationState.PUBLISHED) == {PublicationState.CONVERTING}
