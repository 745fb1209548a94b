# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Evaluations through MONAI's engine: results, failures, interruption, other settings, two processes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
from PIL import Image
from skimage import data
from skimage.transform import resize

from scripts.errors import InputError, reason

ROOT = Path(__file__).resolve().parents[1]
FILES = [str(ROOT / "configs" / name) for name in ("inference.yaml", "evaluate.yaml")]
SIZE, SHIFT = 96, (4, -6)  # a place in the fixed image lies at place + SHIFT in the moving one


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    """Two pictures of different size, the moving one shifted, with labels and landmarks, and a pair that is damaged."""
    folder = tmp_path / "data"
    folder.mkdir()
    whole = 255 * resize(data.retina()[..., 1], (SIZE + 20, SIZE + 20), anti_aliasing=True)
    label = np.zeros_like(whole)
    label[40:70, 50:80] = 1
    for side, (row, column), size in (("fixed", (10, 10), SIZE), ("moving", (10 - SHIFT[0], 10 - SHIFT[1]), SIZE + 4)):
        cut = slice(row, row + size), slice(column, column + size)
        for name, array in ((side, whole), (f"{side}_label", label)):
            Image.fromarray(array[cut].round().astype(np.uint8)).save(folder / f"{name}.png")
    points = np.array([[20, 30], [50, 60], [70, 25]])
    for side, at in (("fixed", points), ("moving", points + SHIFT)):
        np.savetxt(folder / f"{side}.csv", at, delimiter=",", header="i,j", comments="", fmt="%d")
    (folder / "broken.png").write_bytes(b"no picture")
    paths = {}
    for side in ("fixed", "moving"):
        paths |= {side: f"{side}.png", f"{side}_label": f"{side}_label.png", f"{side}_landmarks": f"{side}.csv"}
    pairs = [{"id": "good", **paths}, {"id": "bad", "fixed": "broken.png", "moving": "moving.png"}]
    path = folder / "datalist.json"
    path.write_text(json.dumps({"name": "set", "unit": "px", "pairs": pairs}), encoding="utf-8")
    return path


def only_good(datalist: Path) -> Path:
    content = json.loads(datalist.read_text(encoding="utf-8"))
    datalist.write_text(json.dumps({**content, "pairs": content["pairs"][:1]}), encoding="utf-8")
    return datalist


def evaluate(datalist: Path, out: Path, **overrides: Any) -> list[dict[str, str]]:
    settings = {"methods": ["identity", "centre", "demons"], "device": "cpu", "logging_file": False, **overrides}
    try:
        monai.bundle.run(config_file=FILES, datalist=str(datalist), output_dir=str(out), **settings)
    except RuntimeError as error:  # MONAI's wrapping of what an expression raises
        raise InputError(reason(error)) from error
    return rows(out)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def same(row: dict[str, str]) -> dict[str, str]:
    """What repeats exactly; of demons, whose sampling does not, what was there before."""
    if row["method"] == "demons":
        return {key: row[key] for key in ("id", "set", "method", "tre_mean_before", "error")}
    return {key: value for key, value in row.items() if key not in ("seconds", "peak_mb")}


def test_figures_of_methods_whose_answer_is_known(datalist: Path, tmp_path: Path) -> None:
    found = {row["method"]: row for row in evaluate(only_good(datalist), tmp_path / "out")}
    distance = float(np.hypot(*SHIFT))
    identity, centre, demons = (found[name] for name in ("identity", "centre", "demons"))
    assert list(identity)[:4] == ["id", "set", "method", "unit"]
    assert identity["dice_mean"] == identity["dice_mean_before"]
    assert float(identity["tre_mean"]) == pytest.approx(distance, rel=1e-4)
    # The moving picture is 4 pixels larger, so centring moves by 2: from (4, -6) to (2, -8).
    assert float(centre["tre_mean"]) == pytest.approx(np.hypot(2, 8), rel=1e-4)
    assert float(demons["tre_mean"]) < 0.5 * distance and float(demons["dice_mean"]) > float(identity["dice_mean"])
    assert float(demons["tre_mean_before"]) == pytest.approx(distance, rel=1e-4)
    assert float(demons["agreement"]) < 0.01 and identity["agreement"] == ""
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert set(summary) >= {"sets", "skipped"}
    for name in ("index.html", "plot.png", "plot.svg", "tables.md", "tables.tex"):
        assert (tmp_path / "out" / name).stat().st_size > 0, name


def test_a_damaged_pair_is_told_and_the_rest_goes_on(datalist: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"3 of 6 registrations failed.*broken\.png"):
        evaluate(datalist, out)
    good, bad = ([row for row in rows(out) if row["id"] == name] for name in ("good", "bad"))
    assert len(good) == len(bad) == 3
    assert all(row["error"] == "" and row["dice_mean"] for row in good)
    assert all("broken.png" in row["error"] and row["dice_mean"] == "" for row in bad)


def test_what_is_done_is_not_done_again(datalist: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = evaluate(only_good(datalist), out)
    results = sorted(out.glob("*/set/good/metrics.json"))
    times = [path.stat().st_mtime_ns for path in results]
    # As a process leaves it that is killed: one result unfinished.
    results[1].unlink()
    unfinished = results[1].parent / ".unfinished-x"
    unfinished.mkdir()
    (unfinished / "moved.png").write_bytes(b"half")
    again = evaluate(datalist, out)
    assert [same(row) for row in again] == [same(row) for row in first]
    assert not unfinished.exists()
    changed = [path.stat().st_mtime_ns != time for path, time in zip(results, times, strict=True)]
    assert changed == [False, True, False]


def test_other_settings_are_not_mixed_in(datalist: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(only_good(datalist), out)
    with pytest.raises(InputError, match=r"other settings \(iterations was 100, is 5\)"):
        evaluate(datalist, out, **{"method_defs::demons::iterations": 5})
    Image.fromarray(np.eye(96, dtype=np.uint8)).save(datalist.parent / "fixed.png")
    with pytest.raises(InputError, match="other files"):
        evaluate(datalist, out)


def test_unknown_and_missing_methods(datalist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"unknown \['nonsense'\]; choose from .*'promptreg'"):
        evaluate(datalist, tmp_path / "out", methods=["nonsense"])
    monkeypatch.setattr("scripts.methods.demons.Demons.missing", lambda self: "pip install demons")
    found = evaluate(only_good(datalist), tmp_path / "out")
    assert {row["method"] for row in found} == {"identity", "centre"}
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["skipped"] == {
        "demons": "pip install demons"
    }
    with pytest.raises(InputError, match=r"none of .* is installed; pip install demons"):
        evaluate(datalist, tmp_path / "out", methods=["demons"])


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(datalist: Path, tmp_path: Path) -> None:
    settings = {
        "methods": ["identity", "centre", "promptreg"],
        "sampling::count": 2,
        "prior_fit::levels": [{"size": 32, "controls": 4, "steps": 10}],
        "fit::levels": [{"size": 32, "controls": 4, "steps": 4}],
    }
    one = evaluate(only_good(datalist), tmp_path / "one", **settings)
    options = {
        "config_file": [*FILES, str(ROOT / "configs" / "mgpu_evaluate.yaml")],
        "datalist": datalist,
        "output_dir": tmp_path / "two",
        **settings,
    }
    call = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "monai.bundle",
        "run",
    ]
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*call, *words],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=300,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert [same(row) for row in rows(tmp_path / "two")] == [same(row) for row in one]
