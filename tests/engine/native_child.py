"""A process that runs the native back end and prints what it takes: `-m tests.engine.native_child BASE ADAPTER`."""

import json
import sys
import time
from pathlib import Path

import numpy as np

from engine.artifact import ADAPTER_WEIGHTS, BASE_WEIGHTS
from engine.backends import Segment
from engine.backends.native import NativeBackend
from engine.config import EngineConfig

PROMPT_TOKENS = 512
NUM_STEPS = 1000


def memory(pages: str = "smaps_rollup", of: str = "") -> dict[str, int]:
    """Bytes by kind of all mappings, or of those whose name ends with `of`; 0 where there is none."""
    total: dict[str, int] = {}
    counts = True
    for line in Path("/proc/self", pages).read_text(encoding="utf-8").splitlines():
        key, *values = line.split()
        if not key.endswith(":"):
            counts = line.endswith(of)
        elif counts and values[-1] == "kB":
            total[key[:-1]] = total.get(key[:-1], 0) + 1024 * int(values[0])
    return total


def main(base: Path, adapter: Path) -> dict[str, object]:
    """Open, load, prefill in chunks, verify a tree, decode, idle."""
    before = memory()["Anonymous"]
    backend = NativeBackend(base, EngineConfig(num_threads=2))
    opened = memory()["Anonymous"]
    backend.load_adapter("a", adapter)
    loaded = memory()["Anonymous"]
    state = backend.new_state(PROMPT_TOKENS + 64)

    def step(num_rows, logit_rows, parents=None):
        token_ids = np.arange(num_rows, dtype=np.int32)
        return backend.step([Segment(state, token_ids, "a", logit_rows, parents)])

    for _ in range(PROMPT_TOKENS // 128):
        step(128, ())
    step(16, tuple(range(16)), (-1, *range(15)))
    state.accept([0, 1])
    for _ in range(50):
        step(1, (0,))
    after = memory()["Anonymous"]

    for _ in range(NUM_STEPS):
        state.rewind(PROMPT_TOKENS)
        step(1, (0,))
    grown = memory()["Anonymous"]
    cpu_s = time.process_time()
    time.sleep(1)
    return {
        "anonymous_bytes": after - before,
        "owed_bytes": state.size_bytes,
        "load_bytes": loaded - opened,
        "growth_bytes": grown - after,
        "idle_cpu_s": time.process_time() - cpu_s,
        "weights": memory("smaps", of=BASE_WEIGHTS),
        "adapter": memory("smaps", of=ADAPTER_WEIGHTS),
        "logits_are_finite": bool(np.isfinite(step(1, (0,))[0]).all()),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*map(Path, sys.argv[1:]))))
