# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The bundle as others use it: MONAI's workflow and commands, the model zoo's checks, MONAI Label's chain of calls."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image
from skimage import data
from skimage.transform import resize

from scripts.correspond import Method
from scripts.prompt_sampling import Sampling
from scripts.segmenters import LiteMedSAM
from scripts.segmenters.checkpoints import write_model_file

ROOT = Path(__file__).resolve().parents[1]
CONFIG, META = ROOT / "configs" / "inference.yaml", ROOT / "configs" / "metadata.json"
SIZE, SHIFT = 128, (3, -5)  # a place in the moving image lies at place - SHIFT in the fixed one
FAST: dict[str, Any] = {
    "device": "cpu",
    "prior_fit::levels": [{"size": 32, "controls": 0, "steps": 10}],
    "fit::levels": [{"size": 32, "controls": 4, "steps": 4}],
}
RESULTS = {
    "moved.png",
    "ddf.nii.gz",
    "regions_moving.png",
    "regions_fixed.png",
    "prompts.json",
    "run.json",
    "report.html",
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A retinal photograph and the same shifted, as files."""
    folder = tmp_path_factory.mktemp("pair")
    whole = 255 * resize(data.retina()[..., 1], (SIZE + 8, SIZE + 8), anti_aliasing=True)
    corners = {"fixed": (4, 2), "moving": (4 - SHIFT[0], 2 - SHIFT[1])}
    for name, (row, column) in corners.items():
        cut = whole[row : row + SIZE, column : column + SIZE]
        Image.fromarray(cut.round().astype(np.uint8)).save(folder / f"{name}.png")
    return {name: str(folder / f"{name}.png") for name in corners}


def workflow(**overrides: Any) -> ConfigWorkflow:
    made = ConfigWorkflow(str(CONFIG), workflow_type="infer", logging_file=False, **overrides)
    made.initialize()
    return made


def monai_bundle(command: str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m monai.bundle COMMAND --option value ...` from a folder."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    call = [sys.executable, "-m", "monai.bundle", command, *words]
    return subprocess.run(
        call, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", timeout=300, check=False
    )


# ---- what MONAI and the model zoo check ----------------------------------------------------------------------------


def test_workflow_has_every_property(pair: dict[str, str]) -> None:
    made = workflow(fixed_image=pair["fixed"], moving_image=pair["moving"], device="cpu")
    assert made.check_properties() == []
    assert made.bundle_root == "." and made.device == "cpu"
    assert isinstance(made.network_def, LiteMedSAM)


def test_metadata() -> None:
    meta = json.loads(META.read_text(encoding="utf-8"))
    required = (
        "schema version changelog monai_version pytorch_version numpy_version required_packages_version name task"
    )
    assert {*required.split(), "description", "authors", "copyright", "network_data_format"} <= meta.keys()
    assert meta["schema"].startswith("https://") and meta["schema"].endswith("meta_schema_20240725.json")
    assert meta["version"] in meta["changelog"]
    names = ("version", "monai_version", "pytorch_version", "numpy_version")
    versions = {**{name: meta[name] for name in names}, **meta["required_packages_version"]}
    assert {name: v for name, v in versions.items() if not re.fullmatch(r"\d+(\.\d+)+", v)} == {}
    formats = meta["network_data_format"]
    assert (next(iter(formats["inputs"])), next(iter(formats["outputs"]))) == ("image", "pred")
    for entry in (formats["inputs"]["image"], formats["outputs"]["pred"]):
        assert {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"} <= entry.keys()


def test_files_of_the_model_zoo() -> None:
    assert yaml.safe_load((ROOT / "large_files.yml").read_text(encoding="utf-8"))["large_files"] == []
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_network_takes_and_gives_what_the_metadata_says() -> None:
    formats = json.loads(META.read_text(encoding="utf-8"))["network_data_format"]
    given, expected = formats["inputs"]["image"], formats["outputs"]["pred"]
    x = torch.rand(1, given["num_channels"], 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = workflow(device="cpu").network_def(x.to(getattr(torch, given["dtype"])))
    assert y.shape == (1, expected["num_channels"], 256, 256)
    assert y.dtype == getattr(torch, expected["dtype"])


@pytest.mark.slow
def test_verify_net_in_out() -> None:
    options = {"net_id": "network_def", "meta_file": META, "config_file": CONFIG, "device": "cpu"}
    done = monai_bundle("verify_net_in_out", ROOT, **options)
    assert done.returncode == 0, done.stderr
    assert "verified with no error" in done.stdout


# ---- overrides -----------------------------------------------------------------------------------------------------


def test_overrides_reach_the_inferer() -> None:
    terms = [{"term": "roi", "weight": 1.0}]
    inferer = workflow(**{"fit::kind": "bspline", "objective::terms": terms, "sampling::count": 2, "seed": 5}).inferer
    assert inferer.fit.kind == "bspline" and inferer.prior_fit.kind == "svf"
    assert inferer.objective.names == ["roi"] and set(inferer.prior_objective.names) == {"features"}
    assert (inferer.sampling.count, inferer.seed) == (2, 5)
    assert workflow(prior_starts="$None").inferer.prior_starts is None  # MONAI takes no notice of a plain None
    assert workflow(**{"prior_starts::pose": "$None"}).inferer.prior_starts.pose is None


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_command_from_another_folder(pair: dict[str, str], tmp_path: Path) -> None:
    options = {"config_file": CONFIG, "fixed_image": pair["fixed"], "moving_image": pair["moving"], **FAST}
    for name in ("one", "two"):
        done = monai_bundle("run", tmp_path, output_dir=name, prompts="[[64,60]]", **options)
        assert done.returncode == 0, done.stderr
        assert {path.name for path in (tmp_path / name).iterdir()} == RESULTS
    one, two = tmp_path / "one", tmp_path / "two"
    for name in ("prompts.json", "moved.png"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), f"{name} differs between runs of one seed"

    (prompt,) = json.loads((one / "prompts.json").read_text(encoding="utf-8"))
    assert prompt["moving"] == {"voxel": [[64, 60]], "world_mm": None, "labels": [1]}
    assert prompt["status"] == "corresponding" and 0.5 < prompt["confidence"] <= 1
    (found,) = prompt["fixed"]["voxel"]
    assert np.allclose(found, np.subtract((64, 60), SHIFT), atol=2.5)

    run = json.loads((one / "run.json").read_text(encoding="utf-8"))
    assert (run["fixed_image"], run["moving_image"], run["seed"]) == (pair["fixed"], pair["moving"], 0)
    assert run["settings"]["fit"]["levels"] == FAST["fit::levels"]
    assert run["counts"]["encodes"] >= 2 and sum(run["seconds"].values()) > 0
    with Image.open(one / "moved.png") as moved:
        assert moved.size == (SIZE, SIZE)
    field = nib.load(one / "ddf.nii.gz").get_fdata()
    assert np.isfinite(field).all() and np.prod(field.shape) == 2 * SIZE * SIZE


# ---- MONAI Label ---------------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Python as MONAI Label runs it: not in the bundle's folder, and without the bundle on the path."""
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "scripts"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p and Path(p).resolve() != ROOT])
    yield
    forget_scripts()
    sys.modules.update(kept)


