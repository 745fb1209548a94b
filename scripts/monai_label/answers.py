# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What MONAI Label's clients are told: counterparts as they count voxels, regions as files that they read."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..fields import write_field
from ..image_files import output_suffix, write_image
from ..outputs import region_map
from ..readers import lps_flip
from ..records import prompts_record
from ..registration import ImageInfo, RegionPairs, Registration
from ..request import PairRequest

ENDINGS = (".nrrd", ".nii.gz", ".nii", ".mha", ".png")  # of region files, the default first


def counterparts(pairs: RegionPairs, request: PairRequest, side: str) -> list[dict[str, Any]]:
    """Counterparts on one side with their confidence; points as the clients count them, None if there is none."""
    info, told = _info(request, side), []
    for record in prompts_record(pairs, request.moving_info, request.fixed_info):
        points = record[side]["voxel"].tolist() if record["found"] else None
        if points is not None and info.kind == "picture":
            points = [point[::-1] for point in points]  # column first
        told.append({key: record[key] for key in ("id", "found", "status", "confidence")} | {"points": points})
    return told


def regions_file(pairs: RegionPairs | None, request: PairRequest, side: str, given: str, ending: str) -> Path:
    """Regions of pairs on one side, k for pair k, as a temporary file.

    Args:
        pairs: None for an empty map.
        request: the pair of images; side: whose grid; given: the side that was clicked, where every region is shown.
        ending: one of `ENDINGS`.
    """
    info, image = _info(request, side), request.moving if side == "moving" else request.fixed
    if pairs is None:
        return write_labels(torch.zeros(image.shape[1:], dtype=torch.int64), info, ending)
    regions = pairs.moving_regions if side == "moving" else pairs.fixed_regions
    shown = torch.ones_like(pairs.found) if side == given else pairs.found
    return write_labels(region_map(regions, shown), info, ending)


def write_labels(labels: Tensor, info: ImageInfo, ending: str) -> Path:
    """Labels `[*S]` as a temporary file; a picture's as ITK places its pixels, when the file is that of a volume."""
    if info.kind == "volume" and ending == ".png":
        ending = ".nrrd"
    if info.kind == "picture" and ending != ".png":
        affine = torch.from_numpy(lps_flip(2))
        labels, info = labels.T.contiguous(), ImageInfo(info.path, "volume", ending, affine, (1.0, 1.0))
    with tempfile.NamedTemporaryFile(prefix="promptreg-", suffix=ending, delete=False) as file:
        path = Path(file.name)  # the server removes it once it is sent
    try:
        write_image(labels, info, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def write_registration(registration: Registration, folder: Path) -> dict[str, Path]:
    """The moved image and the field as files of a folder, by what they are."""
    fixed = registration.fixed_info
    moved = folder / f"moved{output_suffix(fixed, labels=False, source=registration.moving)}"
    write_image(registration.moved, fixed, moved, source=registration.moving)
    write_field(folder / "field.nii.gz", registration.ddf, registration.to_moving, fixed, registration.moving_info)
    return {"moved": moved, "field": folder / "field.nii.gz"}


def _info(request: PairRequest, side: str) -> ImageInfo:
    return request.moving_info if side == "moving" else request.fixed_info
