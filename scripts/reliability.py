# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Is the confidence honest? `python -m scripts.reliability --data DIR --output FILE.png`.

Each label's bounding box in the moving image is the prompt, three times: in the pair's fixed image, in the same with
the structure cropped away, and in an image of another application. The first answer is right where its region overlaps
the label (Dice of at least 0.5); of the other two none can be. Plotted is how often answers of a confidence are right.
DIR holds `<application>/<set>/datalist.json`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import fire
from matplotlib.figure import Figure
from torch import Tensor

from .benchmark import SETS, Pair, configured, largest, pairs_of
from .geometry import bounding_box
from .metrics import label_dice
from .prompts import GivenPrompt
from .region_pairs import confidence, soft_dice
from .request import PairRequest

RIGHT = 0.5  # Dice from which on a region is the structure


@dataclass(frozen=True)
class Answer:
    """One prompt's answer.

    Attributes:
        kind: "present", "cropped away" or "another application".
        confidence: of the pair before it is set to 0 for those called "no correspondence".
        found: whether it was called a correspondence.
        right: whether it is one.
    """

    kind: str
    confidence: float
    found: bool
    right: bool


def without(image: Tensor, box: Tensor) -> Tensor:
    """The largest part of an image `[C, *S]`, cut along one axis, that shows nothing of a box `[2, D]`."""
    low, high = box[0].floor().long() - 2, box[1].ceil().long() + 3
    parts = [
        image.narrow(axis + 1, *cut)
        for axis, size in enumerate(image.shape[1:])
        for cut in ((0, max(0, int(low[axis]))), (min(size, int(high[axis])), max(0, size - int(high[axis]))))
    ]
    return max(parts, key=Tensor.numel)


def questions(data: Path) -> Iterator[tuple[str, PairRequest, Tensor | None]]:
    """Kind, request with one prompt, and the structure `[*S]` in the fixed image, or None where it is absent."""
    sets = {name: list(pairs_of(data, name, both_directions=True)) for name in SETS}
    for name, other in zip(SETS, (*SETS[1:], SETS[0]), strict=True):
        for number, pair in enumerate(sets[name]):
            for label in label_dice(pair.fixed_label, pair.fixed_label):
                target, source = (largest(image == label) for image in (pair.fixed_label, pair.moving_label))
                prompt, there = bounding_box(source), bounding_box(target)
                if prompt is None or there is None:
                    continue
                request = replace(pair.request, prompts=[GivenPrompt(str(label), prompt, None)])
                stranger: Pair = sets[other][number % len(sets[other])]
                yield "present", request, target
                yield "cropped away", replace(request, fixed=without(request.fixed, there)), None
                yield (
                    "another application",
                    replace(request, fixed=stranger.request.fixed, fixed_info=stranger.request.fixed_info),
                    None,
                )


def plot(
    answers: list[Answer], path: Path, edges: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)
) -> None:
    """Share of right answers by confidence, with the number of answers in each bin."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", label="perfectly calibrated")
    for low, high in pairwise(edges):
        inside = [a for a in answers if low <= a.confidence < high or (high == edges[-1] and a.confidence == high)]
        if inside:
            at, share = statistics.mean(a.confidence for a in inside), statistics.mean(a.right for a in inside)
            axes.scatter([at], [share], s=20 + 6 * len(inside), color="C0")
            axes.annotate(f"{len(inside)}", (at, share), textcoords="offset points", xytext=(9, -3))
    axes.set(xlabel="confidence", ylabel="share of right answers", xlim=(0, 1), ylim=(-0.03, 1.05))
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=150)


def main(data: str, output: str, overlays: list[str] | None = None, every: int = 1, **overrides: Any) -> None:
    """Ask all questions, print every answer with its cues, and plot the confidence's reliability.

    Args:
        data: folder of the evaluation pairs.
        output: the plot, PNG or SVG.
        overlays: further files of configs/.
        every: ask only every so many structures, for a quick look.
    """
    inferer, network = configured(overlays, overrides)
    inferer.fit = replace(inferer.fit, levels=[])  # the dense fit changes no answer
    answers: list[Answer] = []
    for number, (kind, request, target) in enumerate(questions(Path(data))):
        if number // 3 % every:
            continue
        pairs = inferer.register(request, network).pairs
        own = float(confidence(pairs.cues)[0])
        right = (
            target is not None and float(soft_dice((pairs.fixed_regions.cpu() > 0.5).float(), target[None])) >= RIGHT
        )
        answers.append(Answer(kind, own, bool(pairs.found[0]), right))
        cues = ", ".join(f"{name} {float(cue[0]):.2f}" for name, cue in pairs.cues.items())
        print(f"{kind:<20} confidence {own:.2f} found {answers[-1].found!s:<5} right {right!s:<5} ({cues})", flush=True)
    for kind in ("present", "cropped away", "another application"):
        of = [a for a in answers if a.kind == kind]
        said, well = sum(a.found for a in of), sum(a.found and a.right for a in of)
        print(f"{kind}: {len(of)} asked, {said} called corresponding, of which {well} right")
    plot(answers, Path(output))


if __name__ == "__main__":
    fire.Fire(main)
