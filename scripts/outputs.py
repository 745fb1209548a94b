# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What a registered pair leaves on disk: one folder, complete or not touched at all."""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from PIL import Image
from torch import Tensor

from .atomic import write_text_atomically
from .errors import InputError
from .fields import write_field
from .images import nifti_image
from .prompts import Prompts
from .readers import JPEG, TIFF, lps_flip
from .registration import ImageInfo, RegionPairs, Registration

PACKAGES = ("torch", "monai", "numpy", "scipy", "SimpleITK", "segment-anything")  # whose versions a run records
Depth = type[np.uint8] | type[np.uint16] | type[np.float32]
# Results whose ending depends on the input, or that are written on request.
VARYING = ("moved", "regions_moving", "regions_fixed", "probabilities_moving", "probabilities_fixed")
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])  # how NIfTI stores colour


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


def check_writable(folder: str | Path, *, name: str = "output_dir") -> None:
    """Make sure, before the work, that results can be written; leaves nothing behind.

    Raises:
        InputError: `folder` is a file, or cannot be made or written to.
    """
    if not folder:
        raise InputError(f"{name}: none given; expected the path of a folder")
    folder = Path(folder)
    try:
        missing = _missing(folder)
        with staging_folder(folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{name}: {folder}: cannot be written ({reason}); give a folder you may write to") from error
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):  # others may need it already
        _remove_folders(missing)


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


def prompts_record(pairs: RegionPairs, moving_info: ImageInfo, fixed_info: ImageInfo) -> list[dict[str, Any]]:
    """What `prompts.json` says, one entry per pair; `region` is its value in the region maps."""
    return [
        {
            "id": pairs.ids[k],
            "region": k + 1,
            "kind": pairs.moving_prompts.kind,
            "moving": _prompt(pairs.moving_prompts, k, moving_info),
            "fixed": _prompt(pairs.fixed_prompts, k, fixed_info) if pairs.found[k] else None,
            "found": pairs.found[k],
            "status": "corresponding" if pairs.found[k] else "no correspondence",
            "confidence": pairs.confidence[k],
            "cues": {cue: values[k] for cue, values in pairs.cues.items()},
        }
        for k in range(len(pairs))
    ]


def run_record(registration: Registration) -> dict[str, Any]:
    """What `run.json` says: everything needed to run the pair again and to know what it cost."""
    # The highest resident memory of the process so far: kilobytes, but bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "fixed_image": registration.fixed_info.path,
        "moving_image": registration.moving_info.path,
        "seed": registration.settings.get("seed"),
        "settings": registration.settings,
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "prealignment": registration.prealigned,
        "hypothesis": registration.hypothesis,
        "evidence": registration.evidence,
        "seconds": registration.seconds,
        "counts": registration.counts,
        "folding_percent": registration.folding_percent,
        "peak_memory_mb": round(peak, 1),
    }


def output_suffix(info: ImageInfo, *, labels: bool, source: Tensor | None = None) -> str:
    """File ending for a map on this image's grid that keeps its values.

    Args:
        info: the image whose grid it is.
        labels: whether it holds integer ids, which JPEG would destroy and BMP may be too small for.
        source: for an image, the one its intensities come from, where that is another.
    """
    if info.kind == "volume" or info.suffix in TIFF:
        return info.suffix
    depth: Depth = np.uint16 if labels else np.uint8 if source is None else _depth(source)
    return ".png" if depth is np.uint16 else ".tif" if depth is np.float32 else info.suffix