def forget_scripts() -> None:
    """MONAI Label's `unload_module`: the next bundle has a `scripts` of its own."""
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]


def stage(parser: ConfigParser, name: str) -> Any:
    """One part of the config, as MONAI Label's `BundleInferTask` gets it: the bundle is on the path for this long."""
    sys.path.insert(0, str(ROOT))
    forget_scripts()
    part = parser.get_parsed_content(name, instantiate=True)
    sys.path.remove(str(ROOT))
    return part


@pytest.mark.slow
@pytest.mark.usefixtures("foreign")
def test_chain_of_monai_label(pair: dict[str, str], tmp_path: Path) -> None:
    weights = write_model_file(tmp_path / "models" / "model.pt")
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    parser["bundle_root"], parser["use_click"] = str(ROOT), False
    for name, value in FAST.items():
        parser[name] = value

    network = deepcopy(stage(parser, "network_def"))
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=True)
    network.eval()

    request: dict[str, Any] = {"image": pair["fixed"], "moving": pair["moving"], "device": "cpu"}
    request |= {"foreground": [[60, 64, 0]], "background": []}  # clients count the columns of pictures first
    for transform in stage(parser, "preprocessing").transforms:
        request = transform(request)
    inferer = stage(parser, "inferer")
    with torch.no_grad():
        request["pred"] = inferer(request["image"][None], network)[0]
    for transform in stage(parser, "postprocessing").transforms:
        request = transform(request)

    assert request["pred"].shape == (SIZE, SIZE) == request["image"].shape[1:]
    assert torch.equal(request["pred"].affine, request["image"].affine)
    assert request["pred"].unique().tolist() == [0, 1]
    (prompt,) = json.loads(json.dumps(request["result"], allow_nan=False))["prompts"]
    assert prompt["status"] == "corresponding" and 0.5 < prompt["confidence"] <= 1
    assert prompt["moving"]["voxel"] == [[64, 60]]
    (found,) = prompt["fixed"]["voxel"]
    assert np.allclose(found, np.subtract((64, 60), SHIFT), atol=2.5)
    row, column = np.rint(found).astype(int)
    assert request["pred"][column, row] == 1  # transposed, as MONAI Label writes it


