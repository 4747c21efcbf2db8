"""Sending an archive's bytes: resumption, cuts, two at once, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import threading
import uuid
from datetime import timedelta

import pytest
import time_machine
from django.db import connection
from django.utils import timezone

from fleet.asgi import application
from registry import tasks
from registry.models import Publication, Upload
from tests.registry.sources import base_files, tar_of

ARCHIVE = tar_of(base_files())
DOCUMENT = {"kind": "base", "name": "tiny", "version": "1.0.0"}
HALF = len(ARCHIVE) // 2


@pytest.fixture
def upload_url(publisher):
    return publisher.announce(ARCHIVE, **DOCUMENT).json()["upload"]["url"]


def offset_of(operator, url) -> int:
    response = operator.client.head(url)
    assert response["Upload-Length"] == str(len(ARCHIVE))
    assert response["Cache-Control"] == "no-store"
    return int(response["Upload-Offset"])


def finish(operator):
    return operator.send("POST", f"/publications/{Publication.objects.get().pk}/finish")


def assert_problem(response, status, code) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code), response.content
    assert response.json()["hint"]


def test_an_upload_goes_on_where_it_stopped(publisher, upload_url) -> None:
    for start in range(0, len(ARCHIVE), 9000):
        assert offset_of(publisher, upload_url) == start
        piece = ARCHIVE[start : start + 9000]
        answer = publisher.patch(upload_url, piece, start)
        assert (answer.status_code, answer["Upload-Offset"]) == (204, str(start + len(piece)))
    assert finish(publisher).status_code == 202
    assert Publication.objects.get().state == "published"


def test_an_announcement_again_tells_how_far_it_is(publisher, upload_url) -> None:
    publisher.patch(upload_url, ARCHIVE[:HALF])
    again = publisher.announce(ARCHIVE, **DOCUMENT).json()
    assert again["upload"]["offset_bytes"] == HALF


@pytest.mark.parametrize("offset", [0, HALF - 1, HALF + 1, len(ARCHIVE) - 1])
def test_a_wrong_offset_is_told_the_right_one(publisher, upload_url, offset) -> None:
    publisher.patch(upload_url, ARCHIVE[:HALF])
    refused = publisher.patch(upload_url, ARCHIVE[offset:], offset)
    assert_problem(refused, 409, "offset_mismatch")
    assert refused["Upload-Offset"] == str(HALF)
    assert offset_of(publisher, upload_url) == HALF


class BrokenStream(io.BytesIO):
    """A connection that breaks off after these bytes."""

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        if not data:
            raise ConnectionResetError
        return data


def test_what_arrived_before_a_cut_is_kept_under_wsgi(publisher, upload_url) -> None:
    headers = {"Upload-Offset": "0"}
    publisher.client.generic(
        "PATCH",
        upload_url,
        ARCHIVE,
        content_type="application/offset+octet-stream",
        headers=headers,
        **{"wsgi.input": BrokenStream(ARCHIVE[:HALF])},
    )
    assert offset_of(publisher, upload_url) == HALF
    assert publisher.patch(upload_url, ARCHIVE[HALF:], HALF).status_code == 204
    assert finish(publisher).status_code == 202


@pytest.mark.django_db(transaction=True)
def test_what_arrived_before_a_cut_is_kept_under_asgi(publisher, upload_url) -> None:
    messages = [
        {"type": "http.request", "body": ARCHIVE[:1000], "more_body": True},
        {"type": "http.request", "body": ARCHIVE[1000:HALF], "more_body": True},
        {"type": "http.disconnect"},
    ]
    asyncio.run(_patch_by_asgi(publisher, upload_url, messages, **{"content-length": str(len(ARCHIVE))}))
    assert offset_of(publisher, upload_url) == HALF


@pytest.mark.django_db(transaction=True)
def test_a_whole_body_arrives_under_asgi(publisher, upload_url) -> None:
    messages = [{"type": "http.request", "body": ARCHIVE, "more_body": False}]
    sent = asyncio.run(_patch_by_asgi(publisher, upload_url, messages))
    assert sent[0]["status"] == 204
    assert finish(publisher).status_code == 202


async def _patch_by_asgi(operator, url, messages, **headers):
    """A PATCH as a server hands it over; returns what the application sends."""
    headers = {
        "host": "localhost",
        "authorization": operator.client.defaults["HTTP_AUTHORIZATION"],
        "content-type": "application/offset+octet-stream",
        "upload-offset": "0",
        **headers,
    }
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "PATCH",
        "path": url,
        "raw_path": url.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    sent = []
    remaining = iter(messages)

    async def receive():
        for message in remaining:
            return message
        return await asyncio.Future()

    async def send(message) -> None:
        sent.append(message)

    await application(scope, receive, send)
    return sent


@pytest.mark.django_db(transaction=True)
def test_of_two_requests_at_once_one_writes(publisher, upload_url) -> None:
    is_reading, may_end = threading.Event(), threading.Event()

    class SlowStream(io.BytesIO):
        def read(self, size: int = -1) -> bytes:
            is_reading.set()
            may_end.wait(30)
            return super().read(size)

    answers = []

    def send_slowly() -> None:
        extra = {"wsgi.input": SlowStream(ARCHIVE)}
        headers = {"Upload-Offset": "0"}
        content_type = "application/offset+octet-stream"
        answers.append(
            publisher.client.generic("PATCH", upload_url, ARCHIVE, content_type=content_type, headers=headers, **extra)
        )
        connection.close()

    slow = threading.Thread(target=send_slowly)
    slow.start()
    assert is_reading.wait(30)
    assert_problem(publisher.patch(upload_url, ARCHIVE), 423, "upload_locked")
    may_end.set()
    slow.join()
    assert answers[0].status_code == 204
    assert finish(publisher).status_code == 202


def test_too_many_announced_bytes_are_refused_before_they_are_read(publisher, upload_url) -> None:
    publisher.patch(upload_url, ARCHIVE[:HALF])
    assert_problem(publisher.patch(upload_url, ARCHIVE[HALF:] + b"x", HALF), 413, "too_many_bytes")
    assert offset_of(publisher, upload_url) == HALF


@pytest.mark.django_db(transaction=True)
def test_too_many_bytes_of_unannounced_length_are_thrown_away(publisher, upload_url, monkeypatch) -> None:
    monkeypatch.setattr("registry.uploads._COPY_BYTES", 1000)
    publisher.patch(upload_url, ARCHIVE[:HALF])
    messages = [{"type": "http.request", "body": ARCHIVE[HALF:] + b"x", "more_body": False}]
    sent = asyncio.run(_patch_by_asgi(publisher, upload_url, messages, **{"upload-offset": str(HALF)}))
    assert (sent[0]["status"], json.loads(sent[1]["body"])["code"]) == (413, "too_many_bytes")
    assert offset_of(publisher, upload_url) == HALF


def test_wrong_bytes_reset_the_upload(publisher, upload_url, stored) -> None:
    refused = publisher.patch(upload_url, bytes(len(ARCHIVE)))
    assert_problem(refused, 422, "digest_mismatch")
    assert refused["Upload-Offset"] == "0"
    assert offset_of(publisher, upload_url) == 0
    assert [name for name in stored() if name.startswith("sha256")] == []
    assert publisher.patch(upload_url, ARCHIVE).status_code == 204
    assert finish(publisher).status_code == 202


def test_finishing_early_is_refused(publisher, upload_url) -> None:
    publisher.patch(upload_url, ARCHIVE[:HALF])
    refused = finish(publisher)
    assert_problem(refused, 409, "upload_incomplete")
    assert refused["Upload-Offset"] == str(HALF)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Content-Type": "application/json"}, 415),
        ({"Upload-Offset": "-1"}, 415),
        ({"Upload-Offset": "many"}, 415),
        ({"Upload-Offset": "9" * 30}, 415),
    ],
)
def test_what_is_no_upload_is_refused(publisher, upload_url, change, status) -> None:
    assert_problem(publisher.patch(upload_url, ARCHIVE, **change), status, "unsupported_media_type")


def test_bytes_that_are_here_need_not_be_sent_again(publisher, upload_url) -> None:
    publisher.patch(upload_url, ARCHIVE)
    other = publisher.announce(ARCHIVE, **DOCUMENT | {"name": "other"}).json()
    assert other["upload"]["offset_bytes"] == len(ARCHIVE)
    publisher.send("POST", f"/publications/{other['id']}/finish")
    assert publisher.get("/releases/other").json()["version"] == "1.0.0"
    publication = Publication.objects.get(name="tiny")
    assert publisher.send("POST", f"/publications/{publication.pk}/finish").status_code == 202
    assert publisher.get("/releases/tiny").json()["version"] == "1.0.0"


def test_an_upload_is_over_when_its_publication_is(publisher) -> None:
    publication = publisher.announce(ARCHIVE, **DOCUMENT).json()
    publisher.patch(publication["upload"]["url"], ARCHIVE)
    finish(publisher)
    assert_problem(publisher.patch(publication["upload"]["url"], ARCHIVE), 410, "upload_gone")
    assert_problem(publisher.patch(f"/api/v1/uploads/{uuid.uuid4()}", ARCHIVE), 410, "upload_gone")


def test_an_upload_left_alone_expires_and_leaves_nothing(publisher, upload_url, stored) -> None:
    publisher.patch(upload_url, ARCHIVE[:HALF])
    with time_machine.travel(timezone.now() + timedelta(hours=25), tick=True):
        tasks.sweep()
    publication = Publication.objects.get()
    assert (publication.state, publication.problem["code"]) == ("failed", "upload_expired")
    assert not Upload.objects.exists()
    assert stored() == []


def test_an_upload_that_goes_on_does_not_expire(publisher, upload_url) -> None:
    start = timezone.now()
    for hours, piece in ((20, ARCHIVE[:HALF]), (40, ARCHIVE[HALF:])):
        with time_machine.travel(start + timedelta(hours=hours), tick=True):
            tasks.sweep()
            assert publisher.patch(upload_url, piece, 0 if hours == 20 else HALF).status_code == 204


def test_a_large_body_streams_to_the_disk(publisher, blob_dir, monkeypatch) -> None:
    """Reads are bounded, whatever the body's size."""
    body = bytes(5 << 20)
    publication = publisher.announce(body, **DOCUMENT).json()
    sizes = []
    monkeypatch.setattr("django.http.request.HttpRequest.read", _noting(sizes))
    assert publisher.patch(publication["upload"]["url"], body).status_code == 204
    assert max(sizes) <= 1 << 20
    sha256 = hashlib.sha256(body).hexdigest()
    assert (blob_dir / "sha256" / sha256[:2] / sha256).stat().st_size == len(body)


def _noting(sizes):
    def read(request, size=-1):
        sizes.append(size if size >= 0 else float("inf"))
        return request._stream.read(size)

    return read
