# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Requests as MONAI Label's clients send them, with the analytic segmenter; the server itself where it is installed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from test_inferer import inferer, scene
from toy import DiscSegmenter

from scripts.errors import InputError
from scripts.monai_label.rooms import Rooms

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


def rooms(studies: Path, dims: int = 2) -> Rooms:
    return Rooms(studies, inferer(), DiscSegmenter(dims, 64 if dims == 2 else 32))


def test_clicks_of_slicer_in_either_image(studies: Path) -> None:
    room = rooms(studies)
    for clicked, other, at, there in (("moving", "fixed", MOVING, FIXED), ("fixed", "moving", FIXED, MOVING)):
        request = {**SLICER, "image": clicked, "other_image": other, "foreground": [[int(at[1]), int(at[0]), 0]]}
        file, told = room.answer(request)
        (found,) = told["counterparts"]
        assert found["found"] and found["confidence"] > 0.5 and found["status"] == "corresponding"
        assert np.allclose(found["points"], [there[::-1]], atol=3)  # column first, as it was asked
        region = sitk.ReadImage(str(file))
        assert region.GetSize() == (64, 64)
        middle = np.argwhere(sitk.GetArrayFromImage(region) > 0).mean(0)
        assert np.allclose(middle, there, atol=2)
        assert told["moving_image"] == "moving.png", "roles stay, whichever is clicked"
        json.dumps(told, allow_nan=False)


def test_regions_of_volumes_lie_on_the_other_image(studies: Path) -> None:
    request = {**SLICER, "image": "v_moving", "other_image": "v_fixed", "foreground": [[15, 17, 8]]}
    file, told = rooms(studies, 3).answer(request)
    region, image = sitk.ReadImage(str(file)), sitk.ReadImage(str(studies / "v_fixed.nii.gz"))
    for found, truth in ((region.GetDirection(), image.GetDirection()), (region.GetOrigin(), image.GetOrigin())):
        assert np.allclose(found, truth)
    assert region.GetSize() == image.GetSize() and region.GetSpacing() == pytest.approx(image.GetSpacing())
    assert np.allclose(np.argwhere(sitk.GetArrayFromImage(region).T > 0).mean(0), (17, 17, 8), atol=1.5)
    assert told["counterparts"][0]["found"]


def test_a_named_session_keeps_its_prompts(studies: Path) -> None:
    room = rooms(studies)
    base = {**SLICER, "image": "moving", "other_image": "fixed", "session": "mine"}
    for name, column in (("a", 34), ("b", 33), ("b", 35)):  # the second b takes the place of the first
        _, told = room.answer({**base, "foreground": [[column, 30, 0]], "prompt_id": name})
    assert [prompt["id"] for prompt in told["prompts"]] == ["a", "b"]
    _, alone = room.answer({**base, "session": "", "foreground": [[34, 30, 0]]})
    assert len(alone["prompts"]) == 1
    _, told = room.answer({**base, "remove": ["a"]})
    assert [prompt["id"] for prompt in told["prompts"]] == ["b"]
    file, told = room.answer({**base, "register": True})
    assert file is not None and Path(told["registration"]["field"]).exists() and "folding_percent" in told
    room.answer({**base, "remove": ["b"]})


GOOD = {**SLICER, "image": "moving", "other_image": "fixed", "foreground": [[34, 30, 0]]}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"image": None}, "image: 'None' is no name"),
    ({"image": "../secret"}, "image: '../secret' is no name"),
    ({"image": "/etc/passwd"}, "is no name"),
    ({"image": "leak"}, "leads out"),
    ({"image": "nothing"}, "no image named 'nothing'"),
    ({"image": "broken"}, "cannot be read"),
    ({"other_image": None}, "other_image: 'None' is no name"),
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
            _, told = room.answer({**base, "foreground": [[place[0] + k, place[1], 0]], "prompt_id": str(k)})
        return [(prompt["id"], prompt["moving"]["voxel"], prompt["fixed"]) for prompt in told["prompts"]]

    alone = [ask(place, f"alone{k}") for k, place in enumerate(places)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, places, [f"client{k}" for k in range(8)]))
    assert together == alone


# ---- the server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if find_spec("monailabel") is None:
        pytest.skip("monailabel is not installed (requirements-monailabel.txt)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(ROOT / "scripts" / "monai_label")]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port), "--conf", "device", "cpu"]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as file:
        running = subprocess.Popen(command, cwd=log.parent, stdout=file, stderr=file, env=dict(os.environ))
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            time.sleep(1)
            assert running.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-3000:]
            try:
                urllib.request.urlopen(f"{url}/info/", timeout=30).close()
                break
            except OSError:
                continue
        yield url
    finally:
        running.terminate()
        running.wait(30)


def post(url: str, params: dict[str, Any], image: str = "moving", output: str = "json") -> tuple[int, Any]:
    """POST /infer as the clients do: a multipart form with one field."""
    body = f'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n{json.dumps(params)}\r\n--b--\r\n'.encode()
    address = f"{url}/infer/promptreg?image={quote(image)}&output={output}"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=300) as answer:
            content = answer.read()
            return answer.status, json.loads(content) if output == "json" else content
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["detail"]


@pytest.mark.slow
def test_the_server(server: str, studies: Path, tmp_path: Path) -> None:
    with urllib.request.urlopen(f"{server}/info/", timeout=60) as answer:
        model = json.load(answer)["models"]["promptreg"]
    assert model["type"] == "deepgrow" and {"fixed", "moving"} <= set(model["config"]["other_image"])

    params = {**SLICER, "other_image": "fixed", "foreground": [[34, 30, 0]], "session": "test"}
    status, told = post(server, params)
    assert status == 200, told
    assert told["counterparts"][0]["found"] and np.allclose(told["counterparts"][0]["points"], [FIXED[::-1]], atol=4)
    status, content = post(server, params, output="image")
    (tmp_path / "region.nrrd").write_bytes(content)
    assert status == 200 and sitk.ReadImage(str(tmp_path / "region.nrrd")).GetSize() == (64, 64)

    for change, message in WRONG:
        if "image" in change or message == "NaN":
            continue
        status, detail = post(server, {**params, "session": "", **change})
        assert status == 400 and message.split("'")[0] in detail, (change, status, detail)
    for image in ("../secret", "/etc/passwd", "leak", str(studies.parent / "secret.png")):
        status, detail = post(server, params, image=image)
        assert status == 400 and str(studies.parent) not in detail.replace(image, ""), (image, detail)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda k: post(server, {**params, "session": f"client{k}"}), range(8)))
    assert all(status == 200 and len(told["prompts"]) == 1 for status, told in answers)

    status, told = post(server, {**params, "foreground": [], "register": True})
    assert status == 200, told
    with urllib.request.urlopen(f"{server}/datastore/image?image={told['registration']['field']}", timeout=60) as got:
        (tmp_path / "ddf.nii.gz").write_bytes(got.read())
    assert torch.from_numpy(nib.load(tmp_path / "ddf.nii.gz").get_fdata()).isfinite().all()
