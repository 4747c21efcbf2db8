"""`python -m tests.kill_matrix`: plays every case and prints the table; the last line is one JSON document."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.kill_matrix.cases import Case, cases
from tests.kill_matrix.running import Outcome, run_case, trace
from tests.kill_matrix.scenarios import SCENARIOS, World


def main() -> int:
    directory = Path(tempfile.mkdtemp(prefix="kill-matrix-"))
    exit_code = _run(World(directory), _arguments())
    if exit_code == 0:  # else the logs are worth a look
        shutil.rmtree(directory, ignore_errors=True)
    return exit_code


def _run(world: World, arguments: argparse.Namespace) -> int:
    started_s = time.monotonic()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        traces = pool.map(lambda scenario: trace(world, scenario), SCENARIOS.values())
        table = cases(dict(zip(SCENARIOS, traces, strict=True)))
    chosen = [case for case in table if all(word in str(case) for word in arguments.words)]
    if arguments.list:
        print(*chosen, sep="\n")
        return 0
    outcomes = list(_play(world, chosen, arguments.jobs))
    outcomes.sort(key=lambda outcome: table.index(outcome.case))
    print_table(outcomes, Console(width=170))
    wrong = sum(bool(outcome.wrong) for outcome in outcomes)
    figures = {"cases": len(outcomes), "wrong": wrong, "seconds": round(time.monotonic() - started_s)}
    print(json.dumps({"kill_matrix": figures}))
    return int(wrong > 0 or not outcomes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev kill-matrix", description=__doc__)
    parser.add_argument("words", nargs="*", help="only cases whose names have all of these")
    parser.add_argument("--jobs", type=int, default=4, help="cases at a time [4]")
    parser.add_argument("--list", action="store_true", help="print the cases, play none")
    return parser.parse_args()


def _play(world: World, chosen: list[Case], jobs: int) -> Iterable[Outcome]:
    """Outcomes as they come; a line for each one that is wrong."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run_case, world, case) for case in chosen]
        for done, future in enumerate(as_completed(futures), 1):
            outcome = future.result()
            if outcome.wrong:
                print(f"WRONG {outcome.case}: {outcome.wrong}", file=sys.stderr, flush=True)
            elif sys.stderr.isatty():
                print(f"\r{done} of {len(chosen)}", end="", file=sys.stderr, flush=True)
            yield outcome


def print_table(outcomes: Iterable[Outcome], console: Console) -> None:
    """One line a case."""
    table = Table("case", "found in journal", "serves at once", "ends", "s", "verdict", box=None, pad_edge=False)
    for outcome in outcomes:
        verdict = f"[red]{outcome.wrong}[/red]" if outcome.wrong else "ok"
        at_once, seconds = outcome.served_at_once or "-", f"{outcome.seconds:.1f}"
        table.add_row(str(outcome.case), outcome.resumed_from, at_once, outcome.ended, seconds, verdict)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
