# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What must hold before a run starts, beside the input itself (which `transforms.ReadPaird` checks)."""

from __future__ import annotations

from pathlib import Path

import torch

from .errors import InputError
from .staging import check_writable


def check_device(device: str | torch.device) -> torch.device:
    """The device by name.

    Raises:
        InputError: unknown name, or a GPU that this machine does not have.
    """
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device: unknown '{device}', expected e.g. 'cpu' or 'cuda:0'") from error
    try:
        if chosen.type != "cuda":
            torch.empty(0, device=chosen).cpu()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise InputError(f"device: '{device}' cannot be used here; use 'cpu'") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device: '{device}' was asked for but {torch.cuda.device_count()} CUDA GPUs are visible; use 'cpu'"
        )
    return chosen


def check_run(device: str | torch.device, output_dir: str | Path) -> None:
    """Raise `InputError` unless the device exists and the output folder can be written; make it the current device."""
    chosen = check_device(device)
    check_writable(output_dir)
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)  # so that nothing is kept or waited for on another one
