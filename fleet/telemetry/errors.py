"""What telemetry refuses."""

from registry.errors import ApiError


class BadSampleError(ApiError):
    """A batch holds a sample that is no summary of anything: the whole batch is refused, nothing of it is kept."""

    code = "bad_sample"
    status = 422
    title = "Bad sample"
    default_hint = "The agent and the server disagree on the protocol: update the agent."


class QueryTooWideError(ApiError):
    """The answer would hold too many points, series or rows."""

    code = "query_too_wide"
    status = 422
    title = "The query is too wide"
    default_hint = "Choose a shorter range, a longer step, fewer groups, or filter by device or group."


class BadRangeError(ApiError):
    """`from` does not lie before `to`."""

    code = "bad_range"
    status = 422
    title = "Bad range"
    default_hint = "Give `from` and `to` as ISO 8601 times, `from` before `to`."
