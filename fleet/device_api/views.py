"""What devices call. Each view reads as: who is it, what do they say, do it, answer."""

import random
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.views.decorators.csrf import csrf_exempt

from edge_agent import protocol
from engine.strict_json import encode
from fleet.device_api.bodies import read_record
from fleet.device_api.errors import (
    BlobMissingError,
    BodyTooLargeError,
    IndexPendingError,
    MethodRefusedError,
    NoSuchMetadataError,
    NotDesiredError,
    WrongDeviceError,
)
from fleet.device_api.files import answer_file
from fleet.device_api.signing import authenticate, decode_public_key, proof_of, proves_possession
from fleet.device_api.statements import statement_for
from fleet.devices import actions as devices
from fleet.devices.errors import BadDeviceDataError
from fleet.devices.models import Device
from fleet.devices.rules import check_enrolment
from fleet.errors import problem_response
from fleet.rollouts import actions as rollouts
from fleet.rollouts import tasks
from fleet.telemetry import actions as telemetry
from registry.errors import ApiError
from registry.models import Release, ReleaseFile
from registry.queries import manifest_bytes
from registry.storage import blob_store
from registry.tasks import send_for_index
from registry.trust.repository import read_metadata, read_target, root_with_digest

_MAX_ENROL_BYTES = 16 << 10
_MAX_REPORT_BYTES = 256 << 10
_JITTER = 0.2
_INDEX_TAKES_S = 5

View = Callable[..., HttpResponseBase]


def device_view(*methods: str) -> Callable[[View], View]:
    """A view below /device/v1/: no cookies, so no CSRF; errors as problem documents."""

    def decorate(view: View) -> View:
        @csrf_exempt
        @wraps(view)
        def answer(request: HttpRequest, **kwargs: Any) -> HttpResponseBase:
            try:
                _check_method(request, methods)
                response = view(request, **kwargs)
            except ApiError as error:
                response = problem_response(error)
            except RequestDataTooBig:
                response = problem_response(BodyTooLargeError("The body is larger than this server reads."))
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return answer

    return decorate


@device_view("POST")
def enrol(request: HttpRequest) -> HttpResponseBase:
    """Let a device in that brings a one-time token and its own public key."""
    introduction = read_record(protocol.EnrolRequest, request, max_bytes=_MAX_ENROL_BYTES)
    public_key = decode_public_key(introduction.public_key)
    complaint = check_enrolment(introduction) or ("" if public_key else "public_key: not a raw Ed25519 key in base64")
    if complaint or public_key is None:
        raise BadDeviceDataError(complaint)
    root = _wanted_root(introduction.root_sha256)
    device = devices.enrol(request=introduction, public_key=public_key)
    answer = protocol.EnrolResponse(device.pk, settings.SOCLE_POLL_INTERVAL_S, root)
    return HttpResponse(encode(answer, omits_empty=True), status=201, content_type="application/json")


@device_view("POST")
def key(request: HttpRequest) -> HttpResponseBase:
    """Take the device's new key, which the old one has signed for and which proves itself. Again changes nothing."""
    device = authenticate(request)
    rotation = read_record(protocol.KeyRotation, request, max_bytes=_MAX_ENROL_BYTES)
    _check_speaks_for_itself(device, rotation.device_id)
    public_key = decode_public_key(rotation.public_key)
    if public_key is None or not proves_possession(rotation):
        raise BadDeviceDataError("proof: the new key has not signed for itself")
    devices.rotate_key(device=device, public_key=public_key)
    return HttpResponse(status=204)


@device_view("GET")
def desired(request: HttpRequest) -> HttpResponseBase:
    """What the device shall have; 304 while that is what it knows already."""
    device = authenticate(request)
    devices.note_seen(device)
    statement = statement_for(device.desired)
    headers = {"ETag": statement.etag, protocol.HEADER_POLL_AFTER: f"{poll_after_s():.3f}"}
    if statement.etag in request.headers.get("If-None-Match", ""):
        return HttpResponse(status=304, headers=headers)
    return HttpResponse(statement.body(), content_type="application/json", headers=headers)


@device_view("GET")
def release(request: HttpRequest, *, digest: str) -> HttpResponseBase:
    """The manifest's exact bytes."""
    device = authenticate(request)
    found = Release.objects.filter(_desired_by(device), digest=digest).first()
    if found is None:
        raise NotDesiredError(f"This device shall not have the release {digest[:12]}.")
    headers = {"ETag": f'"{digest}"'}
    return HttpResponse(manifest_bytes(found), content_type="application/json", headers=headers)


