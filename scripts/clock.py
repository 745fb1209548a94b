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


def now() -> float:
    """Seconds of a monotonic clock, once a GPU that is in use has done what it was asked for."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter()


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
        began = now()
        yield
        self.seconds[stage] = now() - began
        self._bar.update()
