"""From a PEFT directory to an adapter bundle, bound to one base bundle.

`convert_adapter` reads as its steps: read the options, pair the tensors, check them against the base, fold the scale
into B, quantise, write. Nothing is dropped silently: a tensor that has no place is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from engine.artifact import (
    ADAPTER_WEIGHTS,
    AdapterManifest,
    BaseBinding,
    BaseManifest,
    GoldenPrompt,
    describe_files,
    read_base,
    write_manifest,
)
from engine.business import Business
from engine.convert.building import Progress, building, ignore_progress
from engine.convert.errors import (
    AllZeroError,
    BadExtrasError,
    MissingTensorError,
    NoModuleMatchedError,
    NotAnAdapterError,
    NotFiniteError,
    ShapeMismatchError,
    UnexpectedTensorError,
    UnsupportedPeftOptionError,
    WrongBaseError,
)
from engine.convert.peft_options import PeftOptions
from engine.convert.quantise import quantise_pair
from engine.convert.source import SourceTensors, open_tensors, read_json, read_optional_json
from engine.errors import InvalidInputError
from engine.lora import LoraMatrices, lora_bits, lora_specs
from engine.parameters import linear_modules
from engine.strict_json import DecodeError, from_document
from engine.tensor_file import write_tensor_file

F32 = NDArray[np.float32]
Pairs = Mapping[str, Mapping[str, str]]
EXTRAS_NAME: Final = "socle.json"
MAX_EXTRAS_BYTES: Final = 1 << 20  # they travel in the manifest, which has a limit of its own

LORA_NAME: Final = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.[A-Za-z0-9_-]+)?\.weight")
_UNSUPPORTED_NAMES: Final = {
    "lora_magnitude_vector": "DoRA",
    "lora_embedding": "LoRA of an embedding",
    "modules_to_save": "modules_to_save",
    "token_adapter": "trainable_token_indices",
    ".bias": "bias",
}


@dataclass(frozen=True, slots=True)
class Extras:
    """`socle.json` beside the adapter: what ships with it."""

    business: Mapping[str, Any]
    golden_prompts: tuple[GoldenPrompt, ...]


def convert_adapter(source: Path, base_bundle: Path, bundle: Path, *, on_progress: Progress = ignore_progress) -> str:
    """Convert a PEFT directory and return the release digest; raises a `ConversionError` saying what to mend.

    `bundle` must not exist; it appears at once when it is whole.
    """
    on_progress("reading the adapter", 0.0)
    base, base_digest = read_base(base_bundle)
    options = PeftOptions(read_json(source / "adapter_config.json", NotAnAdapterError))
    extras = _read_extras(source)
    tensors = open_tensors(source, "adapter_model", NotAnAdapterError)
    pairs = _pair(tensors)
    _check_modules(pairs, options, base)
    _check_shapes(tensors, pairs, options, base)
    on_progress("converting the matrices", 0.3)
    matrices = store_matrices(_read_matrices(tensors, pairs, options), base)
    _check_effect(matrices)
    with building(bundle) as folder:
        on_progress("writing the bundle", 0.8)
        write_matrices(folder / ADAPTER_WEIGHTS, matrices, base)
        manifest = AdapterManifest(
            base=BaseBinding(base_digest, base.tokenizer.tokenizer_sha256, base.tokenizer.chat_template_sha256),
            ranks={module: lora.rank for module, lora in matrices.items()},
            files=describe_files(folder, [ADAPTER_WEIGHTS]),
            business=extras.business,
            golden_prompts=extras.golden_prompts,
        )
        digest = write_manifest(folder, manifest)
    on_progress("done", 1.0)
    return digest


def _read_extras(source: Path) -> Extras:
    given = read_optional_json(source / EXTRAS_NAME, BadExtrasError, at_most_bytes=MAX_EXTRAS_BYTES)
    document = {"business": {}, "golden_prompts": [], **given}
    try:
        extras = from_document(Extras, document)
        Business.from_mapping(extras.business)
    except (DecodeError, InvalidInputError) as error:
        raise BadExtrasError(f"{EXTRAS_NAME}: {error}") from error
    return extras


def _pair(tensors: SourceTensors) -> dict[str, dict[str, str]]:
    """The tensor names of each module: {module: {"A": name, "B": name}}, in order of the modules' names."""
    pairs: dict[str, dict[str, str]] = {}
    for name in sorted(tensors):
        match = LORA_NAME.fullmatch(name)
        if match is None:
            _refuse_tensor(name)
        module, which = match.groups()
        if which in pairs.setdefault(module, {}):
            raise UnexpectedTensorError(f"{module:.120} has two lora_{which}", hint="Save one adapter at a time.")
        pairs[module][which] = name
    for module, names in pairs.items():
        for which in {"A", "B"} - set(names):
            raise MissingTensorError(f"{module:.120} lacks its lora_{which}", hint="Save the adapter again.")
    return pairs


