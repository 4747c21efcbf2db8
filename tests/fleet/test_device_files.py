from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from django.db import connection
from django.test import AsyncClient
from django.test.utils import CaptureQueriesContext

from fleet.device_api.ranges import Span, parse_range
from registry.indexes import ensure_index
from registry.models import Release, ReleaseFile
from registry.storage import blob_store

CONTENT = bytes(range(256)) * 4096  # four pieces
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PATH = f"files/{SHA256}"
SIZE = len(CONTENT)


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-0", Span(0, 1)),
        ("bytes=0-99", Span(0, 100)),
        ("bytes=90-", Span(90, 100)),
        ("bytes=90-200", Span(90, 100)),
        ("bytes=-10", Span(90, 100)),
        ("bytes=-200", Span(0, 100)),
        ("bytes=-", None),
        ("bytes=9-3", None),
        ("bytes=0-1,5-6", None),
        ("bytes=a-b", None),
        ("lines=0-1", None),
        ("", None),
        ("bytes=100-", ValueError),
        ("bytes=100-3", None),
        ("bytes=-0", ValueError),
        ("bytes=٣-", None),
    ],
)
def test_which_span_a_header_means(header: str, span: Any) -> None:
    if span is ValueError:
        with pytest.raises(ValueError, match=r"byte|suffix"):
            parse_range(header, 100)
    else:
        assert parse_range(header, 100) == span


@pytest.fixture
def device(enrolled: Any, operator: Any, publish: Any) -> Any:
    """A device that shall have a base with one file of CONTENT."""
    publish("tiny@1.0.0", content=CONTENT)
    device = enrolled()
    operator.post("/rollouts", {"base": "tiny@1.0.0", "devices": [device.device_id]})
    return device


def body_of(response: Any) -> bytes:
    return b"".join(response.streaming_content) if response.streaming else response.content


def test_the_whole_file(device: Any) -> None:
    response = device.call("GET", PATH)
    assert response.status_code == 200
    assert body_of(response) == CONTENT
    assert response.headers["ETag"] == f'"{SHA256}"'
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["Content-Length"] == str(SIZE)


@pytest.mark.parametrize(
    ("header", "start", "stop"), [("bytes=0-9", 0, 10), ("bytes=300000-", 300_000, SIZE), ("bytes=-5", SIZE - 5, SIZE)]
)
def test_a_range(device: Any, header: str, start: int, stop: int) -> None:
    response = device.call("GET", PATH, headers={"Range": header})
    assert response.status_code == 206
    assert body_of(response) == CONTENT[start:stop]
    assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert response.headers["Content-Length"] == str(stop - start)


def test_a_range_behind_the_end(device: Any) -> None:
    response = device.call("GET", PATH, headers={"Range": f"bytes={SIZE}-"})
    assert (response.status_code, response.json()["code"]) == (416, "range_not_satisfiable")
    assert response.headers["Content-Range"] == f"bytes */{SIZE}"


def test_if_range_of_other_content_gives_the_whole_file(device: Any) -> None:
    same = device.call("GET", PATH, headers={"Range": "bytes=0-9", "If-Range": f'"{SHA256}"'})
    other = device.call("GET", PATH, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (same.status_code, other.status_code) == (206, 200)
    assert (body_of(same), body_of(other)) == (CONTENT[:10], CONTENT)


def test_a_file_that_the_device_knows(device: Any) -> None:
    assert device.call("GET", PATH, headers={"If-None-Match": f'"{SHA256}"'}).status_code == 304


def test_head_has_the_headers_only(device: Any) -> None:
    response = device.call("HEAD", PATH)
    assert (response.status_code, body_of(response)) == (200, b"")
    assert response.headers["Content-Length"] == str(SIZE)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("headers", "expected"), [({}, CONTENT), ({"Range": "bytes=5-300004"}, CONTENT[5:300_005])])
def test_under_asgi_the_bytes_come_as_an_async_stream(device: Any, headers: Any, expected: bytes) -> None:
    async def fetch() -> bytes:
        signed = device.signature("GET", f"/device/v1/{PATH}")
        response = await AsyncClient().get(f"/device/v1/{PATH}", headers=signed | headers)
        assert response.is_async
        return b"".join([piece async for piece in response.streaming_content])

    assert asyncio.run(fetch()) == expected


