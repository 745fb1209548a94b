# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What `prompts.json` and `run.json` say, in what JSON knows."""

from __future__ import annotations

import json
import math
import platform
import resource
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .atomic import write_text_atomically
from .prompts import Prompts
from .registration import ImageInfo, RegionPairs, Registration

PACKAGES = ("torch", "monai", "numpy", "scipy", "SimpleITK", "segment-anything")  # whose versions a run records


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
