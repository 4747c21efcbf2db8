"""`./dev bench plugins`: several businesses on one device, measured. A table for people; the last line is JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from deploy.bench.plugins.device import device
from deploy.bench.plugins.figures import percentile
from deploy.bench.plugins.load import KINDS, Ask, Run, Speed, answers_alone, measure_speed, plan, replay
from deploy.bench.plugins.models import Models, ensure_models
from deploy.bench.plugins.processes import measure_memory, measure_prefix, measure_restarts
from deploy.bench.plugins.switching import measure_switching
from deploy.bench.plugins.updating import measure_updates
from deploy.bench.surroundings import machine, say
from engine.bench.arguments import count, one_of, positive
from engine.convert.growth import SHAPES

ROOT: Final = Path(__file__).resolve().parents[3]
PARTS: Final = ("load", "switch", "update", "memory", "prefix", "restart")
CLASSES: Final = ("urgent", "interactive", "patient")
_ADAPTERS_PER_TASK: Final = 3  # as many as businesses of a task, in turns over four tasks


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    num_adapters = max(options.switch_adapters, options.memory_adapters, 4 * _ADAPTERS_PER_TASK)
    models = ensure_models(options.cache.resolve(), options.shape, num_adapters, say)
    report: dict[str, Any] = {"benchmark": "plugins", "machine": machine(), "shape": options.shape}
    for part in options.parts:
        say(f"measuring: {part}")
        report[part] = _measure(part, models, options)
        _PRINT[part](report[part])
    print(json.dumps(report))


def _measure(part: str, models: Models, options: argparse.Namespace) -> dict[str, Any]:
    match part:
        case "load":
            return asyncio.run(_measure_load(models, options))
        case "switch":
            chosen = Models(models.base, models.adapters[: options.switch_adapters])
            return measure_switching(chosen, options.switch_steps)
        case "update":
            return asyncio.run(measure_updates(models, options.updates))
        case "memory":
            return asyncio.run(measure_memory(models, options.memory_adapters))
        case "prefix":
            return asyncio.run(measure_prefix(models, options.pairs))
        case _:
            return asyncio.run(measure_restarts(models, options.restarts))


async def _measure_load(models: Models, options: argparse.Namespace) -> dict[str, Any]:
    """Both policies on the same arrivals, in turns; then some of the requests on an idle device."""
    adapters, counts = {}, dict.fromkeys((kind.task for kind in KINDS), 0)
    for kind in KINDS:
        adapters[kind.name] = models.adapter_of(kind.task, counts[kind.task])
        counts[kind.task] += 1
    businesses = {kind.name: kind.options for kind in KINDS}
    runs: list[Run] = []
    asks: list[Ask] = []
    speed = Speed(1.0, 1.0)
    for number in range(2 * options.rounds):
        policy = ("deadlines", "first_come")[(number + number // 2) % 2]  # A B B A
        engine = {"policy": policy, "max_waiting": 10_000}
        async with device(models, adapters, engine=engine, businesses=businesses) as running:
            if not asks:
                speed = await measure_speed(running)
                asks = await plan(
                    running, speed, seconds=options.seconds, utilisation=options.utilisation, seed=options.seed
                )
                say(f"{len(asks)} requests in {options.seconds} s; {speed}")
            runs.append(await replay(running, policy, asks))
            say(f"{policy}: {runs[-1].seconds:.0f} s, {runs[-1].tokens_per_s:.1f} tokens/s")
    async with device(models, adapters, engine={}, businesses=businesses) as running:
        sample = asks[:: max(1, len(asks) // options.compared)]
        alone = await answers_alone(running, sample)
    under_load = {id(got.ask): got.text for run in runs for got in run.got}
    agreeing = sum(under_load[id(ask)] == text for ask, text in zip(sample, alone, strict=True))
    return _load_report(runs, asks, speed) | {"answers_compared": len(sample), "answers_as_alone": agreeing}


def _load_report(runs: list[Run], asks: list[Ask], speed: Speed) -> dict[str, Any]:
    by_policy = {policy: [run for run in runs if run.policy == policy] for policy in ("deadlines", "first_come")}
    classes = {}
    for name in CLASSES:
        figures = {policy: _class_figures(its_runs, name) for policy, its_runs in by_policy.items()}
        gain = figures["first_come"]["ttft_p99_s"] / max(figures["deadlines"]["ttft_p99_s"], 1e-9)
        classes[name] = {**figures, "ttft_p99_gain": gain}
    rates = {policy: percentile([run.tokens_per_s for run in its], 50) for policy, its in by_policy.items()}
    return {
        "num_requests": len(asks),
        "speed": asdict(speed),
        "classes": classes,
        "tokens_per_s": rates,
        "throughput_ratio": rates["deadlines"] / rates["first_come"],
        "num_unanswered": sum(not got.text for run in runs for got in run.got),
        "num_told_to_wait": sum(got.num_refusals for run in runs for got in run.got),
    }


def _class_figures(runs: list[Run], name: str) -> dict[str, float]:
    got = [one for run in runs for one in run.got if one.ask.kind.deadline == name]
    figures: dict[str, float] = {"num_requests": len(got)}
    for percent in (50, 99):
        figures[f"ttft_p{percent}_s"] = percentile([one.ttft_s for one in got], percent)
        figures[f"completion_p{percent}_s"] = percentile([one.completion_s for one in got], percent)
    return figures | {"completion_max_s": max((one.completion_s for one in got), default=0.0)}


def _print_load(report: dict[str, Any]) -> None:
    print(
        f"\n{report['num_requests']} requests of eight businesses; seconds, deadlines against first come first served"
    )
    print(f"{'class':12} {'TTFT p50':>18} {'TTFT p99':>18} {'gain':>6} {'completion p50':>18} {'completion p99':>18}")
    for name, figures in report["classes"].items():
        ours, theirs = figures["deadlines"], figures["first_come"]
        pairs = [f"{ours[key]:.2f} / {theirs[key]:.2f}" for key in ("ttft_p50_s", "ttft_p99_s")]
        ends = [f"{ours[key]:.2f} / {theirs[key]:.2f}" for key in ("completion_p50_s", "completion_p99_s")]
        gain = f"{figures['ttft_p99_gain']:.1f}x"
        print(f"{name:12} {pairs[0]:>18} {pairs[1]:>18} {gain:>6} {ends[0]:>18} {ends[1]:>18}")
    rates = report["tokens_per_s"]
    ratio = f"{rates['deadlines']:.1f} / {rates['first_come']:.1f} tokens/s ({report['throughput_ratio']:.3f}x)"
    print(
        f"throughput {ratio}; {report['num_unanswered']} unanswered, {report['num_told_to_wait']} told to come back; "
        f"{report['answers_as_alone']} of {report['answers_compared']} answers as on an idle device"
    )


def _print_switch(report: dict[str, Any]) -> None:
    cost = report["switch"]
    print(
        f"\nswitch among {report['num_adapters']} adapters, {report['num_steps']} steps: "
        f"p50 {cost['p50_ms']:+.3f} ms, p90 {cost['p90_ms']:+.3f} ms, p99 {cost['p99_ms']:+.3f} ms on steps of "
        f"{report['step_p50_ms']:.1f} ms (p99 {report['step_p99_ms']:.1f}); "
        f"loading one {report['load_p50_ms']:.1f} ms (at most {report['load_max_ms']:.1f})"
    )


def _print_update(report: dict[str, Any]) -> None:
    print(
        f"\n{report['num_updates']} updates of {report['adapters_per_update']} adapters each hold steps up for "
        f"{report['pause_p50_ms']:.1f} ms (at most {report['pause_max_ms']:.1f}); an answer under way has gaps of "
        f"{report['gap_p50_ms']:.1f} ms (at most {report['gap_max_ms']:.0f}, without updates "
        f"{report['gap_max_at_rest_ms']:.0f}); {report['num_broken']} answers broken"
    )


def _print_memory(report: dict[str, Any]) -> None:
    sizes = f"files {report['files_mib']:.0f} MiB, PSS {report['pss_mib']:.0f} MiB ({report['pss_to_files']:.3f}x)"
    print(
        f"\nbase and {report['num_adapters']} adapters: {sizes}; "
        f"the ledger has {report['ledger_to_pss']:.3f}x of the PSS"
    )


def _print_prefix(report: dict[str, Any]) -> None:
    times = f"{report['cached_ttft_ms']:.1f} ms instead of {report['cold_ttft_ms']:.0f} ms"
    print(
        f"\nprompt of {report['prompt_tokens']} tokens, {report['cached_tokens']} cached: "
        f"first token after {times} ({100 * report['ratio']:.1f} %); "
        f"answers {'agree' if report['answers_agree'] else 'DIFFER'}"
    )


def _print_restart(report: dict[str, Any]) -> None:
    print(f"\nanswering again after a kill: {report['after_kill_s']} s; after a hang: {report['after_hang_s']} s")


_PRINT: Final = dict(
    zip(PARTS, (_print_load, _print_switch, _print_update, _print_memory, _print_prefix, _print_restart), strict=True)
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./dev bench plugins", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--parts", type=one_of(PARTS), default=",".join(PARTS), help="what to measure")
    add("--shape", choices=sorted(SHAPES), default="0.5b", help="what the demo's models are grown to")
    add("--seconds", type=positive, default=60.0, help="load: for how long requests arrive")
    add("--utilisation", type=positive, default=1.0, help="load: share of what the device was measured to do")
    add("--rounds", type=count, default=1, help="load: replays under each policy, in turns")
    add("--compared", type=count, default=20, help="load: answers to compare with those on an idle device")
    add("--switch-adapters", type=count, default=64, help="switch: resident adapters")
    add("--switch-steps", type=count, default=640, help="switch: steps with and without a change, in turns")
    add("--updates", type=count, default=20, help="update: times that adapters are exchanged under an answer")
    add("--memory-adapters", type=count, default=32, help="memory: adapters beside the base")
    add("--pairs", type=count, default=5, help="prefix: prompts that are sent cold and cached")
    add("--restarts", type=count, default=3, help="restart: times that the engine is killed, and made to hang")
    add("--seed", type=int, default=1, help="load: another one asks other things at other times")
    add("--cache", type=Path, default=ROOT / "var" / "bench", help="where the grown models are kept")
    return parser


if __name__ == "__main__":
    main()
