# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Requests as MONAI Label's clients send them, with the analytic segmenter; the server itself where it is installed."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock
from urllib.parse import quote

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
from scripts.monai_label.options import Methods, Options
from scripts.monai_label.rooms import Rooms
from scripts.objectives import Objective

ROOT = Path(__file__).resolve().parents[1]
# What 3D Slicer's plugin sends for a model of the type deepgrow, beside the clicks.
SLICER = {"label": "region", "background": [], "result_extension": ".nrrd", "result_dtype": "uint8", "device": "cpu"}
FIXED, MOVING = (36.0, 26.0), (30.0, 34.0)  # row, column of the disc


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outside = tmp_path_factory.mktemp("outside")
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


# ---- the server ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A running server: where it is, its studies, its temporary files, what it logged."""

    url: str
    studies: Path
    temporary: Path
    log: Path


@pytest.fixture(scope="module")
def server(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if find_spec("monailabel") is None:
        pytest.skip("monailabel is not installed (requirements-monailabel.txt)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    one = Server(f"http://127.0.0.1:{port}", studies, folder / "temporary", folder / "log")
    one.temporary.mkdir()
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(ROOT / "scripts" / "monai_label")]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port), "--conf", "device", "cpu"]
    with one.log.open("wb") as file:
        environment = os.environ | {"TMPDIR": str(one.temporary)}
        running = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file, env=environment)
    try:
        for _ in range(120):
            time.sleep(1)
            assert running.poll() is None, one.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            try:
                if ask(f"{one.url}/info/")[0] == 200:
                    break
            except OSError:
                continue
        yield one
    finally:
        running.terminate()
        running.wait(30)


