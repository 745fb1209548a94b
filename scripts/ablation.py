# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What each ingredient of the dense fit is worth: `python -m scripts.ablation --data DIR`.

The variants of an experiment (configs/experiments/ablation.yaml) that differ in the fit alone are fitted to the same
prior and the same region pairs, worked out once a pair; the evaluation of `configs/evaluate.yaml` would repeat them for
each. DIR holds `<application>/<set>/datalist.json`.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import fire
import torch

from .benchmark import configured_with
from .clock import Clock
from .correspond import correspond, pair_up
from .datalist import read_datalists
from .geometry import folding_percent
from .inferer import PromptRegInferer, understood
from .prepared import PreparedPair
from .prompt_sampling import sample_prompts
from .registration import RegionPairs
from .request import PairRequest
from .scores import read_truth, scores
from .segmenters.protocol import Segmenter
from .transforms import ReadPaird

SETS = ("prostate/slices2d", "cardiac/acdc2d", "brain/slices2d", "brain/oasis2d", "abdomen/ct_slices2d")


@torch.no_grad()
def up_to_the_fit(
    inferer: PromptRegInferer, network: Segmenter, request: PairRequest
) -> tuple[PreparedPair, RegionPairs]:
    """Everything before the dense fit, with automatic prompts."""
    generator = torch.Generator().manual_seed(inferer.seed)
    with Clock(False) as clock:
        pair = inferer.prepare(request, network, clock)
    request = pair.request  # on the model's device, in working voxels
    segmenter, moving, method = pair.segmenter, pair.moving, inferer.method
    given = sample_prompts(segmenter, moving, request.moving, inferer.sampling, generator, request.moving_label)
    prompts = understood(segmenter, moving, given, inferer.sampling)
    found = correspond(segmenter, request.moving, moving, pair.fixed, prompts, pair.prior, method, generator)
    return pair, pair_up(found, prompts, given, pair.to_moving, pair.fixed.spacing, method.trust)


def main(data: str, sets: list[str] | None = None, experiment: str = "ablation", **overrides: Any) -> None:
    """Print the score of every variant on every pair, and their means (Dice, or landmark error in pixels).

    Args:
        data: folder of the evaluation pairs.
        sets: of them, e.g. `"['prostate/slices2d']"`.
        experiment: name of the file in configs/experiments that holds the variants.
    """
    inferer, network, variants = configured_with("method_defs", [f"experiments/{experiment}.yaml"], overrides)
    table: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name in sets or SETS:
        for entry in read_datalists(str(Path(data) / name / "datalist.json")):
            image = ReadPaird()({"image": str(entry.files["fixed"]), "moving": str(entry.files["moving"])})["image"]
            request: PairRequest = image.meta["request"]
            truth = read_truth(entry, request)
            pair, pairs = up_to_the_fit(inferer, network, request)
            row = []
            for variant, method in variants.items():
                seen = pair if method.inferer.same_scene else replace(pair, edges=None)
                fitted = pair.working.map(method.inferer.fitted(seen, pairs))
                found = scores(truth, fitted.ddf.cpu(), fitted.to_moving.cpu())
                score = next(s for s in (found.get("dice_mean"), found.get("tre_mean")) if s is not None)
                table[name][variant].append(score)
                folded = folding_percent(fitted.ddf)
                row.append(f"{variant} {score:.3f}" + (f" (folds {folded:.2f} %)" if folded else ""))
            print(f"{name} {entry.id}: {', '.join(row)}", flush=True)
        means = {variant: statistics.mean(values) for variant, values in table[name].items()}
        print(f"{name}, mean: {', '.join(f'{variant} {mean:.3f}' for variant, mean in means.items())}\n", flush=True)


if __name__ == "__main__":
    fire.Fire(main)
