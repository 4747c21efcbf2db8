"""What the device service refuses."""

from registry.errors import ApiError


class DeviceNotFoundError(ApiError):
    """No device has this id."""

    code = "device_not_found"
    status = 404
    title = "No such device"
    default_hint = "GET /api/v1/devices lists them."


class UnknownGroupError(ApiError):
    """A body names a group that does not exist."""

    code = "unknown_group"
    status = 422
    title = "Unknown group"
    default_hint = "Make it with POST /api/v1/groups, or look at GET /api/v1/groups."


class GroupNotFoundError(UnknownGroupError):
    """The path names a group that does not exist."""

    code = "group_not_found"
    status = 404
    title = "No such group"


class GroupExistsError(ApiError):
    """The name is taken."""

    code = "group_exists"
    status = 409
    title = "The group exists"
    default_hint = "Use the group that is there, or choose another name."


class EnrolmentRefusedError(ApiError):
    """The token lets nobody in (any more). One answer for all causes: a stranger shall not learn which tokens exist."""

    code = "enrolment_token_refused"
    status = 403
    title = "Enrolment token refused"
    default_hint = "Ask an operator for a new token: POST /api/v1/enrolment-tokens."


class DeviceRevokedError(ApiError):
    """The device was shut out by an operator."""

    code = "device_revoked"
    status = 403
    title = "Device revoked"
    default_hint = "Only an operator can let this device in again, with a new key and a new token."


class BadDeviceDataError(ApiError):
    """A device sent values that no field can hold."""

    code = "bad_device_data"
    status = 422
    title = "Bad data from the device"
    default_hint = "The agent and the server disagree on the protocol: update the agent."
