"""The demo's base and adapters in the shape of a larger model, made once and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from engine.artifact import ADAPTER_WEIGHTS, BASE_WEIGHTS, FORMAT, read_adapter, read_base
from engine.convert import convert_adapter, convert_base
from engine.convert.grow import grow_checkpoint
from engine.convert.grow_adapter import grow_adapter
from engine.convert.growth import SHAPES

SOURCES: Final = Path(__file__).resolve().parents[2] / "demo" / "models"
TASKS: Final = {"home-1.0.0": "home", "home-2.0.0": "home-2", "car-1.0.0": "car", "summary-1.0.0": "summary"}


@dataclass(frozen=True, slots=True)
class Models:
    """Bundles: the base, and adapters that all differ, by task in turns."""

    base: Path
    adapters: tuple[Path, ...]

    @property
    def base_digest(self) -> str:
        """Names the base's content."""
        return read_base(self.base)[1]

    def digest(self, adapter: Path) -> str:
        """Names an adapter's content."""
        return read_adapter(adapter)[1]

    def adapter_of(self, task: str, number: int = 0) -> Path:
        """The adapter of a task; there are several, which differ in what changes nothing."""
        return [path for path in self.adapters if path.name.endswith(f"-{task}")][number]

    @property
    def files_bytes(self) -> int:
        """Of the base's weights and all adapters' together."""
        files = [self.base / BASE_WEIGHTS, *(adapter / ADAPTER_WEIGHTS for adapter in self.adapters)]
        return sum(file.stat().st_size for file in files)


def ensure_models(cache: Path, shape: str, num_adapters: int, say: Callable[[str], None]) -> Models:
    """Make what is missing below `cache`."""
    folder = cache / f"grown-{shape}-format-{FORMAT}"
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base"
    if not base.exists():
        say(f"growing the base to {shape}, in {folder}")
        with TemporaryDirectory(dir=folder) as temporary:
            grow_checkpoint(SOURCES / "base", Path(temporary) / "base", SHAPES[shape])
            convert_base(Path(temporary) / "base", base)
    names = list(TASKS)
    adapters = [folder / f"{index:03}-{TASKS[names[index % len(names)]]}" for index in range(num_adapters)]
    for index, adapter in enumerate(adapters):
        if not adapter.exists():
            say(f"growing adapter {index + 1} of {num_adapters}")
            with TemporaryDirectory(dir=folder) as temporary:
                source, target = SOURCES / "adapters" / names[index % len(names)], Path(temporary) / "adapter"
                grow_adapter(source, SOURCES / "base", target, SHAPES[shape], seed=index)
                convert_adapter(target, base, adapter)
    return Models(base, tuple(adapters))
