"""Errors of the engine, by what the caller will do about them.

`EngineError.code` is stable and travels in reports, problem documents and telemetry; the message says what to try
next. Nothing here logs.
"""


class EngineError(Exception):
    """Root of all errors that the engine raises on purpose."""

    code = "engine_error"


class InvalidInputError(EngineError):
    """The input is wrong: mend it and try again."""

    code = "invalid_input"


class UnsupportedInputError(InvalidInputError):
    """The input is well formed, but this engine does not support it."""

    code = "unsupported_input"


class BundleError(InvalidInputError):
    """A bundle on disk is damaged, incomplete or of another format: fetch it again."""

    code = "bad_bundle"


class AdapterMismatchError(InvalidInputError):
    """The adapter was made for another base, tokenizer, chat template or ABI."""

    code = "adapter_mismatch"


class UnknownAdapterError(InvalidInputError):
    """The request names an adapter that is not loaded."""

    code = "unknown_adapter"


class ContextLengthError(InvalidInputError):
    """Prompt and answer do not fit into the context."""

    code = "context_length_exceeded"


class CapacityError(EngineError):
    """Not now: memory or queue is full. Try again later, after `retry_after_s` if that is known."""

    code = "capacity"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimitError(CapacityError):
    """Not now: the business has used up its own budget."""

    code = "rate_limited"


class RequestTimeoutError(EngineError):
    """The request has taken as long as it may."""

    code = "timeout"


class NumericalError(EngineError):
    """The model gave values that are not numbers: its weights or the adapter's are bad."""

    code = "not_finite"
