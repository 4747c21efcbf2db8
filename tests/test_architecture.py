"""The import rules between the packages, checked on the source itself: a rule that only people know does not hold."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("engine", "edge_agent", "registry", "fleet")
DEVICE_SIDE = {"onnxruntime", "onnx", "tokenizers", "starlette", "uvicorn", "httpx2", "psutil"}
SERVER_SIDE = {"django", "rest_framework", "celery", "kombu", "redis"}
CONVERSION_READS = {
    "engine.artifact",
    "engine.backends",
    "engine.backends.reference",
    "engine.backends.weights",
    "engine.business",
    "engine.chat_template",
    "engine.convert",
    "engine.errors",
    "engine.layout",
    "engine.lora",
    "engine.parameters",
    "engine.strict_json",
    "engine.tensor_file",
    "engine.tokenizer",
}
DOORS = {
    "engine.artifact",
    "engine.chunk_index",
    "engine.distribution",
    "engine.errors",
    "engine.strict_json",
    "engine.trust_documents",
}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / package.replace(".", "/")).rglob("*.py")):
        if "migrations" not in path.parts:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imports(name: str, path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, also inside functions and type-checking blocks."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")[: None if path.name == "__init__.py" else -1]
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def top_levels(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def our_modules(names: set[str]) -> set[str]:
    """Of the dotted names, those that are modules of ours (not the names imported from them)."""
    known = {name for package in OURS for name, _ in modules(package)}
    return names & known


@pytest.mark.parametrize("door", [*sorted(DOORS), "edge_agent.protocol"])
def test_doors_need_the_standard_library_alone(door: str) -> None:
    path = ROOT / f"{door.replace('.', '/')}.py"
    foreign = {n for n in imports(door, path) if n.split(".")[0] not in sys.stdlib_module_names}
    assert {n for n in our_modules(foreign) if n != "engine"} <= DOORS
    assert top_levels(foreign) <= {"engine"}


def test_opening_a_door_loads_nothing_heavy() -> None:
    program = (
        "import sys, engine.artifact, edge_agent.protocol;"
        "heavy = {'numpy', 'onnxruntime', 'django', 'tokenizers', 'starlette'} & set(sys.modules);"
        "sys.exit(f'loaded {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("engine", SERVER_SIDE | {"edge_agent", "registry", "fleet", "httpx2", "starlette", "uvicorn"}),
        ("engine.convert", {"onnxruntime", "onnx"}),
        ("edge_agent", SERVER_SIDE | {"registry", "fleet"}),
        ("registry", DEVICE_SIDE | {"fleet", "edge_agent"}),
        ("fleet", DEVICE_SIDE - {"uvicorn"}),
    ],
)
def test_packages_keep_to_their_side(package: str, never: set[str]) -> None:
    allowed_here = {"tokenizers"} if package == "engine.convert" else set()
    offenders = {
        name: bad
        for name, path in modules(package)
        if (bad := top_levels(imports(name, path)) & (never - allowed_here))
    }
    assert not offenders


def test_conversion_does_not_reach_the_runtime() -> None:
    offenders = {
        name: bad
        for name, path in modules("engine.convert")
        if (
            bad := {m for m in our_modules(imports(name, path)) if not m.startswith("engine.convert")}
            - CONVERSION_READS
        )
        - {"engine"}
    }
    assert not offenders


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        (
            "registry",
            (*sorted(DOORS), "engine.convert"),
        ),
        ("fleet", (*sorted(DOORS), "edge_agent.protocol")),
    ],
)
def test_the_server_enters_the_device_side_by_its_doors(package: str, allowed: tuple[str, ...]) -> None:
    def through_a_door(module: str) -> bool:
        return module in ("engine", "edge_agent") or any(module == a or module.startswith(f"{a}.") for a in allowed)

    offenders = {
        name: bad
        for name, path in modules(package)
        if (
            bad := {
                m
                for m in our_modules(imports(name, path))
                if m.split(".")[0] in ("engine", "edge_agent") and not through_a_door(m)
            }
        )
    }
    assert not offenders


FLOORS = {"operators": 0, "devices": 1, "telemetry": 2, "rollouts": 3, "device_api": 4, "dashboard": 4}


def test_inside_the_fleet_imports_go_down() -> None:
    """Surfaces read rollouts, rollouts read telemetry and devices; never upward, never one surface from another."""
    offenders = []
    for name, path in modules("fleet"):
        here = name.split(".")[1] if name.count(".") else ""
        if here not in FLOORS or path.name == "urls.py":
            continue
        for target in our_modules(imports(name, path)):
            there = target.split(".")[1] if target.startswith("fleet.") else ""
            if there in FLOORS and there != here and FLOORS[there] >= FLOORS[here]:
                offenders.append(f"{name} -> {target}")
    assert not offenders


def test_only_the_client_knows_urls() -> None:
    offenders = [name for name, path in modules("edge_agent") if "/device/v1" in path.read_text(encoding="utf-8")]
    assert set(offenders) <= {"edge_agent.protocol", "edge_agent.client"}
