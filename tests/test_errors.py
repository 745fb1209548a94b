# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Wrong input, through the real config: told before any work, by the name of the input and with what would be right."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image
from test_dicom import two_series, write_stack

from scripts.correspond import Method
from scripts.errors import InputError
from scripts.segmenters import LiteMedSAM

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "inference.yaml"
NOISE = np.random.default_rng(0).integers(0, 256, (32, 40), dtype=np.uint8)
Overrides = dict[str, Any]
Case = tuple[Callable[[Path], Overrides], str]


def png(path: Path, array: np.ndarray = NOISE) -> Path:
    Image.fromarray(array).save(path)
    return path


def nifti(path: Path, array: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), path)
    return path


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def cut(path: Path) -> Path:
    """The first half of a file."""
    content = path.read_bytes()
    return written(path, content[: len(content) // 2])


def giant(path: Path) -> Path:
    """The header of a volume that no memory holds."""
    header = nib.Nifti1Header()
    header.set_data_shape((30000,) * 3)
    return written(path, header.binaryblock + bytes(4))


def with_value(value: float) -> np.ndarray:
    array = NOISE.astype(np.float32)
    array[3, 4] = value
    return array


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


VOLUME = np.stack([NOISE] * 4, axis=-1)
CASES: dict[str, Case] = {
    # images
    "no image": (lambda _: {"moving_image": ""}, r"moving_image: none given; expected the path of an image"),
    "missing file": (lambda d: {"fixed_image": d / "no.png"}, r"fixed_image: .*no\.png: no such file; give the path"),
    "no DICOM": (
        lambda d: {"moving_image": folder(d / "dcm")},
        r"moving_image: .*holds no DICOM images.*give a folder",
    ),
    "text as PNG": (lambda d: {"fixed_image": written(d / "t.png", "hello")}, r"fixed_image: .*t\.png: cannot be read"),
    "half a PNG": (lambda d: {"fixed_image": cut(png(d / "h.png"))}, r"fixed_image: .*h\.png: cannot be read .*whole"),
    "half a NIfTI": (
        lambda d: {"moving_image": cut(nifti(d / "h.nii.gz", VOLUME))},
        r"moving_image: .*h\.nii\.gz: cannot be read .*give a whole",
    ),
    "no NIfTI inside": (
        lambda d: {"moving_image": written(d / "x.nii.gz", gzip.compress(b"hello"))},
        r"moving_image: .*x\.nii\.gz: cannot be read .*give a whole",
    ),
    "empty file": (lambda d: {"moving_image": written(d / "e.png", b"")}, r"moving_image: .*e\.png: cannot be read"),
    "unknown format": (lambda d: {"fixed_image": written(d / "a.xyz", "?")}, r"fixed_image: .*give one of .*\.nii\.gz"),
    "constant": (lambda d: {"fixed_image": png(d / "c.png", NOISE * 0)}, r"fixed_image: .*constant.*shows something"),
    "NaN": (
        lambda d: {"fixed_image": nifti(d / "n.nii", with_value(np.nan))},
        r"fixed_image: .*1 NaN or infinite values; replace",
    ),
    "infinite": (
        lambda d: {"moving_image": nifti(d / "i.nii", with_value(-np.inf))},
        r"moving_image: .*1 NaN or infinite values; replace",
    ),
    "4-D": (
        lambda d: {"moving_image": nifti(d / "f.nii", np.stack([VOLUME] * 3, axis=-1))},
        r"moving_image: .*holds 3 frames; choose one with --moving_frame \(0 to 2\)",
    ),
    "frame that is not there": (
        lambda d: {"moving_image": nifti(d / "f.nii", np.stack([VOLUME] * 3, axis=-1)), "moving_frame": 3},
        r"moving_image: .*moving_frame is 3, but the file holds 3 frames, 0 to 2; give one",
    ),
    "frame of a picture": (
        lambda _: {"fixed_frame": 1},
        r"fixed_image: .*fixed_frame is 1, but the file holds one frame, 0; give",
    ),
    "two DICOM series": (
        lambda d: {"fixed_image": two_series(d / "dcm")},
        r"fixed_image: .*holds 2 DICOM series: .*4 files.*'localizer' \(1 files.*give a folder with exactly one",
    ),
    "a DICOM slice missing": (
        lambda d: {"moving_image": write_stack(d / "dcm", (6, 9, 15, 18))},
        r"moving_image: .*at 9 and 15 mm along the stack.*is a slice missing",
    ),
    "beyond memory": (
        lambda d: {"moving_image": giant(d / "g.nii")},
        r"moving_image: .*30000x30000x30000 voxels about .* GB of memory are needed.*crop or resample",
    ),
    "a limit of memory": (
        lambda _: {"preprocessing::transforms::0::memory": 1000},
        r"fixed_image and moving_image: to register images of 32x40 and 32x40 voxels about .*crop or resample",
    ),
    "2-D with 3-D": (
        lambda d: {"moving_image": nifti(d / "v.nii", VOLUME)},
        r"moving_image: .*3 axes but fixed_image has 2; both must be",
    ),
    "label map of another shape": (
        lambda d: {"moving_label": png(d / "l.png", NOISE[:20])},
        r"moving_label: .*\(20, 40\).*\(32, 40\).*must have the same",
    ),
    "label map in colour": (
        lambda d: {"moving_label": png(d / "l.png", np.stack([NOISE] * 3, axis=-1))},
        r"moving_label: .*is in colour; a label map has one integer per voxel",
    ),
    "too small": (
        lambda d: {"fixed_image": png(d / "s.png", NOISE[:4])},
        r"fixed_image: .*\(4, 40\); at least \(8, 8\)",
    ),
    # prompts
    "prompt outside": (
        lambda _: {"prompts": [[5, 99]]},
        r"prompts: '1': .*\[5.*99.*outside the moving image.*\[32, 40\]",
    ),
    "prompt too long": (lambda _: {"prompts": [[5, 9, 1]]}, r"prompts: '1': .*wrong length.*2 axes"),
    "prompt of words": (lambda _: {"prompts": [["a", "b"]]}, r"prompts: .*a.*b.*expected 2 numbers"),
    "no JSON": (lambda d: {"prompts": written(d / "p.json", "[[1,")}, r"prompts: .*p\.json is not valid JSON"),
    "no prompts file": (lambda d: {"prompts": d / "no.json"}, r"prompts: there is no file .*no\.json; give a JSON"),
    "an empty list": (lambda _: {"prompts": []}, r"prompts: expected a list with at least one prompt"),
    "a mask without labels": (
        lambda d: {"prompts": [{"mask": str(png(d / "m.png", NOISE * 0))}]},
        r"prompts: '1': .*m\.png has the labels \[\], but one is needed",
    ),
    "all labels negative": (
        lambda _: {"prompts": [{"points": [[5, 5], [9, 9]], "labels": [0, 0]}]},
        r"prompts: '1': all labels are 0; at least one",
    ),
    "an id twice": (
        lambda _: {"prompts": [{"id": "a", "point": [1, 1]}, {"id": "a", "point": [2, 2]}]},
        r"prompts: the ids \['a'\] are used more than once; ids must differ",
    ),
    "NaN in a prompt": (lambda _: {"prompts": [[float("nan"), 1]]}, r"prompts: '1': .*nan.* holds NaN"),
    "unknown space": (lambda _: {"prompt_space": "mm"}, r"prompt_space: unknown 'mm', expected 'voxel' or 'world'"),
    # settings
    "inside without labels": (
        lambda _: {"sampling::how": "inside"},
        r"sampling: 'inside' needs a moving label map.*give moving_label",
    ),
    "inside of nothing": (
        lambda d: {"sampling::how": "inside", "moving_label": png(d / "l.png", NOISE * 0)},
        r"sampling: 'inside' needs a moving label map with at least one label",
    ),
    "unknown sampling": (lambda _: {"sampling::how": "best"}, r"sampling: unknown way 'best', expected one of"),
    "no prompts wanted": (lambda _: {"sampling::count": 0}, r"sampling: count is 0, expected at least 1"),
    "unknown transformation": (
        lambda _: {"fit::kind": "spline"},
        r"transformation: unknown kind 'spline', expected one of.*bspline",
    ),
    "unknown term": (
        lambda _: {"objective::terms": [{"term": "ssim", "weight": 1.0}]},
        r"objective: unknown term 'ssim', expected one of .*lncc",
    ),
    "unknown loss": (
        lambda _: {"objective::terms": [{"term": "roi", "loss": "iou"}]},
        r"objective: the roi term has no loss 'iou', expected 'dice' or 'squared'",
    ),
    "unknown way of marginalisation": (
        lambda _: {"method::marginalisation::kind": "shear"},
        r"marginalisation: unknown kind 'shear', expected one of .*flip",
    ),
    "unknown start of the inversion": (
        lambda _: {"method::inversion::starts": ["middle"]},
        r"inversion: unknown starts \['middle'\], expected some of .*peak",
    ),
    "unknown option of a term": (
        lambda _: {"objective::terms": [{"term": "roi", "kernel": 3}]},
        r"objective: term 'roi' has no such option.*kernel",
    ),
    "windows of three kinds": (
        lambda _: {"objective::terms": [{"term": "lncc", "kernel": [9, 7, 5]}]},
        r"objective: kernel of lncc is \[9, 7, 5\], expected a number.* or two: \[pictures, volumes\]",
    ),
    "unknown prealignment": (
        lambda _: {"prealignment": "corner"},
        r"prealignment: unknown 'corner', expected one of \['auto', 'world', 'centre', 'features'\]",
    ),
    "unknown start": (lambda _: {"start": "zero"}, r"start: unknown 'zero', expected 'prior' or 'identity'"),
    "unknown precision": (lambda _: {"precision": "float31"}, r"precision: unknown 'float31', expected .*float32"),
    "no truth value": (lambda _: {"method::centre": "maybe"}, r"method: centre: 'maybe' is neither true nor false"),
    "negative seed": (lambda _: {"seed": -1}, r"seed: -1 is no whole number from 0 on"),
    "file in the way": (
        lambda d: {"output_dir": written(d / "file", "mine")},
        r"output_dir: .*file: cannot be written .*give a folder",
    ),
    "missing GPU": (lambda _: {"device": "cuda:77"}, r"device: 'cuda:77' was asked for but \d+ CUDA.*use 'cpu'"),
    "unknown device": (lambda _: {"device": "nonsense"}, r"device: unknown 'nonsense', expected e\.g\. 'cpu'"),
    # weights
    "wrong hash": (
        lambda d: {"checkpoint": written(d / "w.pt", "weights"), "checkpoint_sha256": "0" * 64},
        r"checkpoint: .*w\.pt has SHA-256 .*expected 0{64}",
    ),
    "weights of another family": (
        lambda d: {"checkpoint": saved(d / "w.pt", {"conv.weight": torch.zeros(3)})},
        r"checkpoint: .*w\.pt does not hold LiteMedSAM weights.*give a LiteMedSAM file",
    ),
    "no weights": (
        lambda d: {"checkpoint": written(d / "w.pt", "hello")},
        r"checkpoint: .*w\.pt cannot be read.*expected a PyTorch state dict",
    ),
    "missing weights": (lambda d: {"checkpoint": d / "no.pt"}, r"checkpoint: there is no file .*no\.pt"),
}


def overrides_of(name: str, folder: Path) -> Overrides:
    """A good pair of pictures with one thing wrong; paths as strings."""
    good = {"fixed_image": png(folder / "fixed.png"), "moving_image": png(folder / "moving.png", NOISE[::-1].copy())}
    made: Overrides = {**good, "output_dir": folder / "out", "device": "cpu", "progress": False}
    made |= CASES[name][0](folder)
    return {key: str(value) if isinstance(value, Path) else value for key, value in made.items()}


def told(error: BaseException | None) -> InputError:
    """The InputError among the causes of an error."""
    first = error
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    assert error is not None, f"no InputError among the causes of {first!r}"
    return error


@pytest.mark.parametrize("name", CASES)
def test_told_before_any_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*_: object) -> None:
        raise AssertionError("the images were encoded before the input was checked")

    monkeypatch.setattr(LiteMedSAM, "encode", encode)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the config replaces it
    overrides = overrides_of(name, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    workflow = ConfigWorkflow(str(CONFIG), workflow_type="infer", logging_file=False, **overrides)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it in one type or another
        workflow.run()
    message = str(told(caught.value))
    assert re.match(CASES[name][1], message), message
    assert "\n" not in message
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["missing file", "prompt outside", "weights of another family"])
def test_command_ends_in_one_line(name: str, tmp_path: Path) -> None:
    words = [word for key, value in overrides_of(name, tmp_path).items() for word in (f"--{key}", str(value))]
    call = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(CONFIG), *words]
    done = subprocess.run(
        call, cwd=tmp_path, capture_output=True, encoding="utf-8", errors="replace", timeout=120, check=False
    )
    assert done.returncode != 0
    *_, last = done.stderr.splitlines()
    assert last.startswith("promptreg: ")
    assert re.match(CASES[name][1], last.removeprefix("promptreg: "))
    assert done.stderr.count("promptreg: ") == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("value", "truth"), [("false", False), ("True", True), (False, False), (True, True)])
def test_words_of_the_command_line_are_truth_values(value: object, truth: bool) -> None:
    assert Method(centre=value).centre is truth  # type: ignore[arg-type]
