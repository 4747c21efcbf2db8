"""Which values from a device can be kept. Pure: a record in, a complaint or nothing out.

The wire's types are checked before; this is about sizes, since a hostile device may send anything that has the type.
"""

import re
from collections.abc import Iterator

from edge_agent import protocol

MAX_ADAPTERS = 256
_MAX_KINDS = 32
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[a-z0-9_]{1,64}")


def check_report(report: protocol.DeviceReport) -> str | None:
    """What is wrong with the report, if anything."""
    return next(_complaints(report), None)


def check_enrolment(request: protocol.EnrolRequest) -> str | None:
    """What is wrong with the introduction, if anything."""
    if request.protocol != protocol.PROTOCOL:
        return f"protocol {request.protocol} is not spoken here, {protocol.PROTOCOL} is"
    if not _is_text(request.name, 100) or not request.name.strip():
        return "name: 1 to 100 characters are allowed"
    if not _is_text(request.agent_version, 64):
        return "agent_version: at most 64 characters are allowed"
    return _hardware_complaint(request.hardware)


def _complaints(report: protocol.DeviceReport) -> Iterator[str]:
    if not _is_text(report.agent_version, 64):
        yield "agent_version: at most 64 characters are allowed"
    if report.revision < 0 or report.target_revision < 0:
        yield "revision: may not be below 0"
    if complaint := _hardware_complaint(report.hardware):
        yield complaint
    if len(report.adapters) > MAX_ADAPTERS:
        yield f"adapters: at most {MAX_ADAPTERS} are allowed"
    for ref in (*((report.base,) if report.base else ()), *report.adapters):
        if not (_is_text(ref.name, 63) and _is_text(ref.version, 64) and _SHA256.fullmatch(ref.digest)):
            yield f"release {ref.name!r:.80}: bad name, version or digest"
    yield from _engine_complaints(report)
    if report.problem and not _ID.fullmatch(report.problem.code):
        yield "problem.code: 1 to 64 of a-z, 0-9 and _ are allowed"
    if report.problem and not _is_text(report.problem.detail, 4000):
        yield "problem.detail: at most 4000 characters are allowed"


def _engine_complaints(report: protocol.DeviceReport) -> Iterator[str]:
    if len(report.quarantined) > MAX_ADAPTERS or not all(map(_SHA256.fullmatch, report.quarantined)):
        yield f"quarantined: at most {MAX_ADAPTERS} digests are allowed"
    sizes = report.memory_bytes
    if len(sizes) > _MAX_KINDS or not all(_ID.fullmatch(kind) and 0 <= size < 1 << 50 for kind, size in sizes.items()):
        yield f"memory_bytes: at most {_MAX_KINDS} kinds with sizes are allowed"


def _hardware_complaint(hardware: protocol.Hardware) -> str | None:
    if not all(_is_text(text, 200) for text in (hardware.machine, hardware.system, hardware.cpu_model)):
        return "hardware: at most 200 characters per text are allowed"
    return None


def _is_text(value: str, max_chars: int) -> bool:
    """No longer than that, and without NUL, which PostgreSQL does not store."""
    return len(value) <= max_chars and "\0" not in value
