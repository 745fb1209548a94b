# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What a registered pair leaves on disk: one folder, complete or not touched at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .fields import write_field
from .image_files import output_suffix, write_image
from .records import prompts_record, run_record, write_json
from .registration import Registration
from .staging import staging_folder

# Results whose ending depends on the input, or that are written on request.
VARYING = ("moved", "regions_moving", "regions_fixed", "probabilities_moving", "probabilities_fixed")


def write_outputs(
    registration: Registration,
    folder: str | Path,
    *,
    probabilities: bool = False,
    report: Callable[[Registration, Path], None] | None = None,
) -> None:
    """Write a pair's results into `folder`; when anything fails the folder is left as it was.

    Args:
        registration: what to write.
        folder: made if missing; results of an earlier run are replaced, other files stay.
        probabilities: also write the regions' probabilities, `[K, *S]` float16 under "probabilities" in an .npz.
        report: writes the page: called with the registration and the path of "report.html".
    """
    moving_info, fixed_info, pairs = registration.moving_info, registration.fixed_info, registration.pairs
    with staging_folder(Path(folder)) as staging:
        suffix = output_suffix(fixed_info, labels=False, source=registration.moving)
        write_image(registration.moved, fixed_info, staging / f"moved{suffix}", source=registration.moving)
        write_field(staging / "ddf.nii.gz", registration.ddf, registration.to_moving, fixed_info, moving_info)
        # Every given region is shown; its counterpart only where there is one.
        sides = {
            "moving": (pairs.moving_regions, torch.ones_like(pairs.found), moving_info),
            "fixed": (pairs.fixed_regions, pairs.found, fixed_info),
        }
        for side, (regions, shown, info) in sides.items():
            labels = region_map(regions, shown)
            write_image(labels, info, staging / f"regions_{side}{output_suffix(info, labels=True)}")
            if probabilities:
                kept = regions * shown.to(regions).reshape(-1, *[1] * (regions.ndim - 1))
                values = kept.detach().cpu().numpy().astype(np.float16)
                np.savez_compressed(staging / f"probabilities_{side}.npz", probabilities=values)
        write_json(staging / "prompts.json", prompts_record(pairs, moving_info, fixed_info))
        write_json(staging / "run.json", run_record(registration))
        if report is not None:
            report(registration, staging / "report.html")
        written = {file.name for file in staging.iterdir()}
    # What an earlier run left under another ending, or without being asked for now, would be taken for this run's.
    for file in Path(folder).iterdir():
        if file.is_file() and file.name.split(".")[0] in VARYING and file.name not in written:
            file.unlink()


def region_map(regions: Tensor, shown: Tensor) -> Tensor:
    """Integer map `[*S]` of regions `[K, *S]`: k + 1 where region k is the most probable and above 1/2, else 0.

    Args:
        regions: probabilities.
        shown: `[K]` bool; the others are left out.
    """
    shown = shown.to(regions.device)
    if not shown.any():
        return torch.zeros(regions.shape[1:], dtype=torch.int64)
    probability, index = regions[shown].max(dim=0)
    ids = shown.nonzero()[:, 0] + 1
    return torch.where(probability > 0.5, ids[index], 0)
