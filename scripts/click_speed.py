# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What a click costs: `python -m scripts.click_speed --fixed_image F --moving_image M [--clicks 6]`.

Prints the seconds before the first click by stage, of every click, and their ratio to the seconds inside the model's
decoder: processor seconds of clicks on a CPU, as others may use it too (with `OMP_NUM_THREADS=1`), else seconds.
"""

from __future__ import annotations

import sys
from time import perf_counter, process_time
from typing import Any

import fire
import torch

from .benchmark import configured
from .errors import one_line_errors
from .interactive import Session
from .prompt_sampling import foreground
from .prompts import GivenPrompt
from .transforms import ReadPaird


class Stopwatch:
    """Wraps the decoder's calls and adds up their time."""

    def __init__(self, network: Any) -> None:
        self.seconds = 0.0
        self.clock = process_time if network.device.type == "cpu" else perf_counter
        for name in ("decode", "decode_jacobian"):
            setattr(network, name, self._timed(getattr(network, name)))

    def _timed(self, call: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self.clock()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += self.clock() - began

        return timed


def run(fixed_image: str, moving_image: str, clicks: int = 6, **overrides: object) -> None:
    """Click on seeded places of the moving image and of the fixed one in turn.

    Args:
        fixed_image, moving_image: the pair.
        clicks: how many.
        overrides: any id of configs/inference.yaml.
    """
    one_line_errors()
    inferer, network = configured([], dict(overrides))
    request = ReadPaird()({"image": fixed_image, "moving": moving_image})["image"].meta["request"]  # type: ignore[attr-defined]
    watch = Stopwatch(network)
    began = perf_counter()
    session = Session(inferer, request, network)
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in session.seconds.items() if seconds)
    print(
        f"before the first click {perf_counter() - began:6.2f} s: {stages}; {session.pair.metered.counts}", flush=True
    )
    generator = torch.Generator().manual_seed(0)
    total = of_it = 0.0
    for number in range(clicks):
        side = ("moving", "fixed")[number % 2]
        allowed = foreground(request.moving if side == "moving" else request.fixed).nonzero().float()
        place = allowed[torch.randint(len(allowed), (1,), generator=generator)]
        inside, began = watch.seconds, watch.clock()
        pair = session.counterpart([GivenPrompt(str(number), place, torch.ones(1, dtype=torch.long))], side)
        seconds, inside = watch.clock() - began, watch.seconds - inside
        total, of_it = (total + seconds, of_it + inside) if number else (total, of_it)
        print(f"{side:>6} {seconds:6.2f} s, decoder {inside:6.2f} s, ratio {seconds / inside:4.2f}, "
              f"confidence {pair.confidence[0]:.2f}", flush=True)  # fmt: skip
    if of_it:
        print(f"later clicks together: ratio {total / of_it:.2f}; {session.pair.metered.counts}")


if __name__ == "__main__":
    sys.exit(fire.Fire(run))
