# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The running server of MONAI Label with our app and the real model (`make test-label`; else skipped)."""

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
from dataclasses import dataclass
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
from test_monai_label import FIXED, ROOT, SLICER, WRONG, ohif_params, slicer_params, write_studies

pytest.importorskip("monailabel", reason="monailabel is not installed (requirements-monailabel.txt)")
from fastapi import FastAPI, UploadFile  # these need it
from fastapi.testclient import TestClient

from scripts.errors import InputError
from scripts.monai_label.gate import Gate
from scripts.monai_label.studies import Series, Studies  # needs monailabel


@dataclass(frozen=True)
class Server:
    """A running server: where it is, its studies, its temporary files, what it logged."""

    url: str
    studies: Path
    temporary: Path
    log: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, studies = tmp_path_factory.mktemp("server"), write_studies(tmp_path_factory.mktemp("outside"))
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


def test_the_datastore_keeps_names_inside(tmp_path: Path) -> None:
    store = Studies(str(write_studies(tmp_path)), extensions=["*.png", "*.nii.gz"])
    assert store.images() == ["broken", "fixed", "moving", "v_fixed", "v_moving"], "not what leads out"
    assert store.get_image_uri("leak") == "" and store.get_image_uri("moving").endswith("moving.png")
    store.add_image("moved", str(tmp_path / "studies" / "fixed.png"), {"promptreg": "moved"})
    assert "moved" not in store.images() and store.get_image_uri("moved")


def test_series_of_dicomweb_are_known_by_their_uid(tmp_path: Path) -> None:
    """MONAI Label's own datastore joins whatever it is asked for to a path."""
    store = MagicMock()
    store.list_images.return_value = ["1.2.3", "1.2.4"]
    store.get_image_uri.side_effect = lambda uid: str(tmp_path / f"{uid}.nii.gz")
    series = Series(store)
    assert series.place("1.2.4", "image") == tmp_path / "1.2.4.nii.gz"
    for wrong in ("../../etc", "1.2", "", None, ["1.2.3"]):
        with pytest.raises(InputError, match=r"other_image: .* is no UID"):
            series.place(wrong, "other_image")
    assert store.get_image_uri.call_count == 1


def test_requests_that_do_not_tell_their_length_are_counted() -> None:
    app = FastAPI()

    @app.put("/")
    def size(file: UploadFile) -> int:
        return file.size or 0

    client = TestClient(Gate(app, most=2000))
    for length, status in ((100, 200), (5000, 413)):
        body = form("file", b"x" * length, "x.png")
        answer = client.put(
            "/", content=iter([body[:50], body[50:]]), headers={"Content-Type": "multipart/form-data; boundary=b"}
        )
        assert "content-length" not in answer.request.headers and answer.status_code == status, answer.text
