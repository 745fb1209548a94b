# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A file of weights is read whatever its authors wrapped around it, and one of another model is named."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from random_weights import SMALL, bare, random_weights
from torch import Tensor

from scripts.errors import InputError
from scripts.segmenters import SAM, SAMHQ, LiteMedSAM, MedSAM, SAMMed2D
from scripts.segmenters.checkpoints import lite_medsam_from_wheel, read_state_dict
from scripts.segmenters.families import recognise

STATE = {"a.weight": torch.ones(2), "b.weight": torch.zeros(3)}


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in STATE.items()}


LAYOUTS: dict[str, Any] = {
    "flat": STATE,
    "MedSAM's training": {"model": prefixed("module."), "optimizer": {"state": {}, "param_groups": []}, "epoch": 3},
    "SAM-Med3D": {"model_state_dict": STATE, "epoch": 3, "losses": [0.1]},
    "Medical SAM Adapter": {"epoch": 3, "model": "sam", "state_dict": prefixed("module."), "best_tol": 0.1},
    "3DSAM-adapter": {"encoder_dict": STATE, "decoder_dict": prefixed("x."), "feature_dict": [STATE]},
    "compiled": prefixed("_orig_mod."),
    "compiled after it was made parallel": prefixed("_orig_mod.module."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wrappers_and_prefixes(layout: str, tmp_path: Path) -> None:
    torch.save(LAYOUTS[layout], tmp_path / "w.pth")
    read = read_state_dict(tmp_path / "w.pth")
    assert read.keys() == STATE.keys() and all(torch.equal(read[name], value) for name, value in STATE.items())


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(STATE, tmp_path / "w.safetensors")
    assert read_state_dict(tmp_path / "w.safetensors").keys() == STATE.keys()
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"bad.safetensors cannot be read as a file of weights \("):
        read_state_dict(tmp_path / "bad.safetensors")


def test_objects_beside_tensors_are_named(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="holds Python objects, which are not unpickled as they could run code"):
        read_state_dict(tmp_path / "w.pth")


def of_width(width: int) -> dict[str, Tensor]:
    return {"image_encoder.pos_embed": torch.zeros(1, 64, 64, width)}


def of_hiera(width: int, name: str = "pos_embed") -> dict[str, Tensor]:
    return {f"image_encoder.trunk.{name}": torch.zeros(1, width, 7, 7), "no_obj_embed_spatial": torch.zeros(1)}


@pytest.mark.parametrize(
    ("state", "name", "overlays"),
    [
        (of_width(768), "SAM vit_b or MedSAM", ("sam_vit_b", "med_sam")),
        (of_width(1024), "SAM vit_l", ("sam_vit_l",)),
        (of_width(1280), "SAM vit_h", ("sam_vit_h",)),
        (of_width(1280) | {"mask_decoder.hf_token.weight": torch.zeros(1)}, "SAM-HQ vit_h", ("sam_hq_vit_h",)),
        (
            of_width(768) | {"image_encoder.blocks.0.Adapter.norm.weight": torch.zeros(1)},
            "SAM-Med2D",
            ("sam_med2d",),
        ),
        (
            of_width(768) | {"image_encoder.blocks.0.Space_Adapter.D_fc1.weight": torch.zeros(1)},
            "Medical SAM Adapter",
            ("medical_sam_adapter",),
        ),
        ({"image_encoder.trunk.pos_embed": torch.zeros(1)}, "SAM 2 or MedSAM2", ()),
        (of_hiera(96), "SAM 2 or MedSAM2", ("sam2_tiny", "med_sam2")),
        (
            of_hiera(96) | of_hiera(1, "blocks.12.norm1.weight"),
            "SAM 2 or MedSAM2",
            ("sam2_small",),
        ),
        (of_hiera(112), "SAM 2 or MedSAM2", ("sam2_base_plus",)),
        (of_hiera(144), "SAM 2 or MedSAM2", ("sam2_large",)),
        ({"vision_encoder.layers.0.attn.qkv.weight": torch.zeros(1)}, "SAM in the layout of transformers", ()),
        ({"slice_embed": torch.zeros(1)}, "3DSAM-adapter", ()),
    ],
)
def test_families(state: dict[str, Tensor], name: str, overlays: tuple[str, ...]) -> None:
    family = recognise(state)
    assert family is not None
    assert family.name == name and family.overlays == overlays
    folder = Path(__file__).parents[1] / "configs" / "segmenters"
    assert all((folder / f"{overlay}.yaml").is_file() for overlay in family.overlays)


def test_families_of_our_own_networks() -> None:
    small = {kind: recognise(bare(kind, SMALL).state_dict()) for kind in (SAM, SAMHQ, SAMMed2D)}
    assert [f.name for f in small.values() if f] == ["SAM", "SAM-HQ", "SAM-Med2D"]
    lite = recognise(read_state_dict(lite_medsam_from_wheel()))
    assert lite is not None and lite.name == "LiteMedSAM"
    assert recognise({"conv.weight": torch.zeros(1)}) is None


@pytest.mark.parametrize(
    ("given", "loaded", "message"),
    [
        (SAMHQ, SAM, "does not hold SAM vit_b weights .* it looks like SAM-HQ"),
        (SAMMed2D, MedSAM, "does not hold MedSAM vit_b weights .* add configs/segmenters/sam_med2d.yaml"),
        (SAM, SAMMed2D, "does not hold SAM-Med2D vit_b weights .* it looks like SAM"),
    ],
)
def test_a_file_of_another_model_is_named(
    given: type[SAM], loaded: type[SAM], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded, "variants", {"vit_b": SMALL})
    torch.save(random_weights(bare(given, SMALL).state_dict()), tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        loaded(tmp_path / "w.pth")


def test_the_default_models_file_given_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SAM, "variants", {"vit_b": SMALL})
    with pytest.raises(InputError, match="it looks like LiteMedSAM: leave the overlay of another segmenter out"):
        SAM(lite_medsam_from_wheel())


def test_the_default_model_given_anothers_file(tmp_path: Path) -> None:
    torch.save(of_width(1024), tmp_path / "sam_vit_l.pth")
    with pytest.raises(InputError, match=r"it looks like SAM vit_l: add configs/segmenters/sam_vit_l.yaml"):
        LiteMedSAM(tmp_path / "sam_vit_l.pth")