@pytest.mark.parametrize("what", ["range", "manifest", "index"])
def test_a_download_writes_nothing(device: Any, what: str) -> None:
    release = Release.objects.get()
    ensure_index(release)
    path = {"range": PATH, "manifest": f"releases/{release.digest}", "index": f"releases/{release.digest}/index"}[what]
    with CaptureQueriesContext(connection) as queries:
        assert device.call("GET", path, headers={"Range": "bytes=0-9"}).status_code in (200, 206)
    assert {query["sql"].split()[0] for query in queries} == {"SELECT"}
    assert len(queries) == 2


def test_nginx_gets_the_path_when_it_is_to_send(device: Any, settings: Any) -> None:
    settings.SOCLE_SENDFILE = "nginx"
    response = device.call("GET", PATH)
    assert response.headers["X-Accel-Redirect"] == f"/_blobs/sha256/{SHA256[:2]}/{SHA256}"
    assert body_of(response) == b""


def test_a_file_that_the_device_shall_not_have(enrolled: Any, device: Any) -> None:
    stranger = enrolled("stranger")
    response = stranger.call("GET", PATH)
    assert (response.status_code, response.json()["code"]) == (403, "not_desired")
    assert device.call("GET", "files/" + "0" * 64).status_code == 403


def test_a_file_is_out_of_reach_once_it_is_not_desired_any_more(device: Any, operator: Any, publish: Any) -> None:
    publish("tiny@2.0.0")
    operator.post("/rollouts", {"base": "tiny@2.0.0", "devices": [device.device_id]})
    assert device.call("GET", PATH).status_code == 403


def test_a_file_that_vanished_from_the_disk_is_the_servers_fault(device: Any) -> None:
    blob_store().path(SHA256).unlink()
    response = device.call("GET", PATH)
    assert (response.status_code, response.json()["code"]) == (503, "blob_missing")


@pytest.mark.parametrize("path", ["files/../../etc/passwd", "files/" + "A" * 64, "files/" + "0" * 63, "releases/x"])
def test_only_digests_are_paths(device: Any, path: str) -> None:
    assert device.call("GET", path).status_code == 404


def test_a_manifest_comes_byte_for_byte(device: Any) -> None:
    digest = device.desired().base.digest
    response = device.call("GET", f"releases/{digest}")
    assert hashlib.sha256(response.content).hexdigest() == digest
    assert device.call("GET", f"releases/{'0' * 64}").status_code == 403


def test_an_index_comes_byte_for_byte_and_never_again(device: Any) -> None:
    release = Release.objects.get()
    path, data = f"releases/{release.digest}/index", ensure_index(release)
    response = device.call("GET", path)
    assert (response.status_code, body_of(response)) == (200, data)
    assert "immutable" in response.headers["Cache-Control"]
    assert device.call("GET", path, headers={"If-None-Match": response.headers["ETag"]}).status_code == 304


def test_an_old_release_gets_its_index_when_it_is_asked_for(device: Any) -> None:
    Release.objects.update(index_sha256="")
    path = f"releases/{device.desired().base.digest}/index"
    response = device.call("GET", path)
    assert (response.status_code, response.json()["code"]) == (503, "index_pending")
    assert int(response.headers["Retry-After"]) > 0
    assert device.call("GET", path).status_code == 200


def test_the_object_that_an_index_names_is_served(device: Any) -> None:
    ensure_index(Release.objects.get())
    row = ReleaseFile.objects.get()
    assert row.object_sha256 != SHA256
    packed = body_of(device.call("GET", f"files/{row.object_sha256}"))
    assert (hashlib.sha256(packed).hexdigest(), len(packed)) == (row.object_sha256, row.object_size_bytes)
    assert body_of(device.call("GET", PATH)) == CONTENT


def test_an_index_that_the_device_shall_not_have(enrolled: Any, device: Any) -> None:
    response = enrolled("stranger").call("GET", f"releases/{device.desired().base.digest}/index")
    assert (response.status_code, response.json()["code"]) == (403, "not_desired")
