# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""One page about one registered pair: what was asked, what was found, how the image moved, and what to doubt.

The page is a single HTML file with its pictures inside. It draws and words a `Registration`; it computes no result of
its own.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from .drawing import GREY, colour_of, percentiles
from .figures import comparison_figures, deformation_figure, prompts_figure
from .planes import planes_of_pair
from .registration import ImageInfo, RegionPairs, Registration
from .scroller import slice_frames, slices_of
from .sections import section_areas, sections_figure

TEMPLATE = Path(__file__).with_suffix(".html.j2")
FEW_PAIRS = 3  # fewer cannot fix even an affine map of a plane
MUCH_FOLDING = 0.1  # percent of voxels


def write_report(registration: Registration, path: str | Path, *, notes: Mapping[str, str] | None = None) -> None:
    """Write the page of a registered pair.

    Args:
        registration: the pair and its result, on any device.
        path: HTML file to write; its folder must exist.
        notes: further remarks to print at the top, by name.
    """
    unit = "px" if registration.fixed_info.kind == "picture" else "mm"
    moving_planes, fixed_planes = planes_of_pair(registration)
    images, agreement = comparison_figures(registration, fixed_planes)
    figures = {
        "prompts": prompts_figure(registration, moving_planes, fixed_planes),
        "images": images,
        "agreement": agreement,
        "deformation": deformation_figure(registration, fixed_planes, unit),
    }
    slices = _describe_slices(registration, fixed_planes[0].index)
    if slices and (sections := sections_figure(section_areas(registration), registration.pairs, slices["step"])):
        figures["sections"] = sections
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        images=_describe_images(registration),
        outcome=_describe_outcome(registration, unit),
        notes=dict(notes or {}),
        figures={name: _embedded(figure) for name, figure in figures.items()},
        is_volume=len(fixed_planes) > 1,
        slices=slices,
        cue_names=list(registration.pairs.cues),
        rows=_describe_pairs(registration.pairs),
        hypothesis=registration.hypothesis,
        evidence=registration.evidence,
        prealigned=registration.prealigned,
        seconds=registration.seconds,
        total_seconds=sum(registration.seconds.values()),
        counts=registration.counts,
        settings=json.dumps(registration.settings, indent=2, default=str, ensure_ascii=False),
    )
    Path(path).write_text(page, encoding="utf-8")


def _describe_images(registration: Registration) -> list[dict[str, str]]:
    """Role, name, size and spacing of the two images."""

    def describe(role: str, info: ImageInfo, shape: tuple[int, ...]) -> dict[str, str]:
        size = " × ".join(str(n) for n in shape) + (" pixels" if info.kind == "picture" else " voxels")
        spacing = " × ".join(f"{s:.3g}" for s in info.spacing) + " mm"
        name = Path(info.path).name or "image in memory"
        return {"role": role, "name": name, "size": size, "spacing": "" if info.kind == "picture" else spacing}

    return [
        describe("Moving", registration.moving_info, tuple(registration.moving.shape[1:])),
        describe("Fixed", registration.fixed_info, tuple(registration.fixed.shape[1:])),
    ]


def _describe_outcome(registration: Registration, unit: str) -> dict[str, Any]:
    """The result in figures, in one sentence, and in warnings."""
    found, asked, folding = int(registration.pairs.found.sum()), len(registration.pairs), registration.folding_percent
    spacing = torch.tensor(registration.fixed_info.spacing, device=registration.ddf.device)
    lengths = torch.tensordot(spacing.square(), registration.ddf.float().square(), dims=1).sqrt()
    median, large = percentiles(lengths, 50, 95)
    element = "pixels" if unit == "px" else "voxels"
    share = "below 0.01 %" if 0 < folding < 0.01 else f"{folding:.2f} %"
    folds = f"folds at {share} of the {element}" if folding else "does not fold anywhere"
    matched = f"{found} of {asked} prompts have a counterpart in the fixed image" if asked else "No prompt was used"
    sentence = (
        f"{matched}. To align the moving image with the fixed image, half of it moved by more than {median:.1f} "
        f"{unit}, and one place in twenty by more than {large:.1f} {unit}; the map {folds}."
    )
    cautions = []
    if found == 0:
        cautions.append(
            "No corresponding region guided this registration. Judge the result by the pictures alone before using it."
        )
    elif found < FEW_PAIRS or 2 * found < asked:
        led_by_regions = (
            "Away from the matched regions the alignment is a guess: look closely at the overlay there, or add prompts."
        )
        led_by_edges = (
            "The alignment follows the edges of one scene and does not rest on them, but where the images do not "
            "overlap it is a guess: look closely at the overlay."
        )
        rests = led_by_regions if registration.hypothesis == "features" else led_by_edges
        cautions.append(f"Only {found} of {asked} prompts found a counterpart. {rests}")
    if folding > MUCH_FOLDING:
        cautions.append(
            f"The map folds at {share} of the {element}, where tissue would pass through itself. Do not "
            "measure volumes or carry outlines across the places marked in yellow."
        )
    tiles = {
        "prompts matched": f"{found} of {asked}",
        "median displacement": f"{median:.1f} {unit}",
        "95th percentile": f"{large:.1f} {unit}",
        f"of {element} fold": share,
    }
    return {"sentence": sentence, "cautions": cautions, "tiles": tiles}


def _describe_slices(registration: Registration, through: tuple[int, ...]) -> dict[str, Any]:
    """Pictures of the fixed volume's slices, the first one to show, and what they are; empty for a 2-D image."""
    planes = slices_of(registration)
    if not planes:
        return {}
    first, frames, distances = planes[0], [], []
    for frame in slice_frames(registration):
        label = f"Slice {frame.slice} · {frame.millimetres:.1f} mm"
        frames.append({"label": label, "picture": _embedded(frame.figure, form="jpeg", dpi=88)})
        distances.append(abs(frame.slice - through[first.across]))
    start, step = distances.index(min(distances)), first.spacing[first.across]
    return {"frames": frames, "start": start, "number": len(planes), "name": first.name, "step": step}


def _describe_pairs(pairs: RegionPairs) -> list[dict[str, Any]]:
    """A table row per pair."""
    kind = {"box": "box", "point": "click"}[pairs.moving_prompts.kind]
    return [
        {
            "id": name,
            "kind": kind,
            "found": found,
            "status": "corresponding" if found else "no correspondence",
            "colour": colour_of(k) if found else GREY,
            "confidence": float(pairs.confidence[k]),
            "cues": [float(values[k]) for values in pairs.cues.values()],
        }
        for k, (name, found) in enumerate(zip(pairs.ids, pairs.found.tolist(), strict=True))
    ]


def _embedded(figure: Figure, *, form: str = "png", dpi: int = 96) -> str:
    """A figure as a base64 PNG, or as a JPEG where there are many."""
    picture = io.BytesIO()
    figure.savefig(picture, format=form, dpi=dpi, pil_kwargs={"quality": 85} if form == "jpeg" else {})
    return base64.b64encode(picture.getvalue()).decode("ascii")
