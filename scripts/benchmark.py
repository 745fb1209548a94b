# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Figures of docs/results.md and docs/log.md: `python -m scripts.benchmark correspondence|registration|cost --data DIR`
and `... volumes --image FILE`.

DIR holds `<application>/<set>/datalist.json` (paths relative to its folder). Every figure comes from
configs/inference.yaml as it stands, with any id overridden on the command line, e.g. `--method::centre false`.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import fire
import torch
from matplotlib.figure import Figure
from monai.bundle import ConfigWorkflow
from monai.transforms import KeepLargestConnectedComponent
from monai.transforms.utils import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from .clock import now
from .errors import InputError, one_line_errors
from .geometry import bounding_box, warp
from .images import read_image, read_label
from .inferer import PromptRegInferer
from .metrics import label_dice
from .prompts import GivenPrompt, Prompts
from .region_pairs import soft_dice
from .request import PairRequest
from .segmenter_speed import upstream_encoder
from .segmenters import LiteMedSAM
from .segmenters.protocol import Segmenter
from .transforms import ReadPaird

ROOT = Path(__file__).resolve().parent.parent
SETS = ("prostate/slices2d", "cardiac/acdc2d", "brain/slices2d")


@dataclass(frozen=True)
class Pair:
    """One pair of a datalist, with its label maps."""

    name: str
    request: PairRequest
    fixed_label: Tensor
    moving_label: Tensor


def pairs_of(data: Path, name: str, *, both_directions: bool = False) -> Iterator[Pair]:
    """Pairs of one set that have labels, forward and, if asked, backward."""
    folder = data / name
    for entry in json.loads((folder / "datalist.json").read_text(encoding="utf-8"))["pairs"]:
        if "fixed_label" not in entry or "moving_label" not in entry:
            continue
        for fixed, moving in (("fixed", "moving"), ("moving", "fixed"))[: 1 + both_directions]:
            request = _read(folder / entry[fixed], folder / entry[moving])
            labels = [
                read_label(folder / entry[f"{side}_label"], name=side, shape=tuple(image.shape[1:]))
                for side, image in ((fixed, request.fixed), (moving, request.moving))
            ]
            yield Pair(f"{entry['id']}{'' if fixed == 'fixed' else ' reversed'}", request, labels[0], labels[1])


def _read(fixed: Path, moving: Path) -> PairRequest:
    image = ReadPaird()({"image": str(fixed), "moving": str(moving)})["image"]
    return image.meta["request"]


def configured(overlays: list[str] | None, overrides: dict[str, Any]) -> tuple[PromptRegInferer, Segmenter]:
    """Inferer and network as the configuration says."""
    inferer, network, _ = configured_with("inferer", overlays, overrides)
    return inferer, network


def configured_with(
    name: str, overlays: list[str] | None, overrides: dict[str, Any]
) -> tuple[PromptRegInferer, Segmenter, Any]:
    """Inferer, network and one more entry of the configuration."""
    files = [str(ROOT / "configs" / name) for name in ["inference.yaml", *(overlays or [])]]
    workflow = ConfigWorkflow(config_file=files, workflow_type="infer", logging_file=False, progress=False, **overrides)
    sys.path.insert(1, str(ROOT))
    workflow.initialize()
    parsed = workflow.parser.get_parsed_content
    return workflow.inferer, parsed("network"), parsed(name)