def write_image(array: Tensor, info: ImageInfo, path: str | Path, *, source: Tensor | None = None) -> None:
    """Write `[C, *S]` or `[*S]` on the grid of `info`; integers stay integers.

    Pictures are rounded and clipped to 8 bit, or 16 bit grey where a value exceeds 255. With the `source` of the
    intensities given, its depth decides, and values that are no integers are kept as they are in a TIFF.
    """
    values = array.detach().cpu().numpy()
    values = values[0] if values.ndim == len(info.spacing) + 1 and len(values) == 1 else values
    colour = values.ndim == len(info.spacing) + 1
    if not np.issubdtype(values.dtype, np.floating):
        values = values.astype(_integer(values))
    if info.kind == "picture":
        depth: Depth = np.uint8 if colour else _depth(source) if source is not None else _range_depth(values)
        if depth is not np.float32:
            values = np.clip(np.round(values), 0, 255 if depth is np.uint8 else 65535)
        picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(values, 0, -1) if colour else values, dtype=depth))
        options: dict[str, Any] = {"quality": 95} if Path(path).suffix in JPEG else {}
        picture.save(path, **options)
    elif str(path).endswith((".nii", ".nii.gz")):
        if colour:
            bytes_last = np.clip(np.round(np.moveaxis(values, 0, -1)), 0, 255).astype(np.uint8)
            values = np.ascontiguousarray(bytes_last).view(RGB)[..., 0]
        nib.save(nifti_image(values, info.affine), path)
    else:
        lps = lps_flip(len(info.spacing)) @ info.affine.numpy()
        sitk.WriteImage(_to_itk(values if colour else values[None], lps), str(path), useCompression=True)


def _to_itk(array: np.ndarray, matrix: np.ndarray) -> sitk.Image:
    """ITK image of `[C, *S]`, S in ITK's index order.

    Args:
        array: values, C components per voxel.
        matrix: `[D+1, D+1]` from indices to LPS mm.
    """
    dims = array.ndim - 1
    values = array[0].T if len(array) == 1 else array.T  # as numpy sees ITK's memory: first index and component last
    image = sitk.GetImageFromArray(np.ascontiguousarray(values), isVector=len(array) > 1)
    spacing = np.linalg.norm(matrix[:dims, :dims], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((matrix[:dims, :dims] / spacing).flatten().tolist())
    image.SetOrigin(matrix[:dims, dims].tolist())
    return image


def _depth(source: Tensor) -> Depth:
    """Smallest of uint8, uint16 and float32 that holds the values of a stored image."""
    whole = source.amin() >= 0 and source.amax() <= 65535 and bool((source == source.round()).all())
    return _range_depth(source.cpu().numpy()) if whole else np.float32


def _integer(values: np.ndarray) -> type[np.integer]:
    """Smallest of the integer types that all our formats have that holds the values."""
    low, high = values.min(initial=0), values.max(initial=0)
    types: list[type[np.integer]] = [np.uint8, np.uint16, np.int16, np.int32]
    return next((t for t in types if np.iinfo(t).min <= low and high <= np.iinfo(t).max), np.int64)


def _range_depth(values: np.ndarray) -> Depth:
    return np.uint16 if values.max(initial=0) > 255 else np.uint8


def _prompt(prompts: Prompts, k: int, info: ImageInfo) -> dict[str, Any]:
    """Prompt k in voxels and in RAS millimetres, which pictures have not; without the points that only pad."""
    prompt = prompts[[k]].to("cpu")
    used = slice(None) if prompt.labels is None else prompt.labels[0] >= 0
    world = None if info.kind == "picture" else prompt.transformed(info.affine).coordinates[0]
    return {
        "voxel": prompt.coordinates[0][used],
        "world_mm": None if world is None else world[used],
        "labels": None if prompt.labels is None else prompt.labels[0][used],
    }


def write_json(path: Path, record: Any) -> None:
    """Write a record, whole or not at all."""
    text = json.dumps(plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text_atomically(path, text)


def plain(value: Any) -> Any:
    """The same in what JSON knows: tensors as lists, numbers to 6 digits, null for what is not finite."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, whose files move to `folder` in the end; without it, on an error, nothing remains.

    It lies inside `folder`, so that a move is a renaming and no other folder has to be writable.
    """
    missing = _missing(folder)
    staging = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
        yield staging
        files = sorted(staging.iterdir())
        for file in files:
            if (folder / file.name).is_dir():
                raise IsADirectoryError(f"{folder / file.name} is a folder; a result of that name cannot be written")
        for file in files:
            os.replace(file, folder / file.name)
        staging.rmdir()
    except BaseException:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        _remove_folders(missing)
        raise


def _missing(folder: Path) -> list[Path]:
    """Folders that would have to be made for `folder` to exist, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_folders(folders: list[Path]) -> None:
    for path in folders:
        with suppress(OSError):  # it was never made, or somebody else has put something there
            path.rmdir()
