# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The page of an evaluation and the small pictures on it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_summary import ROWS, dice, row

from scripts.atomic import write_text_atomically
from scripts.evaluation_page import write_page
from scripts.overview import CARRIED, FIXED, HEAD, WIDTH, write_overview
from scripts.summary import Experiment, summarise

NASTY = "<script>alert('x')</script> & \"co\""


class Links(HTMLParser):
    """Addresses and tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


def page_of(rows: list[dict], folder: Path, experiment: Experiment | None = None) -> str:
    write_page(rows, summarise(rows), folder, experiment or Experiment("t"))
    return (folder / "index.html").read_text(encoding="utf-8")


def add_picture(folder: Path, method: str, of_set: str, pair: str) -> Path:
    place = folder / method / of_set / pair
    write_overview(place / "overview.png", *[torch.rand(1, 20, 20)] * 3)
    return place


def test_page_links_only_to_what_is_there(tmp_path: Path) -> None:
    (add_picture(tmp_path, "a", "brain/a", "1") / "report.html").write_text("x", encoding="utf-8")
    add_picture(tmp_path, "a", "brain/a", "2")
    add_picture(tmp_path, "b", "liver/b", "1")
    links = set(Links(page_of(ROWS, tmp_path)).links)
    expected = {"a/brain/a/1/report.html", "a/brain/a/1/overview.png", "a/brain/a/2", "a/brain/a/2/overview.png"}
    assert links == expected | {"b/liver/b/1", "b/liver/b/1/overview.png"}
    assert all((tmp_path / link).exists() for link in links)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["index.html"]


def test_best_and_worst_cases_are_by_gain(tmp_path: Path) -> None:
    for pair in "123":
        add_picture(tmp_path, "a", "brain/a", pair)
    for pair in "12":
        add_picture(tmp_path, "a", "liver/b", pair)
    captions = re.findall(r"<figcaption><b>(\w+)</b>: (.*)</figcaption>", page_of(ROWS, tmp_path))
    assert captions == [
        ("best", "1, Dice 0.500 → 0.900"),
        ("worst", "2, Dice 0.600 → 0.500"),
        ("best", "1, TRE [mm] 6.00 → 4.00"),
        ("worst", "2, TRE [mm] 8.00 → 9.00"),
    ]


def test_page_tells_failures_and_missing_runs(tmp_path: Path) -> None:
    page = page_of([*ROWS, dice("c", "1", 0.9, 0.5)], tmp_path)
    assert "b on brain/a, 3: out of memory" in page and "1 of 11" in page
    assert "c on brain/a: 1 of 3 pairs" in page and "c on liver/b: 0 of 2 pairs" in page
    assert "Not everything was run" not in page_of(ROWS, tmp_path)
    assert "registrations failed.</b>" not in page_of(ROWS[:3], tmp_path)


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    rows = [
        {**dice(NASTY, NASTY, 0.5, 0.4), "set": "s" + NASTY},
        {**row("b", NASTY, error=NASTY), "set": "s" + NASTY, "unit": NASTY},
    ]
    experiment = Experiment(NASTY, None, NASTY, {NASTY: NASTY, "b": "b"})
    page = page_of(rows, tmp_path, experiment)
    assert Links(page).tags.count("script") == 1 and "alert('x')" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;co&#34;" in page


def test_addresses_are_quoted(tmp_path: Path) -> None:
    add_picture(tmp_path, "a", "brain/a", "1 #2?")
    links = Links(page_of([dice("a", "1 #2?", 0.5, 0.4)], tmp_path)).links
    assert set(links) == {"a/brain/a/1%20%232%3F", "a/brain/a/1%20%232%3F/overview.png"}


def test_complete_table_has_every_row_and_what_to_sort_by(tmp_path: Path) -> None:
    page = page_of([*ROWS, row("a", "4", dice_mean=float("nan"))], tmp_path)
    table = page[page.index('id="pairs"') :]
    assert table.count("<tr") == 1 + len(ROWS) + 1 and table.count('class="failed"') == 1
    assert '<td data-value="0.9">0.900</td>' in table and "nan" not in table.lower()


def test_page_of_nothing(tmp_path: Path) -> None:
    assert "<b>0</b><span>pairs</span>" in page_of([], tmp_path)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(picture - np.array(colour)).max(-1) < 40


def test_outlines_are_drawn_where_the_labels_end(tmp_path: Path) -> None:
    black = torch.zeros(1, 30, 30)
    fixed, moved = torch.zeros(2, 30, 30, dtype=torch.int64)
    fixed[:, 15:], moved[:, 24:] = 1, 1
    labels = {"fixed_label": fixed, "moving_label": moved, "moved_label": moved}
    write_overview(tmp_path / "o.png", black, black, black, **labels)
    picture = pixels(tmp_path / "o.png")
    assert picture.shape == (HEAD + WIDTH, 3 * WIDTH + 12, 3)
    panels = [picture[HEAD:, k * (WIDTH + 6) :][:, :WIDTH] for k in range(3)]
    for k, panel in enumerate(panels):
        assert np.nonzero(near(panel, FIXED).any(0))[0].mean() == pytest.approx(150, abs=2)
        carried = np.nonzero(near(panel, CARRIED).any(0))[0]
        assert len(carried) == 0 if k == 0 else carried.mean() == pytest.approx(240, abs=2)


def test_landmark_lines_end_where_they_should(tmp_path: Path) -> None:
    points, before = torch.tensor([[14.5], [5.0]]), torch.tensor([[0.0], [18.0]])
    black = torch.zeros(30, 30)
    write_overview(tmp_path / "o.png", black, black, black, landmarks=(points, before, 0 * before))
    picture = pixels(tmp_path / "o.png")
    line = np.nonzero(near(picture[HEAD:, WIDTH + 6 : 2 * WIDTH + 6], CARRIED).any(0))[0]
    assert line.max() == pytest.approx(23.5 * 10, abs=2)
    assert not near(picture[:, 2 * WIDTH + 12 :], CARRIED).any()


def test_volume_is_cut_across_its_thick_slices_and_turned_for_reading(tmp_path: Path) -> None:
    """The brightest voxel lies in the labelled slice at the left, front, of a volume stored in RAS order."""
    volume, label = torch.zeros(1, 30, 30, 6), torch.zeros(30, 30, 6, dtype=torch.int64)
    volume[0, 2:6, 22:28, 4] = 1
    label[10:20, 10:20, 4] = 1
    affine = torch.diag(torch.tensor([1.0, 1.0, 5.0, 1.0]))
    write_overview(tmp_path / "o.png", *[volume] * 3, fixed_label=label, spacing=(1.0, 1.0, 5.0), affine=affine)
    panel = pixels(tmp_path / "o.png")[HEAD:, :WIDTH]
    down, across = (np.nonzero((panel.min(-1) > 200).any(axis))[0].mean() for axis in (1, 0))
    # Low on axis 0 is the patient's left, shown on the right of the page; high on axis 1 is the front, shown above.
    assert across == pytest.approx(300 - 40, abs=6) and down == pytest.approx(300 - 250, abs=6)


def test_colour_and_elongated_pictures_keep_their_shape(tmp_path: Path) -> None:
    red = torch.zeros(3, 20, 40)
    red[0] = 200
    write_overview(tmp_path / "o.png", red, red, red)
    picture = pixels(tmp_path / "o.png")
    assert picture.shape[0] == HEAD + 150 and picture[HEAD + 75, 150].tolist() == [255, 0, 0]


def test_unfinished_file_leaves_the_old_one(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "new" / "a.txt", "ä")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(tmp_path / "new" / "a.txt", "half" + "\ud800")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "ä"
    assert len(list((tmp_path / "new").iterdir())) == 1
