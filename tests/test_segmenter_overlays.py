# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Every segmenter registers a pair through its overlay, as MONAI runs it: small networks with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from PIL import Image
from random_weights import CROP, SLICES, SMALL, SMALL_3D, SMALL_HIERA, bare, names_of_sam2, random_weights, saved
from skimage import data

import scripts.segmenters
from scripts.errors import InputError, reason
from scripts.prompts import Prompts
from scripts.segmenters import SAM2
from scripts.segmenters.vit import ViTConfig

ROOT = Path(__file__).resolve().parents[1]
OVERLAYS = sorted(path.stem for path in (ROOT / "configs" / "segmenters").glob("*.yaml"))
FAST: dict[str, Any] = {
    "device": "cpu",
    "progress": False,
    "same_scene": None,
    "prior_fit::levels": [{"size": 16, "controls": 0, "steps": 4}],
    "fit::levels": [{"size": 16, "controls": 4, "steps": 2}],
}
VOLUMETRIC: dict[str, dict[str, Any]] = {"sam_med3d": {}, "medical_sam_adapter": {"slices": SLICES, "crop": CROP}}
PLANAR = [overlay for overlay in OVERLAYS if overlay not in VOLUMETRIC]


def workflow(overlay: str, **overrides: Any) -> ConfigWorkflow:
    files = [str(ROOT / "configs" / "inference.yaml"), str(ROOT / "configs" / "segmenters" / f"{overlay}.yaml")]
    made = ConfigWorkflow(config_file=files, workflow_type="infer", logging_file=False, **FAST, **overrides)
    made.initialize()
    return made


def adapter_of(overlay: str) -> Any:
    text = (ROOT / "configs" / "segmenters" / f"{overlay}.yaml").read_text(encoding="utf-8")
    return getattr(scripts.segmenters, yaml.safe_load(text)["network_def"]["_target_"].split(".")[-1])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pair")
    corners = {"fixed_image": (300, 300), "moving_image": (304, 296)}
    for name, (row, column) in corners.items():
        Image.fromarray(data.retina()[row : row + 96, column : column + 72].astype(np.uint8)).save(
            folder / f"{name}.png"
        )
    return {name: str(folder / f"{name}.png") for name in corners}


def register(
    overlay: str, sizes: ViTConfig | None, pair: dict[str, str], prompts: list[Any] | None, folder: Path, moved: str
) -> Any:
    """Register as MONAI does, `sizes` None: at full size; returns the network."""
    if issubclass(adapter_of(overlay), SAM2):
        pytest.importorskip("transformers", reason="SAM 2's encoder comes from transformers: requirements-sam2.txt")
        sizes = sizes and SMALL_HIERA
    more = VOLUMETRIC.get(overlay, {})
    config = sizes or adapter_of(overlay).variants[overlay.removeprefix("sam2_")]
    state = bare(adapter_of(overlay), config, **more).state_dict()
    if issubclass(adapter_of(overlay), SAM2):
        state = {names_of_sam2(name): value for name, value in state.items()}
    file = saved(random_weights(state), folder / "w.pth")
    options_of = {f"network_def::{key}": value for key, value in more.items()}
    if sizes is not None:
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(sizes).items()}
        options_of["network_def::variant"] = {"_target_": f"{type(sizes).__module__}.{type(sizes).__name__}", **lists}
    options = {"checkpoint": str(file), "prompts": prompts, "output_dir": str(folder / "out"), **pair}
    made = workflow(overlay, **options_of, **options)
    made.run()
    written = {path.name for path in (folder / "out").iterdir()}
    assert {moved, "ddf.nii.gz", "prompts.json", "run.json", "report.html"} <= written
    return made.network_def


@pytest.mark.parametrize("overlay", PLANAR)
@pytest.mark.parametrize("prompts", [[[40, 30]], [[[20, 20], [60, 50]]]], ids=["click", "box"])
def test_registers_a_pair(overlay: str, prompts: list[Any], pair: dict[str, str], tmp_path: Path) -> None:
    network = register(overlay, SMALL, pair, prompts, tmp_path, "moved.png")
    assert f'"name": "{network.spec.name}"' in (tmp_path / "out" / "run.json").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["sam2_small", "sam2_base_plus", "sam2_large"])
def test_registers_a_pair_at_full_size(overlay: str, pair: dict[str, str], tmp_path: Path) -> None:
    network = register(overlay, None, pair, [[40, 30]], tmp_path, "moved.png")
    assert network.spec.name == f"SAM 2.1 {overlay.removeprefix('sam2_')}"


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("volumes")
    affine = np.diag([-2.0, 2.0, 4.0, 1.0])
    noise = torch.randn(1, 1, 10, 10, 6, generator=torch.Generator().manual_seed(2))
    whole = 500 + 200 * torch.nn.functional.interpolate(noise, (44, 44, 14), mode="trilinear")[0, 0].numpy()
    for name, start in {"fixed_image": 0, "moving_image": 4}.items():
        nib.save(nib.Nifti1Image(whole[start : start + 40, :40], affine), folder / f"{name}.nii.gz")
    return {name: str(folder / f"{name}.nii.gz") for name in ("fixed_image", "moving_image")}


@pytest.mark.parametrize("prompts", [None, [[20, 20, 6]], [[[10, 10, 3], [30, 30, 9]]]], ids=["none", "click", "box"])
@pytest.mark.parametrize("overlay", VOLUMETRIC)
def test_registers_volumes(overlay: str, prompts: list[Any] | None, volumes: dict[str, str], tmp_path: Path) -> None:
    sizes = SMALL_3D if overlay == "sam_med3d" else SMALL
    network = register(overlay, sizes, volumes, prompts, tmp_path, "moved.nii.gz")
    assert network.spec.dims == 3


@pytest.mark.parametrize("overlay", ["sam_med2d", "sam_hq_vit_b", "med_sam2"])
def test_a_planar_model_registers_volumes(overlay: str, volumes: dict[str, str], tmp_path: Path) -> None:
    register(overlay, SMALL, volumes, [[[10, 10, 3], [30, 30, 9]]], tmp_path, "moved.nii.gz")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_file_of_weights_is_asked_for(overlay: str) -> None:
    with pytest.raises(RuntimeError, match="Failed to instantiate") as caught:
        _ = workflow(overlay).network_def
    assert "needs a file of weights, none is given; fetch one with `python -m" in reason(caught.value)


def test_a_type_of_prompt_that_a_model_cannot_take() -> None:
    network = scripts.segmenters.LiteMedSAM()
    box = torch.tensor([[[10.0, 10.0], [40.0, 40.0]]])
    embedding = network.encode([torch.rand(1, 64, 64)])[0]
    for ask in (network.decode, network.decode_jacobian):
        with pytest.raises(InputError, match=r"LiteMedSAM cannot take the type \['mask'\]; it takes .'box', 'point'"):
            ask(embedding, Prompts(box, masks=torch.zeros(1, 256, 256)))