def test_displayable_configs_reach_the_method() -> None:
    """MONAI Label puts what its users chose into this one entry and parses the rest anew."""
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    chosen = {"prealignment": "centre", "transformation": "affine", "number_of_prompts": 3, "transforms": 2}
    assert parser["displayable_configs"].keys() == chosen.keys()
    parser["displayable_configs"].update(chosen)
    parser.parse()
    inferer = parser.get_parsed_content("inferer")
    assert (inferer.prealignment, inferer.fit.kind, inferer.sampling.count) == ("centre", "affine", 3)
    assert inferer.method.marginalisation.transforms == 2


@pytest.mark.parametrize(("overlay", "terms"), [("objectives/roi.yaml", ["roi"]), ("experiments/paper.yaml", ["roi"])])
def test_overlays_of_the_readme(overlay: str, terms: list[str]) -> None:
    files = [str(ROOT / "configs" / name) for name in ("inference.yaml", overlay)]
    changed = ConfigWorkflow(config_file=files, workflow_type="infer", logging_file=False)
    changed.initialize()
    inferer = changed.inferer
    assert inferer.objective.names == terms and inferer.start == "identity"
    if "paper" in overlay:
        assert inferer.sampling.how == "uniform" and not inferer.method.centre and not inferer.prior_fit.levels
        assert inferer.method.inversion.starts == ["peak"] and inferer.method.marginalisation.transforms == 5
        assert inferer.fit.stiffness == 0


def test_regions_alone_are_the_same_beside_other_tools() -> None:
    """The evaluation repeats the overlay's fit and objective, as overlays cannot be read from within a file."""
    own, beside = ConfigParser(), ConfigParser()
    own.read_config(ROOT / "configs" / "objectives" / "roi.yaml")
    beside.read_config([ROOT / "configs" / name for name in ("inference.yaml", "evaluate.yaml")])
    assert own["fit"] == beside["roi_fit"] and own["objective"] == beside["roi_objective"]


@pytest.mark.parametrize(("device", "prompts", "images"), [("cpu", 4, 1), ("cuda:1", 32, 8)])
@pytest.mark.parametrize("overlay", [[], [ROOT / "configs" / "segmenters" / "sam_vit_b.yaml"]])
def test_a_gpu_is_asked_for_more_at_once(device: str, prompts: int, images: int, overlay: list[Path]) -> None:
    parser = ConfigParser()
    parser.read_config([CONFIG, *overlay])
    parser["device"] = device
    assert parser.get_parsed_content("network_def::chunk") == prompts
    assert parser.get_parsed_content("network_def::batch") == images


def test_configs_are_ascii() -> None:
    """MONAI opens them in the encoding of the locale, which is ASCII in many containers."""
    for path in (ROOT / "configs").rglob("*.*"):
        assert path.read_bytes().isascii(), path


def test_links_between_the_documents_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_defaults_in_code_are_those_of_the_configuration() -> None:
    inferer = workflow().inferer
    for found, default in ((inferer.sampling, Sampling()), (inferer.method, Method())):
        plain = json.loads(json.dumps([asdict(found), asdict(default)]))
        assert plain[0] == plain[1]
