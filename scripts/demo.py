# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The embedded example: `python -m scripts.demo`.

A retinal photograph that scikit-image's wheel carries is the fixed image. The moving image is the same photograph
under a seeded smooth warp and another grey scale, so the true correspondence of every pixel is known. It is
SEMI-SYNTHETIC: one image plays both parts, which is easier than two visits of a patient.
"""

from __future__ import annotations

import sys
from pathlib import Path

import fire
import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from PIL import Image
from skimage import data
from torch import Tensor

from .errors import one_line_errors
from .free_form import StationaryVelocity
from .geometry import resize_by_area, warp
from .grid import Grid
from .registration import Registration

ROOT = Path(__file__).resolve().parent.parent


def example(size: int = 384, displacement: float = 0.04, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The pair and its truth.

    Args:
        size: side of the square images, pixels.
        displacement: largest velocity of the warp relative to the side (about its largest displacement).
        seed: of the warp.

    Returns:
        fixed `[1, size, size]` and moving `[1, size, size]`, values 0 to 255, and the true pull-back field
        `[2, size, size]` in pixels with `moving(p + field(p)) = fixed(p)` up to grey scale.
    """
    photograph = torch.from_numpy(data.retina()[..., 1].astype(np.float32))[None]  # green: the channel of the vessels
    fixed = resize_by_area(photograph, (size, size))
    grid = Grid((size, size), (1.0, 1.0))
    velocity = StationaryVelocity(grid, controls=4)
    with torch.no_grad():
        velocity.coefficients.copy_(
            torch.randn(velocity.coefficients.shape, generator=torch.Generator().manual_seed(seed))
        )
        scale = displacement * size / velocity.span(grid).norm(dim=0).max()
        velocity.coefficients.mul_(scale)
        truth, inverse = velocity(grid), velocity.inverse(grid)
    moving = warp(fixed, inverse, padding="border")
    moving = 255 * (moving / 255) ** 0.7 * 0.9  # brighter shadows, less contrast
    return fixed, moving, truth


def target_error(registration: Registration, truth: Tensor) -> tuple[float, float]:
    """Mean distance in pixels between found and true counterparts inside the eye, before and after registration."""
    inside = (registration.fixed[0] > 0.1 * registration.fixed.max()).cpu()
    before = truth.norm(dim=0)[inside].mean().item()
    after = (registration.ddf.cpu() - truth).norm(dim=0)[inside].mean().item()
    return before, after


def run(output_dir: str = "demo", **overrides: object) -> None:
    """Make the pair, register it through the bundle, print the numbers.

    Args:
        output_dir: folder for the pair and its results.
        overrides: any id of configs/inference.yaml.
    """
    one_line_errors()
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    fixed, moving, truth = example()
    for name, image in (("fixed", fixed), ("moving", moving)):
        Image.fromarray(image[0].round().clamp(0, 255).byte().numpy()).save(folder / f"{name}.png")
    print("Example: a retinal photograph (scikit-image) and itself under a smooth random warp and another grey scale.")
    print("It is semi-synthetic: the truth is known, and the task is easier than two real visits.\n")
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "configs" / "inference.yaml"),
        workflow_type="infer",
        fixed_image=str(folder / "fixed.png"),
        moving_image=str(folder / "moving.png"),
        output_dir=str(folder / "result"),
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    prediction = workflow.evaluator.state.output["pred"]
    if not isinstance(prediction, MetaTensor):
        raise TypeError(f"the inferer returned {type(prediction).__name__} instead of MetaTensor")
    registration: Registration = prediction.meta["registration"]
    before, after = target_error(registration, truth)
    rows = [("true error before", f"{before:.2f} px"), ("true error after", f"{after:.2f} px")]
    rows += [("folding", f"{registration.folding_percent:.3f} %")]
    rows += [(stage, f"{seconds:.1f} s") for stage, seconds in registration.seconds.items()]
    rows += [("all stages", f"{sum(registration.seconds.values()):.1f} s")]
    print()
    for name, value in rows:
        print(f"  {name:<30} {value:>10}")
    print(f"\nOpen {(folder / 'result' / 'report.html').resolve()}")


if __name__ == "__main__":
    sys.exit(fire.Fire(run))
