# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What users may choose in MONAI Label's clients, and the methods and models that their choices amount to.

Every choice comes from a list or a range. Nothing that a client sends reaches the configuration as it is, because MONAI
evaluates strings there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from ..errors import InputError
from ..inferer import PromptRegInferer
from ..prealignment import CHOICES
from ..segmenters.promptable import PromptableSegmenter

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "inference.yaml"
DEFAULT = "LiteMedSAM"
MOST_TRANSFORMS, MOST_PROMPTS = 9, 64


@dataclass(frozen=True)
class Options:
    """One user's choices.

    Attributes:
        objective: "default", or an overlay in configs/objectives.
        transformation: kind of the final fit.
        number_of_prompts: in a registration at least; missing ones are sampled.
        transforms: J of marginalisation, 1 without.
        prealignment: how the images lie before anything is fitted.
        segmenter: the default model, or an entry of configs/weights.yaml whose file lies in models/.
    """

    objective: str = "default"
    transformation: str = "svf"
    number_of_prompts: int = 8
    transforms: int = 1
    prealignment: str = "auto"
    segmenter: str = DEFAULT

    @property
    def preparing(self) -> tuple[str, str]:
        """What a prepared pair depends on; everything else is used after."""
        return self.segmenter, self.prealignment


class Methods:
    """Methods and models by options, each built once.

    Args:
        overrides: ids of the configuration that the server's owner set.
        models: folder with files of weights.
    """

    def __init__(self, overrides: Mapping[str, Any], models: Path = ROOT / "models") -> None:
        self.overrides, self.models = dict(overrides), models
        self.inferer, self.network = lru_cache(32)(self.build_inferer), lru_cache(4)(self.build_network)

    @property
    def choices(self) -> dict[str, list[str] | range]:
        """What each option may be, the default first; of numbers the range."""
        here = [name for name, entry in _registry().items() if (self.models / entry["file"]).is_file()]
        overlays = sorted(path.stem for path in (ROOT / "configs" / "objectives").glob("*.yaml"))
        first = str(self.overrides.get("prealignment", Options.prealignment))
        return {
            "objective": [Options.objective, *overlays],
            "transformation": [Options.transformation, "bspline", "dense", "affine", "rigid"],
            "number_of_prompts": range(1, MOST_PROMPTS + 1),
            "transforms": range(1, MOST_TRANSFORMS + 1),
            "prealignment": [first, *(how for how in CHOICES if how != first)],
            "segmenter": [DEFAULT, *here],
        }

    def shown(self) -> dict[str, Any]:
        """The options as clients show them: lists to choose from, numbers to edit."""
        return {name: getattr(Options, name) if isinstance(c, range) else c for name, c in self.choices.items()}

    def chosen(self, request: Mapping[str, Any]) -> Options:
        """Options of a request; what is missing or empty is the default.

        Raises:
            InputError: anything that is not among the choices.
        """
        found: dict[str, Any] = {}
        for name, choices in self.choices.items():
            value = request.get(name)
            if value in (None, ""):
                found[name] = getattr(Options, name) if isinstance(choices, range) else choices[0]
            elif isinstance(value, bool) or not isinstance(value, type(choices[0])) or value not in choices:
                expected = f"{choices[0]} to {choices[-1]}" if isinstance(choices, range) else f"one of {choices}"
                raise InputError(f"{name}: {str(value)[:40]!r} is not known, expected {expected}")
            else:
                found[name] = value
        return Options(**found)

    def build_inferer(self, options: Options) -> PromptRegInferer:
        """The method that these options amount to."""
        changes = {
            "prealignment": options.prealignment,
            "fit::kind": options.transformation,
            "method::marginalisation::transforms": options.transforms,
        }
        if (options.objective, options.transformation) != (Options.objective, Options.transformation):
            changes["same_scene"] = None  # else it would decide the map, whatever was chosen
        overlays = [] if options.objective == Options.objective else [f"objectives/{options.objective}.yaml"]
        return _workflow(overlays, self.overrides | changes).inferer

    def build_network(self, segmenter: str) -> PromptableSegmenter:
        """The model of this name."""
        overlays, changes = [], {}
        if segmenter != DEFAULT:
            entry = _registry()[segmenter]
            overlays = [f"segmenters/{entry['segmenter']}.yaml"]
            changes = {"checkpoint": str(self.models / entry["file"]), "checkpoint_sha256": entry.get("sha256")}
        workflow = _workflow(overlays, self.overrides | changes)
        return workflow.network_def.to(workflow.device)


@lru_cache
def _registry() -> dict[str, Any]:
    return ConfigParser.load_config_file(str(CONFIG.with_name("weights.yaml")))["registry"]


def _workflow(overlays: list[str], overrides: dict[str, Any]) -> ConfigWorkflow:
    files = [str(CONFIG), *(str(CONFIG.parent / overlay) for overlay in overlays)]
    workflow = ConfigWorkflow(files, workflow_type="infer", logging_file=False, progress=False, **overrides)
    if str(ROOT) not in sys.path:
        sys.path.insert(1, str(ROOT))
    workflow.initialize()
    return workflow
