# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Requests as MONAI Label's clients send them, with the analytic segmenter; the server itself where it is installed."""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from test_inferer import FIT, inferer, scene
from toy import DiscSegmenter, disc

from scripts.confine import image_in
from scripts.correspond import Method
from scripts.errors import InputError
from scripts.inferer import PromptRegInferer
from scripts.marginalisation import Marginalisation
from scripts.monai_label.answers import write_labels
from scripts.monai_label.options import Methods, Options
from scripts.monai_label.rooms import Rooms
from scripts.objectives import Objective
from scripts.registration import ImageInfo

ROOT = Path(__file__).resolve().parents[1]
# What 3D Slicer's plugin sends for a model of the type deepgrow, beside the clicks.
SLICER = {"label": "region", "background": [], "result_extension": ".nrrd", "result_dtype": "uint8", "device": "cpu"}
FIXED, MOVING = (36.0, 26.0), (30.0, 34.0)  # row, column of the disc


def write_studies(outside: Path) -> Path:
    """Studies of a disc, and what must not be reached beside them."""
    folder = outside / "studies"
    folder.mkdir()
    for name, centre in (("fixed", FIXED), ("moving", MOVING)):
        picture = Image.fromarray((255 * scene((64, 64), centre, 12.0)[0]).round().byte().numpy())
        picture.save(folder / f"{name}.png")
        picture.save(outside / "secret.png")
    (folder / "leak.png").symlink_to(outside / "secret.png")
    (folder / "broken.png").write_bytes(b"no image")
    volume = scene((32, 32, 16), (15.0, 17.0, 8.0), 6.0)[0].numpy()
    for name, shift in (("v_moving", 0), ("v_fixed", 2)):
        affine = np.array([[0, -1.0, 0, 10], [1.0, 0, 0, -5], [0, 0, 2.0, 3], [0, 0, 0, 1]])
        nib.save(nib.Nifti1Image(np.roll(volume, shift, 0), affine), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where answers go, which the server would remove once they are sent."""
    folder = tmp_path_factory.mktemp("answers")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_studies(tmp_path_factory.mktemp("outside"))


class ToyMethods(Methods):
    """The options of the app with the analytic segmenter."""

    def __init__(self, dims: int = 2) -> None:
        super().__init__({})
        self.dims = dims

    def build_inferer(self, options: Options) -> PromptRegInferer:
        method = replace(Method(), marginalisation=Marginalisation(transforms=options.transforms))
        objective = Objective([{"term": "features" if options.objective == "default" else "roi"}])
        fit = replace(FIT, kind={"svf": "affine"}.get(options.transformation, options.transformation))
        return inferer(method=method, objective=objective, fit=fit, prealignment=options.prealignment)

    def build_network(self, segmenter: str) -> DiscSegmenter:
        return DiscSegmenter(self.dims, 64 if self.dims == 2 else 32)


def rooms(studies: Path, dims: int = 2) -> Rooms:
    def place(name: Any, what: str) -> Path:
        return image_in(studies, name, what=what)

    return Rooms(place, lambda: ["moving", "fixed"] if dims == 2 else ["v_moving", "v_fixed"], ToyMethods(dims))


def test_clicks_of_slicer_in_either_image(studies: Path) -> None:
    room = rooms(studies)
    for clicked, other, at, there in (("moving", "fixed", MOVING, FIXED), ("fixed", "moving", FIXED, MOVING)):
        request = {**SLICER, "image": clicked, "other_image": other, "foreground": [[int(at[1]), int(at[0]), 0]]}
        answer = room.answer(request)
        told = answer.told
        (found,) = told["counterparts"]
        assert found["found"] and found["confidence"] > 0.5 and found["status"] == "corresponding"
        assert np.allclose(found["points"], [there[::-1]], atol=3)  # column first, as it was asked
        region = sitk.ReadImage(str(answer.regions))
        assert region.GetSize() == (64, 64) and region.GetPixelID() == sitk.sitkUInt8
        middle = np.argwhere(sitk.GetArrayFromImage(region) > 0).mean(0)
        assert np.allclose(middle, there, atol=2)
        assert told["moving_image"] == "moving.png", "roles stay, whichever is clicked"
        json.dumps(told, allow_nan=False)


def test_regions_of_volumes_lie_on_the_other_image(studies: Path) -> None:
    request = {**SLICER, "image": "v_moving", "other_image": "v_fixed", "foreground": [[15, 17, 8]]}
    answer = rooms(studies, 3).answer(request)
    region, image = sitk.ReadImage(str(answer.regions)), sitk.ReadImage(str(studies / "v_fixed.nii.gz"))
    for found, truth in ((region.GetDirection(), image.GetDirection()), (region.GetOrigin(), image.GetOrigin())):
        assert np.allclose(found, truth)
    assert region.GetSize() == image.GetSize() and region.GetSpacing() == pytest.approx(image.GetSpacing())
    assert np.allclose(np.argwhere(sitk.GetArrayFromImage(region).T > 0).mean(0), (17, 17, 8), atol=1.5)
    assert answer.told["counterparts"][0]["found"]


def test_a_named_session_keeps_its_prompts(studies: Path) -> None:
    room = rooms(studies)
    base = {**SLICER, "image": "moving", "other_image": "fixed", "session": "mine"}
    for name, column in (("a", 34), ("b", 33), ("b", 35)):  # the second b takes the place of the first
        told = room.answer({**base, "foreground": [[column, 30, 0]], "prompt_id": name}).told
    assert [prompt["id"] for prompt in told["prompts"]] == ["a", "b"]
    alone = room.answer({**base, "session": "", "foreground": [[34, 30, 0]]}).told
    assert [prompt["id"] for prompt in alone["prompts"]] == ["region on moving"], "named by the client's segment"
    told = room.answer({**base, "remove": ["a"]}).told
    assert [prompt["id"] for prompt in told["prompts"]] == ["b"]
    answer = room.answer({**base, "register": True})
    assert answer.registration is not None and "folding_percent" in answer.told
    assert answer.told["prompts"][0]["id"] == "b"
    room.answer({**base, "remove": ["b"]})


def test_without_clicks_a_session_is_shown_on_the_image_looked_at(studies: Path) -> None:
    """A viewer that shows answers on the image it displays alone, as OHIF, sees a counterpart so."""
    room = rooms(studies)
    base = {"session": "look", "result_extension": ".nrrd"}
    for image, others, clicks, centre in (
        ("moving", {"region_on": "clicked image"}, [[34, 30, 0]], MOVING),
        ("fixed", {}, None, FIXED),
        ("moving", {}, None, MOVING),
    ):
        answer = room.answer({**base, **others, "image": image, "foreground": clicks})
        region = sitk.GetArrayFromImage(sitk.ReadImage(str(answer.regions)))
        assert np.allclose(np.argwhere(region > 0).mean(0), centre, atol=2)
        assert answer.told["region_on"] == image


def test_no_counterpart_is_an_empty_region(tmp_path: Path) -> None:
    moving = scene((64, 64), (20.0, 20.0), 8.0) + 0.4 * disc((64, 64), (46.0, 46.0), 8.0)
    for name, image in (("moving", moving), ("fixed", scene((64, 64), (22.0, 20.0), 8.0))):
        Image.fromarray((255 * image[0]).round().byte().numpy()).save(tmp_path / f"{name}.png")
    request = {"image": "moving", "prompts": [{"box": [[37, 37], [55, 55]]}]}
    answer = rooms(tmp_path).answer(request)
    assert not answer.told["counterparts"][0]["found"] and answer.told["counterparts"][0]["points"] is None
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(answer.regions))).max() == 0


# ---- options -------------------------------------------------------------------------------------------------------


def slicer_params(config: dict[str, Any], edited: dict[str, Any], foreground: list[list[int]]) -> dict[str, Any]:
    """What 3D Slicer's plugin sends: every option, of a list the one put first, and fields of its own."""
    values = {name: value[0] if isinstance(value, list) else value for name, value in config.items()} | edited
    params = {"label": "region", "foreground": foreground, "background": [], **values, "reset_state": True}
    return params | {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz"}


def ohif_params(edited: dict[str, Any], foreground: list[list[int]] | None) -> dict[str, Any]:
    """What OHIF's plugin sends: options that were changed, alone; no points where none were set."""
    points = {"background": []} if foreground is None else {"foreground": foreground, "background": []}
    own = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}
    return edited | points | own


EDITED = [
    ({"transformation": "rigid"}, ("fit", "kind"), "rigid"),
    ({"objective": "roi"}, ("objective",), [{"term": "roi"}]),
    ({"transforms": 2}, ("method", "marginalisation", "transforms"), 2),
    ({"prealignment": "centre"}, ("prealignment",), "centre"),
]


@pytest.mark.parametrize("client", ["slicer", "ohif"])
@pytest.mark.parametrize(("edited", "path", "value"), EDITED)
def test_options_reach_the_method(
    studies: Path, client: str, edited: dict[str, Any], path: tuple[str, ...], value: Any
) -> None:
    room = rooms(studies)
    clicks = [[int(MOVING[1]), int(MOVING[0]), 0]]
    params = slicer_params(room.methods.shown(), edited, clicks) if client == "slicer" else ohif_params(edited, clicks)
    answer = room.answer({"image": "moving", **params, "register": True})
    assert answer.registration is not None
    found: Any = answer.registration.settings
    for key in path:
        found = found[key]
    assert found == value


@pytest.mark.parametrize("client", ["slicer", "ohif"])
def test_the_number_of_prompts_of_a_registration(studies: Path, client: str) -> None:
    room = rooms(studies)
    for wanted in (1, 3):
        edited, clicks = {"number_of_prompts": wanted}, [[34, 30, 0]]
        shown = room.methods.shown()
        params = slicer_params(shown, edited, clicks) if client == "slicer" else ohif_params(edited, clicks)
        told = room.answer({"image": "moving", **params, "register": True}).told
        assert len(told["prompts"]) == wanted


def test_what_the_clients_show(tmp_path: Path) -> None:
    (tmp_path / "sam_vit_b_01ec64.pth").touch()
    shown = Methods({"prealignment": "world"}, tmp_path).shown()
    assert shown["segmenter"] == ["LiteMedSAM", "sam_vit_b"] and shown["objective"][:2] == ["default", "roi"]
    assert shown["transformation"][0] == "svf" and shown["prealignment"][0] == "world"
    for value in shown.values():  # Slicer's combo boxes take text alone
        assert isinstance(value, int) or (value and all(isinstance(choice, str) for choice in value))


def test_options_become_the_configuration() -> None:
    methods = Methods({})
    plain, chosen = (methods.inferer(methods.chosen(r)) for r in ({}, {"transformation": "affine", "transforms": 3}))
    assert plain.fit.kind == "svf" and plain.same_scene is not None
    assert chosen.fit.kind == "affine" and chosen.same_scene is None
    assert chosen.method.marginalisation.transforms == 3
    paper = methods.inferer(methods.chosen({"objective": "roi", "transformation": "rigid"}))
    assert paper.objective.names == ["roi"] and paper.start == "identity" and paper.fit.kind == "rigid"
    assert methods.chosen({"transforms": None, "objective": ""}) == Options(), "emptied fields are the default"


def test_a_segmenter_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[list[str], dict[str, Any]]] = []
    monkeypatch.setattr("scripts.monai_label.options._workflow", lambda *asked: made.append(asked) or MagicMock())
    (tmp_path / "sam_vit_b_01ec64.pth").touch()
    methods = Methods({"device": "cpu"}, tmp_path)
    methods.network(methods.chosen({"segmenter": "sam_vit_b"}).segmenter)
    ((overlays, overrides),) = made
    assert overlays == ["segmenters/sam_vit_b.yaml"] and overrides["device"] == "cpu"
    assert overrides["checkpoint"] == str(tmp_path / "sam_vit_b_01ec64.pth") and overrides["checkpoint_sha256"]


