# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Wall time by stage, with a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch
from tqdm import tqdm

STAGES = 6  # of a registration


class Clock:
    """Measures stages one after the other.

    Args:
        progress: show a bar on standard error.

    Attributes:
        seconds: of each stage, in order.
    """

    def __init__(self, progress: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._bar = tqdm(
            total=STAGES, disable=not progress, bar_format="{desc:<28} |{bar:30}| {elapsed}", file=sys.stderr
        )

    def __enter__(self) -> Clock:
        return self

    def __exit__(self, *failure: object) -> None:
        self._bar.set_description("stopped" if any(failure) else "registered")
        self._bar.close()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._bar.set_description(stage)
        began = perf_counter()
        yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # what a GPU was asked for counts where it was asked
        self.seconds[stage] = perf_counter() - began
        self._bar.update()