@device_view("GET")
def release_index(request: HttpRequest, *, digest: str) -> HttpResponseBase:
    """The chunk index's exact bytes; 503 while one is made for an old release."""
    device = authenticate(request)
    found = Release.objects.filter(_desired_by(device), digest=digest).first()
    if found is None:
        raise NotDesiredError(f"This device shall not have the release {digest[:12]}.")
    if not found.index_sha256:
        send_for_index(digest)
        raise IndexPendingError("This release has no index yet.", headers={"Retry-After": str(_INDEX_TAKES_S)})
    return _answer_blob(request, found.index_sha256, None)


@device_view("GET", "HEAD")
def file(request: HttpRequest, *, sha256: str) -> HttpResponseBase:
    """The bytes of a file of a release that the device shall have, or of the object that its index names."""
    device = authenticate(request)
    named = Q(sha256=sha256) | Q(object_sha256=sha256)
    found = ReleaseFile.objects.filter(_desired_by(device, "release__"), named).first()
    if found is None:
        raise NotDesiredError(f"This device shall not have the file {sha256[:12]}.")
    return _answer_blob(request, sha256, found.size_bytes if found.sha256 == sha256 else found.object_size_bytes)


def _answer_blob(request: HttpRequest, sha256: str, size_bytes: int | None) -> HttpResponseBase:
    """A blob or a range of it; without a known size it is looked up."""
    store = blob_store()
    try:
        size_bytes = store.size(sha256) if size_bytes is None else size_bytes
        return answer_file(request, sha256=sha256, path=store.path(sha256), size_bytes=size_bytes)
    except FileNotFoundError as error:
        raise BlobMissingError(f"The file {sha256[:12]} is not on the server's disk.") from error


@device_view("GET")
def trust_metadata(request: HttpRequest, *, name: str) -> HttpResponseBase:
    """A TUF role's metadata. What it says is proven by its signatures, not by who hands it out."""
    authenticate(request)
    return _answer_trusted(read_metadata(name), f"{name}.json")


@device_view("GET")
def trust_target(request: HttpRequest, *, path: str) -> HttpResponseBase:
    """A TUF target, by a name that begins with its hash."""
    authenticate(request)
    return _answer_trusted(read_target(path), path)


def _answer_trusted(content: bytes | None, path: str) -> HttpResponseBase:
    if content is None:
        raise NoSuchMetadataError(f"There is no {path}.")
    return HttpResponse(content, content_type="application/json")


@device_view("POST")
def report(request: HttpRequest) -> HttpResponseBase:
    """What the device has."""
    device = authenticate(request)
    told = read_record(protocol.DeviceReport, request, max_bytes=_MAX_REPORT_BYTES)
    _check_speaks_for_itself(device, told.device_id)
    rollout_id = rollouts.take_report(device=device, report=told, proof=proof_of(request, device))
    if rollout_id:
        tasks.tick_rollout.delay_on_commit(rollout_id)
    return HttpResponse(status=204)


@device_view("POST")
def telemetry_batch(request: HttpRequest) -> HttpResponseBase:
    """What the device measured. A batch that came before is answered as if it were new."""
    device = authenticate(request)
    batch = read_record(protocol.TelemetryBatch, request, max_bytes=protocol.MAX_TELEMETRY_BYTES)
    _check_speaks_for_itself(device, batch.device_id)
    num_refused = telemetry.ingest(device=device, batch=batch)
    devices.note_seen(device)
    return HttpResponse(status=204, headers={"Socle-Samples-Refused": str(num_refused)})


def _wanted_root(sha256: str) -> str:
    """The root that the device's token pins; refused before the token is used up."""
    if not sha256:
        return ""
    root = root_with_digest(sha256)
    if root is None:
        raise BadDeviceDataError("root_sha256: this server has no such root; make a fresh token")
    return root.decode()


def poll_after_s() -> float:
    """The interval with jitter: devices that were switched on together must not call together for ever."""
    return settings.SOCLE_POLL_INTERVAL_S * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret


def _check_method(request: HttpRequest, methods: tuple[str, ...]) -> None:
    if request.method not in methods:
        allowed = ", ".join(methods)
        raise MethodRefusedError(f"{request.method} is not known at this path.", headers={"Allow": allowed})


def _desired_by(device: Device, prefix: str = "") -> Q:
    return Q(**{f"{prefix}desired_as_base": device.pk}) | Q(**{f"{prefix}desired_as_adapter": device.pk})


def _check_speaks_for_itself(device: Device, device_id: str) -> None:
    if device_id != device.pk:
        raise WrongDeviceError(f"The body speaks for {device_id!r:.40}, the request is signed by {device.pk}.")