def test_a_roi_of_slicer_is_a_box(studies: Path) -> None:
    request = {**SLICER, "image": "moving", "foreground": [], "roi": [21, 47, 17, 43, 0, 0]}
    told = rooms(studies).answer(request).told
    (prompt,) = told["prompts"]
    assert prompt["kind"] == "box" and prompt["moving"]["voxel"] == [[17, 21], [43, 47]] and prompt["found"]


GOOD = {**SLICER, "image": "moving", "other_image": "fixed", "foreground": [[34, 30, 0]]}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"image": None}, "image: 'None' is no name"),
    ({"image": "../secret"}, "image: '../secret' is no name"),
    ({"image": "/etc/passwd"}, "is no name"),
    ({"image": "leak"}, "leads out"),
    ({"image": "nothing"}, "no image named 'nothing'"),
    ({"image": "broken"}, "cannot be read"),
    ({"other_image": 3}, "other_image: '3' is no name"),
    ({"other_image": "../secret.png"}, "is no name"),
    ({"other_image": "leak.png"}, "leads out"),
    ({"other_image": "moving"}, "is the image that was clicked"),
    ({"other_image": ["fixed"]}, "is no name"),
    ({"other_image": "v_fixed"}, "both must be 2-D"),
    ({"foreground": []}, "no clicks given"),
    ({"foreground": None}, "no clicks given"),
    ({"foreground": "34,30"}, "is no list of points"),
    ({"foreground": [34, 30]}, "is no list of points"),
    ({"foreground": [[34]]}, "wrong length"),
    ({"foreground": [["x", "y"]]}, "is no list of points"),
    ({"foreground": [[340, 30, 0]]}, "outside the moving image"),
    ({"foreground": [[float("nan"), 30, 0]]}, "NaN"),
    ({"foreground": [], "background": [[3, 3, 0]]}, "all labels are 0"),
    ({"prompts": "prompts.json"}, "cannot name files"),
    ({"prompts": [{"mask": "fixed.png"}]}, "cannot name masks"),
    ({"prompts": [{"box": [[3, 3], [3, 9]]}]}, "is empty"),
    ({"prompts": {"point": 3}}, "prompts: "),
    ({"result_extension": ".exe"}, "result_extension: unknown"),
    ({"session": "../other"}, "session: "),
    ({"session": 7}, "session: "),
    ({"remove": ["nobody"]}, "none with the ids"),
    ({"remove": [["nobody"], 3]}, "none with the ids"),
    ({"register": "perhaps"}, "neither true nor false"),
    ({"region_on": "the moon"}, "region_on: unknown"),
    ({"roi": [1, 2, 3]}, "roi: "),
    ({"roi": [9, 9, 3, 9, 0, 0]}, "is empty"),
    ({"transformation": "$__import__('os').abort()"}, "transformation: "),
    ({"objective": "../roi"}, "objective: "),
    ({"segmenter": "/etc/passwd"}, "segmenter: "),
    ({"transforms": 0}, "expected 1 to 9"),
    ({"transforms": True}, "transforms: "),
    ({"number_of_prompts": "8"}, "number_of_prompts: "),
    ({"number_of_prompts": 1000}, "expected 1 to 64"),
    ({"prealignment": ["auto"]}, "prealignment: "),
]


