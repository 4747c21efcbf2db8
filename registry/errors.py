"""What the registry refuses, each with a stable code and a hint. `ApiError` is an answer to a request.

Knows no HTTP beyond a status and headers: the project's exception handler makes the problem document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class RegistryError(Exception):
    """Something that a person has to mend: `code` is stable, `title` fixed per code, `hint` says what to try next."""

    code: ClassVar[str] = "registry_error"
    title: ClassVar[str] = "The registry refuses this"
    default_hint: ClassVar[str] = ""

    def __init__(self, detail: str, *, hint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint or self.default_hint

    def problem(self) -> dict[str, str]:
        """As it is kept with a failed publication and shown to people."""
        return {"code": self.code, "title": self.title, "detail": self.detail, "hint": self.hint}


class ApiError(RegistryError):
    """An error that answers a request. `fields` names what is wrong with which field of the body."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "bad_request"
    title: ClassVar[str] = "Bad request"

    def __init__(
        self,
        detail: str,
        *,
        hint: str = "",
        fields: Mapping[str, list[str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail, hint=hint)
        self.fields = dict(fields or {})
        self.headers = dict(headers or {})


class InvalidVersionError(ApiError):
    """The text is no semantic version, or one that has no place in the order."""

    status = 422
    code = "invalid_version"
    title = "Not a semantic version"
    default_hint = "Give MAJOR.MINOR.PATCH, for instance 1.2.0, or a pre-release such as 1.2.0-rc.1; no build metadata."


class ReleaseNotFoundError(ApiError):
    """No release answers to the reference."""

    status = 404
    code = "release_not_found"
    title = "No such release"
    default_hint = "Name it as name@1.2.0, name@alias, name, or by its digest; GET /api/v1/releases lists them."


class ReleaseYankedError(ReleaseNotFoundError):
    """The reference names a release that was withdrawn."""

    status = 409
    code = "release_yanked"
    title = "The release was yanked"
    default_hint = "Name another version, or the digest if you mean this very content."


class BaseRefusedError(ApiError):
    """An adapter's publication names a base that cannot be its base."""

    status = 422
    code = "wrong_base"
    title = "Wrong base"
    default_hint = "Name the release of the base model that the adapter was trained on, for instance name@1.0.0."


class DuplicateVersionError(ApiError):
    """A release is immutable: its version cannot stand for other content."""

    status = 409
    code = "duplicate_version"
    title = "The version has other content"
    default_hint = "Releases never change: publish this content under a new version."


class KindConflictError(ApiError):
    """A name stands for base models or for adapters, never both."""

    status = 409
    code = "kind_conflict"
    title = "The name is taken by the other kind"
    default_hint = "Choose another name."


class TooLargeError(ApiError):
    """More bytes than this server takes."""

    status = 413
    code = "too_large"
    title = "Too large"
    default_hint = "Leave out what is not needed: optimiser states, other precisions, intermediate checkpoints."


class PublicationNotOpenError(ApiError):
    """The publication does not wait for bytes any more."""

    status = 409
    code = "publication_not_open"
    title = "The publication does not take uploads any more"
    default_hint = "GET the publication to see its state; start a new one with POST /api/v1/publications."


class UploadOffsetMismatchError(ApiError):
    """The client is somewhere else in the file than the server."""

    status = 409
    code = "offset_mismatch"
    title = "The upload goes on elsewhere"
    default_hint = "Send the bytes from Upload-Offset on."


class TooManyBytesError(ApiError):
    """More bytes than the upload announced; those of this request are thrown away."""

    status = 413
    code = "too_many_bytes"
    title = "More bytes than announced"
    default_hint = "HEAD the upload for its offset and send only what is missing; size_bytes is the archive's size."


class UploadIncompleteError(ApiError):
    """`finish` came before the last byte."""

    status = 409
    code = "upload_incomplete"
    title = "Bytes are missing"
    default_hint = "HEAD the upload, PATCH the rest, then finish."


class UploadLockedError(ApiError):
    """Another request is writing to the same upload."""

    status = 423
    code = "upload_locked"
    title = "The upload is being written to"
    default_hint = "Wait for the other request to end, HEAD the upload for its offset, then go on."


class UploadGoneError(ApiError):
    """The upload is over: published, failed or expired."""

    status = 410
    code = "upload_gone"
    title = "The upload is over"
    default_hint = "GET the publication to see what became of it; start a new one with POST /api/v1/publications."


class DigestMismatchError(ApiError):
    """The bytes that arrived are not those that were announced."""

    status = 422
    code = "digest_mismatch"
    title = "The SHA-256 does not match"
    default_hint = "The upload starts again from 0: send the file whose sha256sum you gave."


class UnsupportedUploadError(ApiError):
    """A PATCH of another media type, or without an offset."""

    status = 415
    code = "unsupported_media_type"
    title = "Not an upload"
    default_hint = "Send Content-Type: application/offset+octet-stream and Upload-Offset: <bytes already there>."


class AliasNotFoundError(ApiError):
    """The artifact has no such alias."""

    status = 404
    code = "alias_not_found"
    title = "No such alias"
    default_hint = "GET the artifact's aliases to see which there are."


class ArtifactNotFoundError(ApiError):
    """No artifact of this name."""

    status = 404
    code = "artifact_not_found"
    title = "No such artifact"
    default_hint = "GET /api/v1/artifacts lists them; a name appears with its first release."


class PublicationNotFoundError(ApiError):
    """No publication of this id."""

    status = 404
    code = "publication_not_found"
    title = "No such publication"
    default_hint = "GET /api/v1/publications lists them."


class InvalidAliasError(ApiError):
    """The text cannot be an alias: no name, or one that could be a version."""

    status = 422
    code = "invalid_alias"
    title = "Not an alias"
    default_hint = "Use lower-case letters, digits and single dashes, for instance stable or canary; no version."
