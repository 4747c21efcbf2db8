"""What the device surface refuses before any domain is asked."""

from registry.errors import ApiError


class UnauthorisedDeviceError(ApiError):
    """The request is not proven to be from an enrolled device. The code says which proof failed."""

    code = "unsigned_request"
    status = 401
    title = "Not a signed device request"

    def __init__(self, code: str, detail: str, *, hint: str) -> None:
        super().__init__(detail, hint=hint, headers={"WWW-Authenticate": "Socle-Signature"})
        self.code = code


class MethodRefusedError(ApiError):
    """The path does not know the method."""

    code = "method_not_allowed"
    status = 405
    title = "Method not allowed"
    default_hint = "The Allow header lists the methods."


class WrongDeviceError(ApiError):
    """The body speaks for another device than the one that signed it."""

    code = "wrong_device"
    status = 403
    title = "Body of another device"
    default_hint = "A device reports only about itself."


class NotDesiredError(ApiError):
    """The file or release is not part of what this device shall have."""

    code = "not_desired"
    status = 403
    title = "Not for this device"
    default_hint = "Poll the desired state again: it may have changed."


class TrustNotReadyError(ApiError):
    """The server has no key that devices would believe."""

    code = "trust_not_ready"
    status = 503
    title = "Nothing can be signed"


class NoSuchMetadataError(ApiError):
    """No TUF metadata or target has this name. Clients ask for the next root until they read this."""

    code = "no_such_metadata"
    status = 404
    title = "No such metadata"
    default_hint = "`manage.py trust status` shows what there is."


class BadBodyError(ApiError):
    """The body is not the record that this path takes; `detail` begins with the place."""

    code = "bad_body"
    title = "Bad body"
    default_hint = "The agent and the server disagree on the protocol: update the agent."


class BodyTooLargeError(ApiError):
    """More bytes than the path takes, as they travel or unpacked."""

    code = "body_too_large"
    status = 413
    title = "Body too large"
    default_hint = "Send smaller batches."


class UnsupportedEncodingError(ApiError):
    """A Content-Encoding that is not spoken here."""

    code = "unsupported_encoding"
    status = 415
    title = "Unsupported content encoding"
    default_hint = "Send the body as it is, or with gzip."


class RangeNotSatisfiableError(ApiError):
    """The range begins behind the end of the file."""

    code = "range_not_satisfiable"
    status = 416
    title = "Range not satisfiable"
    default_hint = "Content-Range of this answer has the file's size."


class IndexPendingError(ApiError):
    """The release is older than chunk indexes are; a worker makes one now."""

    code = "index_pending"
    status = 503
    title = "The index is being made"
    default_hint = "Ask again after the time that Retry-After names."


class BlobMissingError(ApiError):
    """A release names bytes that the store does not have: the server's disk is damaged."""

    code = "blob_missing"
    status = 503
    title = "File missing on the server"
    default_hint = "Try again later; the operator has to restore the blob directory."
