# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What MONAI's engine does with one item of an evaluation: read the pair, register it by a method, score and save it.

A pair that fails, wherever it does, becomes a row with the reason; the others go on.
"""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Transform
from torch import Tensor

from .datalist import PairEntry
from .errors import as_bool, reason
from .evaluation import Evaluation
from .fields import write_field
from .geometry import displace_points, identity_points, sample, transform_points, warp
from .image_files import output_suffix, write_image
from .methods.protocol import Mapped
from .outputs import write_outputs
from .overview import write_overview
from .records import write_json
from .report import write_report
from .request import PairRequest
from .scores import Truth, carried_label, read_truth, scores
from .staging import staging_folder

logger = logging.getLogger(__name__)


class ReadItem(Transform):
    """Read the images and truth of an item; what goes wrong is kept as `meta["error"]`.

    Args:
        read: transform that makes the fixed image, which carries its request, from the paths.
    """

    def __init__(self, read: Callable[[Mapping[Hashable, Any]], Mapping[Hashable, Any]]) -> None:
        self.read = read

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        try:
            image: MetaTensor = self.read(data)["image"]
            image.meta["truth"] = read_truth(data["entry"], image.meta["request"])
        except Exception as error:
            image = MetaTensor(torch.zeros(1, 1, 1), meta={"error": reason(error)})
        image.meta["item"] = {key: data[key] for key in ("entry", "method", "inputs")}
        return {"image": image}


class MethodInferer(Inferer):
    """Registers the pair of an item by the method it names.

    Args:
        evaluation: which methods there are.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        super().__init__()
        self.methods = evaluation.methods

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the map `[1, D, *S]` from fixed to moving voxels; `meta` has the rest."""
        assert isinstance(inputs, MetaTensor)
        meta = dict(inputs.meta)
        if "error" in meta:
            return MetaTensor(torch.zeros(1, 1), meta=meta)
        request, method = meta["request"].on(inputs.device), self.methods[meta["item"]["method"]]
        reset_peak_memory()
        began = perf_counter()
        try:
            mapped = method(request)
        except Exception as error:
            logger.debug("%s failed", meta["item"]["method"], exc_info=True)
            return MetaTensor(torch.zeros(1, 1), meta={**meta, "error": reason(error)})
        meta |= {"mapped": mapped, "seconds": perf_counter() - began, "peak_mb": peak_memory_mb()}
        return MetaTensor(mapped.points[None], meta=meta)


class SaveItem:
    """Handler that scores a registration and writes its folder, `metrics.json` last.

    Args:
        evaluation: where the folder is.
        fields: write moved image and field of every method, not of PromptReg alone.
        report: write PromptReg's page for each pair.
    """

    def __init__(self, evaluation: Evaluation, *, fields: bool = False, report: bool = True) -> None:
        self.evaluation = evaluation
        self.fields, self.report = as_bool(fields, "save_fields"), as_bool(report, "report")

    def attach(self, engine: Engine) -> None:
        """Register with an engine."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        meta: dict[str, Any] = engine.state.output["pred"].meta  # type: ignore[call-overload,index]
        item = meta["item"]
        entry: PairEntry = item["entry"]
        folder = self.evaluation.folder(item["method"], entry)
        row = {"id": entry.id, "set": entry.set, "method": item["method"], "unit": entry.unit, "inputs": item["inputs"]}
        if "error" not in meta:
            try:
                row |= self._save(meta["mapped"], meta["request"], meta["truth"], folder)
                row |= {"seconds": meta["seconds"], "peak_mb": meta["peak_mb"], "error": None}
            except Exception as error:
                logger.debug("%s cannot be scored", item["method"], exc_info=True)
                meta["error"] = reason(error)
        if "error" in meta:
            row["error"] = meta["error"]
            logger.warning("%s failed on %s %s: %s", item["method"], entry.set, entry.id, meta["error"])
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "metrics.json", row)

    def _save(self, mapped: Mapped, request: PairRequest, truth: Truth, folder: Path) -> dict[str, Any]:
        to_moving = request.to_moving("world").cpu()
        identity = identity_points(request.fixed.shape[1:])
        ddf = transform_points(torch.linalg.inv(to_moving.double()), mapped.points.cpu().double()).float() - identity
        if not torch.isfinite(ddf).all():
            raise RuntimeError("the field has values that are not finite")
        moved = warp(request.moving.cpu(), ddf, to_moving)
        unmoved = warp(request.moving.cpu(), torch.zeros_like(ddf), to_moving)
        with staging_folder(folder) as staging:
            if mapped.registration is not None:
                write_outputs(mapped.registration, staging, report=write_report if self.report else None)
            elif self.fields:
                suffix = output_suffix(request.fixed_info, labels=False, source=request.moving)
                write_image(moved, request.fixed_info, staging / f"moved{suffix}", source=request.moving)
                write_field(staging / "ddf.nii.gz", ddf, to_moving, request.fixed_info, request.moving_info)
            write_overview(
                staging / "overview.png",
                request.fixed.cpu(),
                unmoved,
                moved,
                fixed_label=truth.fixed_label,
                moving_label=carried_label(truth, torch.zeros_like(ddf), to_moving),
                moved_label=carried_label(truth, ddf, to_moving),
                landmarks=_landmark_errors(truth, ddf, to_moving),
                spacing=truth.spacing,
                affine=None if request.fixed_info.kind == "picture" else request.fixed_info.affine,
            )
        before, after = (scores(truth, field, to_moving) for field in (torch.zeros_like(ddf), ddf))
        row = {column: value for key in after for column, value in ((key, after[key]), (f"{key}_before", before[key]))}
        row.pop("fold_pct_before")
        return {**row, "agreement": agreement(mapped, request.moving.cpu())}


def _landmark_errors(truth: Truth, ddf: Tensor, to_moving: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Fixed landmarks `[D, N]` and the vectors from where they are carried to where they belong, before and after."""
    if truth.fixed_points is None or truth.moving_points is None:
        return None
    goal = transform_points(torch.linalg.inv(to_moving), truth.moving_points)
    return truth.fixed_points, goal - truth.fixed_points, goal - displace_points(truth.fixed_points, ddf)


def agreement(mapped: Mapped, moving: Tensor) -> float | None:
    """Mean absolute difference between a tool's own warped image and ours, relative to the range of the moving image.

    Taken where the map stays inside the moving image, away from its border, since tools differ in how they fill the
    rest; None where the tool gives no image.
    """
    if mapped.warped is None:
        return None
    grey, points = moving.mean(0, keepdim=True), mapped.points.cpu()
    sizes = torch.tensor(moving.shape[1:]).reshape(-1, *[1] * (points.ndim - 1))
    inside = ((points >= 1) & (points <= sizes - 2)).all(dim=0)
    difference = (sample(grey, points)[0] - mapped.warped.cpu()).abs()[inside]
    return (difference.mean() / (grey.amax() - grey.amin())).item() if len(difference) else None


def reset_peak_memory() -> None:
    """Let the kernel count the process's peak memory anew, where it can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Highest resident memory of this process since the last reset, of its whole life where that cannot be told.

    Tools that run as programs of their own are not counted.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
