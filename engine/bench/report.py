"""The report on all shapes: tables for people, one document for machines. All figures come from `results`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from engine.bench.cases import Case
from engine.bench.child import PeakMemory
from engine.bench.machine import Machine
from engine.bench.results import SAME_FUNCTION_COSINE, Participant, ShapeResults, median_of, shares
from engine.bench.shapes import num_weights, step_bytes, step_macs

_FIRST_COLUMN = 18
_COLUMN = 27
_NOTHING = "-"


def table(machine: Machine, shapes: Sequence[ShapeResults]) -> str:
    """For people."""
    lines = [f"{machine.processor}, {machine.num_cores} cores, Python {machine.python}, load {machine.load:.1f} before"]
    if machine.is_busy:
        lines.append("OTHERS USED THIS MACHINE: don't quote these figures, run again when it is quiet")
    for results in shapes:
        lines += ["", *_speeds(results), *_memory(results), *_shares(results), *_contestants(results)]
    return "\n".join(line.rstrip() for line in lines)


def document(machine: Machine, shapes: Sequence[ShapeResults], settings: dict[str, Any]) -> dict[str, Any]:
    """For machines: everything that the tables show, and every round."""
    return {
        "benchmark": "engine",
        "machine": asdict(machine),
        "settings": settings,
        "shapes": [_shape_document(results) for results in shapes],
    }


def _speeds(results: ShapeResults) -> Iterator[str]:
    architecture = results.architecture
    names = _with_figures(results)
    yield (
        f"{results.shape}: {architecture.num_hidden_layers} layers, hidden {architecture.hidden_size}, "
        f"{num_weights(architecture) / 1e6:.0f} M weights. Tokens/s: median [lowest, highest], and times the best peer"
    )
    context = None
    for case in results.cases:
        if case.context != context:
            context = case.context
            title = "prompt tokens" if case.is_prefill else f"rows at {context}"
            yield f"{title:<{_FIRST_COLUMN}}" + "".join(f"{name:<{_COLUMN}}" for name in names)
        yield f"{case.rows:>8}{'':<{_FIRST_COLUMN - 8}}" + "".join(
            f"{_speed(results, name, case):<{_COLUMN}}" for name in names
        )


def _speed(results: ShapeResults, name: str, case: Case) -> str:
    speed, ratio = results.speed(name, case), results.ratio(name, case)
    if speed is None:
        return _NOTHING
    times = f" {ratio:.2f}x" if ratio else ""
    return f"{_short(speed.median)} [{_short(speed.low)}, {_short(speed.high)}]{times}"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _with_figures(results: ShapeResults) -> list[str]:
    return [name for name in results.participants if any(n == name for n, _ in results.seconds)]


def _memory(results: ShapeResults) -> Iterator[str]:
    """Peak MiB of each contestant alone."""
    measured = [participant for participant in results.participants.values() if participant.opening]
    if not measured:
        return
    labels = list(dict.fromkeys(label for participant in measured for label in participant.serving))
    yield f"{'peak MiB alone':<{_FIRST_COLUMN}}" + "".join(f"{label:<{_COLUMN}}" for label in ["opening", *labels])
    for participant in measured:
        peaks = [participant.opening, *(participant.serving.get(label) for label in labels)]
        yield f"{participant.name:<{_FIRST_COLUMN}}" + "".join(f"{_peak(peak):<{_COLUMN}}" for peak in peaks)


def _peak(peak: PeakMemory | None) -> str:
    if peak is None:
        return _NOTHING
    return f"{peak.pss_bytes / 2**20:.0f} PSS, {peak.anonymous_bytes / 2**20:.0f} anon."


def _shares(results: ShapeResults) -> Iterator[str]:
    """How much of what the machine can do the native core uses, where that is known."""
    bandwidth = median_of(c.read_bytes_per_s for c in results.capabilities)
    macs = median_of(c.int8_macs_per_s for c in results.capabilities)
    if bandwidth:
        yield from _share_lines(results, "bandwidth", f"of {bandwidth / 1e9:.1f} GB/s")
    if macs:
        yield from _share_lines(results, "arithmetic", f"of {macs / 1e9:.0f} GMAC/s")


def _share_lines(results: ShapeResults, kind: str, title: str) -> Iterator[str]:
    names = [name for name in _with_figures(results) if results.participants[name].is_native]
    if names:
        yield f"{title:<{_FIRST_COLUMN}}" + "".join(f"{name:<{_COLUMN}}" for name in names)
        for case in results.cases:
            values = [_case_shares(results, name, case)[kind] for name in names]
            cells = "".join(f"{_NOTHING if value is None else f'{100 * value:.0f} %':<{_COLUMN}}" for value in values)
            yield f"  {_case_label(case):<{_FIRST_COLUMN - 2}}{cells}"


def _case_label(case: Case) -> str:
    return case.label if case.is_prefill else f"{case.rows} at {case.context}"


def _case_shares(results: ShapeResults, name: str, case: Case) -> dict[str, float | None]:
    return dict(
        shares(
            results,
            name,
            case,
            step_bytes=step_bytes(results.architecture, case.context),
            step_macs=step_macs(results.architecture, case.rows, case.logit_rows),
        )
    )


def _contestants(results: ShapeResults) -> Iterator[str]:
    """Who they are, who is not here, and who computes something else."""
    for participant in results.participants.values():
        if participant.failure:
            yield f"{participant.name} is missing: {participant.failure}"
        else:
            yield f"{participant.name} is {_facts(participant)}{_agreement(results.agreement(participant.name))}"


def _facts(participant: Participant) -> str:
    facts = participant.facts
    note = f", {facts['note']}" if "note" in facts else ""
    threads, open_s = facts.get("num_threads"), facts.get("open_s", 0.0)
    return f"{facts.get('version')}{note}, {threads} threads, opened in {open_s:.1f} s"


def _agreement(cosine: float | None) -> str:
    if cosine is None:
        return ""
    warning = ": IT DOES NOT COMPUTE THE SAME MODEL" if cosine < SAME_FUNCTION_COSINE else ""
    return f", cosine of its logits {cosine:.4f}{warning}"


def _shape_document(results: ShapeResults) -> dict[str, Any]:
    return {
        "shape": results.shape,
        "architecture": asdict(results.architecture),
        "read_bytes_per_s": [capability.read_bytes_per_s for capability in results.capabilities],
        "int8_macs_per_s": [capability.int8_macs_per_s for capability in results.capabilities],
        "contestants": [
            {**asdict(participant), "agreement": results.agreement(participant.name)}
            for participant in results.participants.values()
        ],
        "results": [_result(results, name, case) for case in results.cases for name in _with_figures(results)],
    }


def _result(results: ShapeResults, name: str, case: Case) -> dict[str, Any]:
    speed = results.speed(name, case)
    return {
        "contestant": name,
        **asdict(case),
        "step_s": results.seconds.get((name, case), []),
        "tokens_per_s": asdict(speed) if speed else None,
        "ratio_to_best_peer": results.ratio(name, case),
        "shares": _case_shares(results, name, case),
    }
