"""Errors of the agent, by what the caller will do about them.

`code` is stable and travels in reports; the message says what to try next. Nothing here logs.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Final

from edge_agent.protocol import Problem
from engine.errors import BundleError

CLIENTS_FAULTS: Final = frozenset({"invalid_input", "unsupported_input", "context_length_exceeded"})
"""Codes by which the engine says that a request is wrong in itself."""

_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class AgentError(Exception):
    """Root of all errors that the agent raises on purpose."""

    code = "agent_error"

    def __init__(self, detail: str, *, code: str | None = None, evidence: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.code = code or self.code
        self.evidence = dict(evidence or {})

    def as_problem(self) -> Problem:
        """What the report to the fleet says."""
        return Problem(self.code, str(self), self.evidence)


class UserError(AgentError):
    """A person must mend something before the agent can start; `exit_code` is for the shell."""

    code = "usage"
    exit_code = 2


class AlreadyRunningError(UserError):
    """Another agent holds the state directory."""

    code = "already_running"
    exit_code = 3


class NotEnrolledError(UserError):
    """The device has no identity yet, or the server refused to give it one."""

    code = "not_enrolled"
    exit_code = 4


class TransientError(AgentError):
    """Not now: the same call may work later, not before `retry_after_s` if that is given."""

    code = "temporary_failure"
    exit_code = 5

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        evidence: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail, code=code, evidence=evidence)
        self.retry_after_s = retry_after_s


class UnreachableError(TransientError):
    """The server gave no answer, or half of one."""

    code = "server_unreachable"


class UnavailableError(TransientError):
    """The server answered that it cannot now."""

    code = "server_unavailable"


class UntrustedError(TransientError):
    """Metadata that does not verify, or could not be had: nothing is taken from this server now.

    The code names the attack that it would be if it were one. Not final: a lying mirror may go away.
    """

    code = "untrusted"


class EngineGoneError(TransientError):
    """The engine process died or was stopped while it owed an answer."""

    code = "engine_gone"


class NotServingError(TransientError):
    """No set is active, or the engine has no room for one more request."""

    code = "not_serving"


class QuarantinedError(TransientError):
    """The adapter took the engine down too often; the device waits for another version of it."""

    code = "adapter_quarantined"


class DiskError(TransientError):
    """The disk did not do what it should; it may be writable again later."""

    code = "disk_error"


class DiskFullError(DiskError):
    """The disk took no more bytes; there may be room later."""

    code = "disk_full"


class FinalError(AgentError):
    """Trying the same again cannot help; something else must change first."""

    code = "final"


class RefusedError(FinalError):
    """The server said no (4xx)."""

    code = "refused"

    def __init__(self, detail: str, *, status: int, code: str | None = None) -> None:
        super().__init__(detail, code=code, evidence={"status": str(status)})
        self.status = status


class RefusedReleaseError(FinalError):
    """The metadata is good, and it does not vouch for this release as the desired state names it."""

    code = "release_not_signed"


class AdmissionError(FinalError):
    """This release can't run on this device; found before its first byte was downloaded."""

    code = "not_admitted"


class DamagedError(FinalError):
    """Bytes are not those that the manifest lists, even after fetching them again."""

    code = "digest_mismatch"


class ProbeError(FinalError):
    """The staged set does not do what its golden prompts say."""

    code = "probe_failed"


class EngineRefusedError(FinalError):
    """The engine turned a call or a request down; `code` is the engine's own."""

    code = "engine_refused"


def disk_error(error: OSError) -> DiskError:
    """What the disk has refused, in words that say what to do."""
    if error.errno in _DISK_FULL:
        return DiskFullError(f"the disk is full ({error.strerror}): free some space; what has come is kept")
    return DiskError(f"{error}: look at the device's disk")


def problem_of(error: AgentError | BundleError | OSError) -> Problem:
    """What the report to the fleet says of an error."""
    if isinstance(error, AgentError):
        return error.as_problem()
    if isinstance(error, BundleError):
        return Problem(error.code, str(error))
    return disk_error(error).as_problem()