def peak_memory() -> float:
    """Most that this process has held so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def on_the_gpu() -> str:
    """Likewise of a GPU, where one is in use."""
    return f", {torch.cuda.max_memory_allocated() / 2**20:.0f} MB on the GPU" if torch.cuda.is_initialized() else ""


def largest(mask: Tensor) -> Tensor:
    """The largest connected part of a mask `[*S]`."""
    return KeepLargestConnectedComponent()(mask[None].float())[0] > 0


def deepest(mask: Tensor) -> Tensor:
    """The place `[1, D]` of a mask `[*S]` that lies furthest from its outside, in voxels: where one would click. The
    origin where the mask is empty.
    """
    depth = distance_transform_edt(F.pad(mask[None].float(), [1, 1] * mask.ndim))[0]
    return ((depth == depth.amax()).nonzero()[:1].float() - 1).clamp(min=0)


def correspondence(data: str, overlays: list[str] | None = None, prompt: str = "box", **overrides: Any) -> None:
    """Prompt with each label in the moving image; is its counterpart right?

    With its bounding box, which asks for its largest connected part: the target is the largest part of the fixed label.
    Does the centre of the box found lie in it, as the true box's own centre should (a bent structure may lie around
    it), and the deepest place of the region found? Or, `--prompt click`, with a click at the deepest place of that
    part: does its counterpart lie in the fixed label? It is the fitted map that carries a click, so these tests are
    whole registrations by one click.
    """
    if prompt not in ("box", "click"):
        raise InputError(f"prompt: '{prompt}', expected 'box' or 'click'")
    inferer, network = configured(overlays, overrides)
    if prompt == "box":
        inferer.fit = replace(inferer.fit, levels=[])  # the dense fit does not change boxes
    for name in SETS:
        rows, where = [], []
        for pair in pairs_of(Path(data), name, both_directions=True):
            for label in label_dice(pair.fixed_label, pair.fixed_label):
                target, source = (largest(image == label) for image in (pair.fixed_label, pair.moving_label))
                box = bounding_box(source)
                if box is None:
                    continue
                drawn = (box, None) if prompt == "box" else (deepest(source), torch.ones(1))
                given = [GivenPrompt(str(label), *drawn)]
                pairs = inferer.register(replace(pair.request, prompts=given), network).pairs
                fixed_region, moving_region = (r.cpu() > 0.5 for r in (pairs.fixed_regions, pairs.moving_regions))
                centre = pairs.fixed_prompts.coordinates[0].mean(0).cpu()
                dice = float(soft_dice(fixed_region.float(), target[None].float()))
                own = float(soft_dice(moving_region.float(), source[None].float()))
                structure, places = pair.fixed_label == label, {"counterpart": centre}
                if prompt == "box":
                    low, high = target.nonzero().float().aminmax(dim=0)
                    structure, places = target, {"box's centre": centre, "true box's centre": (low + high) / 2}
                    places["region's deepest place"] = deepest(fixed_region[0])[0]
                hits = {what: bool(structure[tuple(place.round().long())]) for what, place in places.items()}
                rows.append((dice, own))
                where.append(hits)
                told = ", ".join(f"{what} {'in' if hit else 'out'}" for what, hit in hits.items())
                print(f"{name} {pair.name:<24} Dice {dice:.3f} (moving side {own:.3f}), {told}", flush=True)
        mean, own = (statistics.mean(column) for column in zip(*rows, strict=True))
        told = ", ".join(f"{what} in {sum(hits[what] for hits in where)}/{len(where)}" for what in where[0])
        print(f"{name}: mean Dice {mean:.3f} (moving side {own:.3f}), {told}\n", flush=True)


def registration(data: str, overlays: list[str] | None = None, sets: list[str] | None = None, **overrides: Any) -> None:
    """Register with automatic prompts; label Dice before and after, folding, cost."""
    inferer, network = configured(overlays, overrides)
    for name in sets or SETS:
        rows = []
        for pair in pairs_of(Path(data), name):
            began = now()
            result = inferer.register(pair.request, network)
            seconds, field = now() - began, result.ddf.cpu()
            scores = []
            for ddf in (torch.zeros_like(field), field):
                moved = warp(pair.moving_label[None].float(), ddf, result.to_moving.cpu(), mode="nearest")[0]
                scores.append(statistics.mean(label_dice(pair.fixed_label, moved.long()).values()))
            decodes = result.counts["decodes"] / max(1, len(result.pairs))
            rows.append((*scores, result.folding_percent, seconds, decodes))
            print(
                f"{name} {pair.name:<16} Dice {scores[0]:.3f} -> {scores[1]:.3f}, "
                f"folding {result.folding_percent:.3f} %, {int(result.pairs.found.sum())}/{len(result.pairs)} pairs, "
                f"{decodes:.1f} decodes a prompt, {seconds:.0f} s",
                flush=True,
            )
        before, after, folding, seconds, decodes = (statistics.mean(column) for column in zip(*rows, strict=True))
        worst = min(row[1] - row[0] for row in rows)
        print(
            f"{name}: mean Dice {before:.3f} -> {after:.3f} (worst change {worst:+.3f}), mean folding {folding:.3f} %, "
            f"{decodes:.1f} decodes a prompt, {seconds:.0f} s a pair\n",
            flush=True,
        )


def cost(data: str, overlays: list[str] | None = None, repeats: int = 5, **overrides: Any) -> None:
    """Where the time goes, against what encoding and decoding alone cost, all in this process.

    Units are medians of `repeats`, half of them taken before and half after the registration, so that a busy machine
    slows both alike.
    """
    inferer, network = configured(overlays, overrides)
    pair = next(pairs_of(Path(data), SETS[0]))
    units: dict[str, list[float]] = {"encode": [], "decode": []}
    embedding = network.embed([pair.request.fixed])[0]  # past the cache; also warms up
    boxes = Prompts(torch.tensor([[[40.0, 50.0], [150.0, 140.0]]]).repeat(8, 1, 1))
    network.decode(embedding, boxes)

    def measure() -> None:
        for _ in range(repeats):
            began = now()
            network.embed([pair.request.fixed])
            encoded = now()
            network.decode(embedding, boxes)
            units["encode"].append(encoded - began)
            units["decode"].append((now() - encoded) / len(boxes))

    measure()
    began = now()
    result = inferer.register(pair.request, network)
    total = now() - began
    measure()
    encode, decode = (statistics.median(values) for values in units.values())
    encodes, decodes = result.counts["encodes"], result.counts["decodes"]
    model = encodes * encode + decodes * decode
    for stage, seconds in result.seconds.items():
        print(f"{stage:<30} {seconds:7.2f} s")
    print(f"{'total':<30} {total:7.2f} s")
    print(f"{encodes} encodes of {encode:.3f} s, {decodes} decodes of {decode:.3f} s: {model:.2f} s")
    print(f"ratio {total / model:.3f}; decodes per prompt and transform {decodes / len(result.pairs):.1f}")
    print(f"peak memory {peak_memory():.0f} MB{on_the_gpu()}, {torch.get_num_threads()} threads")


def volumes(
    image: str,
    slices: tuple[int, ...] = (40, 80, 160),
    size: int = 256,
    output: str = "",
    overlays: list[str] | None = None,
    **overrides: Any,
) -> None:
    """How time and memory grow with the number of slices, beside what encoding costs: here, and by the encoder of the
    model's own package where there is one (see `segmenter_speed`).

    Args:
        image: a volume; it is resampled to `size` x `size` voxels of 1 mm in ever more slices of 1 mm.
        slices: their numbers, from few to many.
        size: voxels along rows and columns.
        output: PNG or SVG that gets a plot of it.
    """
    inferer, network = configured(overlays, overrides)
    costs: list[tuple[float, float]] = []
    raw, info = read_image(image, name="image")
    plain = 0.0
    if isinstance(network, LiteMedSAM) and (theirs := upstream_encoder(network)):
        plain = _seconds(partial(theirs, torch.rand(1, 3, 256, 256, device=network.device)))
    for count in slices:
        volume = F.interpolate(raw[None], (size, size, count), mode="trilinear")[0]
        lies = replace(info, affine=torch.eye(4, dtype=torch.float64), spacing=(1.0, 1.0, 1.0))
        moving = volume.roll((5, -4, 2), dims=(1, 2, 3))
        unit = _seconds(partial(network.embed, [volume[..., count // 2]]))
        network.cache.clear()
        began = now()
        result = inferer.register(PairRequest(volume, moving, lies, lies), network)
        total, encodes = now() - began, result.counts["encodes"]
        peak = peak_memory()  # grows only: from few slices to many
        encoding = result.seconds["encode both images"]
        costs.append((total, peak / 1024))
        print(
            f"{size} x {size} x {count}: {total:.0f} s, of which {encoding:.0f} s for {encodes} slices ({unit:.2f} s "
            f"for one alone), ratio {total / encoding:.2f}, {peak:.0f} MB{on_the_gpu()}"
            + (f"; {total / plain / encodes:.2f} to the package's {plain:.2f} s a slice" if plain else ""),
            flush=True,
        )
    if output:
        figure = Figure(figsize=(7, 3), layout="constrained")
        for axes, values, name in zip(figure.subplots(1, 2), zip(*costs, strict=True), ("s", "GB"), strict=True):
            axes.plot(slices, values, "o-")
            axes.set(xlabel=f"slices of {size} x {size}", ylabel=name, xlim=(0, None), ylim=(0, None))
        figure.savefig(output, dpi=150)


def _seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Median of a few calls, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        began = now()
        call()
        times.append(now() - began)
    return statistics.median(times)


if __name__ == "__main__":
    one_line_errors()
    fire.Fire({"correspondence": correspondence, "registration": registration, "cost": cost, "volumes": volumes})