def ask(url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """One HTTP request: status and content."""
    asked = urllib.request.Request(url, body, {k.replace("_", "-"): v for k, v in headers.items()}, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=300) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def form(name: str, content: bytes, filename: str = "") -> bytes:
    """A multipart form with one field, whose boundary is "b"."""
    file = f'; filename="{filename}"' if filename else ""
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + content + b"\r\n--b--\r\n"


FORM = {"Content_Type": "multipart/form-data; boundary=b"}


def post(url: str, params: Any, image: str = "moving", output: str = "json") -> tuple[int, Any]:
    """POST /infer as the clients do."""
    address = f"{url}/infer/promptreg?image={quote(image)}&output={output}"
    status, content = ask(address, "POST", form("params", json.dumps(params).encode()), **FORM)
    if status != 200:
        return status, json.loads(content)["detail"] if content.startswith(b"{") else content.decode()
    return status, json.loads(content) if output == "json" else content


PARAMS = {**SLICER, "other_image": "fixed", "foreground": [[34, 30, 0]]}


def test_the_server_answers_both_clients(server: Server, tmp_path: Path) -> None:
    status, content = ask(f"{server.url}/info/")
    model = json.loads(content)["models"]["promptreg"]
    assert status == 200 and model["type"] == "deepgrow" and model["labels"] == {"region": 1}
    assert model["config"]["other_image"] == ["auto", "broken", "fixed", "moving", "v_fixed", "v_moving"]
    assert {"objective", "transformation", "number_of_prompts", "transforms", "segmenter"} <= model["config"].keys()

    params = slicer_params(model["config"], {"other_image": "fixed", "session": "slicer"}, [[34, 30, 0]])
    status, told = post(server.url, params)
    assert status == 200, told
    assert told["counterparts"][0]["found"] and np.allclose(told["counterparts"][0]["points"], [FIXED[::-1]], atol=4)
    address = f"{server.url}/infer/promptreg?image=moving"  # Slicer names no output and gets both
    status, content = ask(address, "POST", form("params", json.dumps(params).encode()), **FORM)
    assert status == 200 and b'"counterparts"' in content and b"NRRD0" in content

    status, content = post(server.url, ohif_params({"other_image": "fixed"}, [[34, 30, 0]]), output="image")
    (tmp_path / "region.nrrd").write_bytes(content)
    region = sitk.ReadImage(str(tmp_path / "region.nrrd"))
    assert status == 200 and region.GetSize() == (64, 64) and region.GetPixelID() == sitk.sitkUInt8
    assert np.allclose(np.argwhere(sitk.GetArrayFromImage(region) > 0).mean(0), FIXED, atol=4)


def test_the_server_registers_now(server: Server, tmp_path: Path) -> None:
    edited = {"other_image": "fixed", "register": True, "transformation": "affine", "number_of_prompts": 1}
    status, told = post(server.url, {**PARAMS, **edited})
    assert status == 200 and told["registration"] == {
        "moved": "moving_to_fixed_moved", "field": "moving_to_fixed_field"
    }, told  # fmt: skip
    for what, ending in (("field", "nii.gz"), ("moved", "png")):
        status, content = ask(f"{server.url}/datastore/image?image={told['registration'][what]}")
        assert status == 200
        (tmp_path / f"{what}.{ending}").write_bytes(content)
    assert torch.from_numpy(nib.load(tmp_path / "field.nii.gz").get_fdata()).isfinite().all()
    moved, fixed = (np.asarray(Image.open(p), float) for p in (tmp_path / "moved.png", server.studies / "fixed.png"))
    assert np.abs(moved - fixed).mean() < 10
    model = json.loads(ask(f"{server.url}/info/")[1])["models"]["promptreg"]
    assert "moving_to_fixed_moved" not in model["config"]["other_image"], "results are no studies"


def test_wrong_requests_to_the_server(server: Server) -> None:
    for change, message in WRONG:
        if "image" not in change:
            status, detail = post(server.url, {**PARAMS, "session": "", **change})
            assert status == 400 and str(server.studies.parent) not in detail, (change, status, detail)
            assert message.split("'")[0] in detail, (change, detail)
    for image in (
        "../secret",
        "/etc/passwd",
        "leak",
        "..%2fsecret",
        ".lock",
        str(server.studies.parent / "secret.png"),
    ):
        status, detail = post(server.url, PARAMS, image=image)
        assert status == 400 and str(server.studies.parent) not in detail, (image, detail)
    assert post(server.url, {**PARAMS, "image": "/etc/passwd"})[0] == 400, "params may name another image"
    assert post(server.url, {**PARAMS, "model": "other"})[0] == 404
    for params in ([1, 2], "text", 3):
        assert post(server.url, params)[0] >= 400
    assert post(server.url, PARAMS)[0] == 200


def test_no_address_of_the_server_leads_out_of_the_studies(server: Server) -> None:
    before = sorted(server.studies.parent.rglob("*"))
    picture = (server.studies / "moving.png").read_bytes()
    pickled = pickle.dumps(Path)
    wrong: list[tuple[str, str, bytes | None, set[int]]] = [
        ("GET", "/datastore/image?image=leak", None, {404}),
        ("GET", "/datastore/image?image=../secret", None, {404}),
        ("GET", "/datastore/image?image=/etc/passwd", None, {404}),
        ("GET", "/datastore/label?label=../../secret&tag=final", None, {404}),
        ("PUT", "/datastore/image?image=../evil", form("file", picture, "evil.png"), {400}),
        ("PUT", "/datastore/image?image=/tmp/evil", form("file", picture, "evil.png"), {400}),
        ("PUT", "/datastore/image?image=evil", form("file", pickled, "evil.pkl"), {400}),
        ("PUT", "/datastore/label?image=moving&tag=../../evil", form("label", picture, "evil.png"), {400}),
        ("DELETE", "/datastore/image?id=../secret", None, {500}),
        ("POST", "/infer/promptreg", form("file", picture, "evil.png"), {400}),
        ("POST", "/infer/promptreg?image=moving", form("label", pickled, "evil.pkl"), {400}),
        ("POST", "/infer/wsi_v2/promptreg?image=moving", form("wsi", b"{}"), {404}),
        ("PUT", "/model/promptreg", form("file", pickled, "model.pt"), {404}),
        ("PUT", "/session/", form("files", pickled, "x.zip"), {404}),
        ("GET", "/logs/", None, {404}),
        ("POST", "/reload", b"", {404}),
        ("POST", "/batch/infer/promptreg", b"{}", {404}),
    ]
    for method, address, body, expected in wrong:
        status, content = ask(server.url + address, method, body, **(FORM if body else {}))
        assert status in expected, (method, address, status, content)
        assert str(server.studies).encode() not in content
    assert sorted(server.studies.parent.rglob("*")) == before


def test_a_request_may_be_too_large(server: Server) -> None:
    with socket.create_connection(server.url.removeprefix("http://").split(":")) as connection:
        connection.sendall(
            b"PUT /datastore/image?image=big HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n"
        )
        assert b"413" in connection.recv(1000).split(b"\r\n")[0], "refused before anything is sent"
    large = Image.new("L", (9000, 9000))
    path = server.studies / "large.png"
    large.save(path)
    try:
        status, detail = post(server.url, PARAMS, image="large")
        assert status == 400 and "9000 x 9000 voxels, and" in detail
    finally:
        path.unlink()


def test_a_crash_of_one_request_leaves_the_server_up(server: Server) -> None:
    """The folder for temporary files is gone for a moment: nobody's fault, so the client gets a sentence."""
    away = server.temporary.with_name("away")
    server.temporary.rename(away)
    try:
        status, detail = post(server.url, PARAMS)
        assert status == 500 and detail == "this could not be done; the server's log names the cause"
    finally:
        away.rename(server.temporary)
    assert "FileNotFoundError" in server.log.read_text(encoding="utf-8", errors="replace")
    assert post(server.url, PARAMS)[0] == 200
    for _ in range(50):  # a file is deleted just after it was sent
        if not list(server.temporary.glob("promptreg-*")):
            return
        time.sleep(0.1)
    raise AssertionError("answers stay in the temporary folder")


def test_eight_clients_of_the_server_do_not_mix(server: Server) -> None:
    def visit(k: int, name: str) -> Any:
        for n in range(2):
            clicks = {"foreground": [[30 + k, 26 + n, 0]], "prompt_id": f"{k}-{n}", "session": f"{name}{k}"}
            status, told = post(server.url, {**PARAMS, **clicks})
            assert status == 200, told
        return [(p["id"], p["moving"]["voxel"], p["fixed"], p["confidence"]) for p in told["prompts"]]

    alone = [visit(k, "alone") for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda k: visit(k, "client"), range(8)))
    assert together == alone and [len(one) for one in together] == [2] * 8