def _refuse_tensor(name: str) -> NoReturn:
    for part, option in _UNSUPPORTED_NAMES.items():
        if part in name:
            raise UnsupportedPeftOptionError(f"{name:.120} belongs to {option}, which the engine does not run")
    raise UnexpectedTensorError(f"{name:.120} is no tensor of a LoRA")


def _check_modules(pairs: Mapping[str, Any], options: PeftOptions, base: BaseManifest) -> None:
    """The modules with tensors are exactly those that the options target, and the base has them."""
    linears = linear_modules(base.architecture)
    if not any(module in linears for module in pairs):
        raise NoModuleMatchedError("none of the adapter's tensors belongs to a linear layer of the base")
    if unknown := [module for module in pairs if module not in linears]:
        _refuse_module(unknown[0], linears)
    targeted = [module for module in linears if options.targets(module)]
    if not targeted:
        raise NoModuleMatchedError("target_modules matches no linear layer of the base")
    if extra := sorted(set(pairs) - set(targeted)):
        raise UnexpectedTensorError(f"there are tensors for {extra[0]}, which target_modules does not name")
    if missing := sorted(set(targeted) - set(pairs)):
        raise MissingTensorError(
            f"target_modules names {missing[0]}, for which there are no tensors",
            hint="Save the adapter again, and check that it was trained on a base with as many layers as this one.",
        )


def _refuse_module(module: str, linears: Mapping[str, Any]) -> NoReturn:
    """A module that the base does not have: in a layer too many, or of a kind that adapters cannot change here."""
    kinds = {re.sub(r"\.\d+\.", ".*.", linear) for linear in linears}
    if re.sub(r"\.\d+\.", ".*.", module) in kinds:
        raise WrongBaseError(f"the adapter changes {module:.120}, a layer that this base does not have")
    raise UnsupportedPeftOptionError(f"the adapter changes {module:.120}, which is no linear layer of attention or MLP")


def _check_shapes(tensors: SourceTensors, pairs: Pairs, options: PeftOptions, base: BaseManifest) -> None:
    linears = linear_modules(base.architecture)
    for module, names in pairs.items():
        (rows, inputs), rank = linears[module], options.rank(module)
        shape_a, shape_b = tensors[names["A"]].shape, tensors[names["B"]].shape
        if len(shape_a) != 2 or len(shape_b) != 2 or (shape_a[0], shape_b[1]) != (rank, rank):
            raise ShapeMismatchError(
                f"{module}: lora_A has shape {list(shape_a)} and lora_B {list(shape_b)}, "
                f"adapter_config.json calls for rank {rank}"
            )
        if (shape_b[0], shape_a[1]) != (rows, inputs):
            raise WrongBaseError(
                f"{module} is {rows} x {inputs} in this base, the adapter is made for {shape_b[0]} x {shape_a[1]}"
            )


def _read_matrices(tensors: SourceTensors, pairs: Pairs, options: PeftOptions) -> dict[str, tuple[F32, F32]]:
    """A [rank, inputs] and scaled B [rows, rank] of each module."""
    matrices = {
        module: (tensors.float32(names["A"]), _scaled(tensors.float32(names["B"]), options.scale(module)))
        for module, names in pairs.items()
    }
    if not all(np.isfinite(b).all() for _, b in matrices.values()):
        raise NotFiniteError("lora_B is infinite once it is multiplied by lora_alpha / r")
    return matrices


def _scaled(b: F32, scale: float) -> F32:
    with np.errstate(over="ignore"):  # the caller refuses what is not finite
        return b * np.float32(scale)


def store_matrices(matrices: Mapping[str, tuple[F32, F32]], base: BaseManifest) -> dict[str, LoraMatrices]:
    """A [rank, inputs] and B [rows, rank] of each module as they lie in a bundle for this base.

    Raises `NotFiniteError` for numbers that 8 bits cannot hold.
    """
    bits, stored = lora_bits(base), {}
    for module, (a, b) in matrices.items():
        stored_a, stored_b = (a, b) if bits == 32 else quantise_pair(module, a, b)
        stored[module] = LoraMatrices(stored_a, stored_b, rank=len(a), rows=len(b), inputs=a.shape[1], bits=bits)
    return stored


def _check_effect(matrices: Mapping[str, LoraMatrices]) -> None:
    if all(lora.is_zero for lora in matrices.values()):
        raise AllZeroError("the adapter changes nothing: for every module lora_A or lora_B is zero")


def write_matrices(path: Path, matrices: Mapping[str, LoraMatrices], base: BaseManifest) -> None:
    """Write the file of an adapter for this base."""
    arrays = {f"{module}.lora_A": lora.a for module, lora in matrices.items()}
    arrays |= {f"{module}.lora_B": lora.b for module, lora in matrices.items()}
    ranks = {module: lora.rank for module, lora in matrices.items()}
    write_tensor_file(path, lora_specs(base, ranks), arrays.__getitem__)
