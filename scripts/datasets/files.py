# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Files of data sets: headers, tables, JSON, landmarks and volumes, written whole or not at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from ..atomic import write_text_atomically
from ..errors import InputError


def grid(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and spacing (array order, mm; 1 for pictures) from the header alone.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        if path.name.endswith((".nii", ".nii.gz")):
            image: Any = nib.load(path)
            header = image.header
            coded = header["sform_code"] or header["qform_code"]
            sizes = nib.affines.voxel_sizes(image.affine) if coded else header["pixdim"][1:4]
            return image.shape, tuple(round(float(s), 6) for s in sizes)
        with Image.open(path) as picture:
            return (picture.height, picture.width), (1.0, 1.0)
    except (OSError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a whole, undamaged image file") from error


def read_rows(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the columns and rows of a CSV file with a header.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}); give the official file") from error
    return list(reader.fieldnames or []), rows


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: it cannot be read or is no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); give the official file") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object; give the official file")
    return content


def write_landmarks(path: Path, points: np.ndarray) -> Path:
    """Write `points` `[N, D]` (array order, voxels, 0-based) with the header that `datalist.read_landmarks` expects."""
    rows = [",".join("ijk"[: points.shape[1]]), *(",".join(f"{v:.3f}" for v in row) for row in points)]
    write_text_atomically(path, "\n".join(rows) + "\n")
    return path