@pytest.fixture(scope="module")
def room(studies: Path) -> Rooms:
    return rooms(studies)


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_requests(room: Rooms, studies: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        room.answer({**GOOD, **change})
    assert str(studies) not in str(told.value), "the client learns nothing of this machine"


def test_eight_clients_at_once_do_not_mix(studies: Path) -> None:
    room = rooms(studies)
    places = [[30 + k, 26 + k] for k in range(8)]

    def ask(place: list[int], name: str) -> Any:
        base = {**GOOD, "session": name}
        for k in range(2):
            told = room.answer({**base, "foreground": [[place[0] + k, place[1], 0]], "prompt_id": str(k)}).told
        return [(prompt["id"], prompt["moving"]["voxel"], prompt["fixed"]) for prompt in told["prompts"]]

    alone = [ask(place, f"alone{k}") for k, place in enumerate(places)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, places, [f"client{k}" for k in range(8)]))
    assert together == alone


def test_a_label_that_cannot_be_written_leaves_nothing(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("scripts.monai_label.answers.write_image", full)
    info = ImageInfo("a.nii.gz", "volume", ".nii.gz", torch.eye(4), (1.0, 1.0, 1.0))
    with pytest.raises(OSError, match="No space left"):
        write_labels(torch.zeros(2, 2, 2, dtype=torch.int64), info, ".nii.gz")
    assert not list(temporary.iterdir())
