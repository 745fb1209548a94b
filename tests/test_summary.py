# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Summary, tables and plots of an evaluation whose answers can be worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from scripts.errors import InputError
from scripts.plots import plot, write_plot
from scripts.summary import Experiment, headline, summarise
from scripts.tables import detail_table, escape_latex, overview_table, to_latex, to_markdown, write_tables


def row(method: str, pair: str, of_set: str = "brain/a", **columns: Any) -> dict[str, Any]:
    """A row as the engine makes it; columns that are not given are None."""
    names = ("dice_mean", "tre_mean", "fold_pct", "seconds")
    return {"id": pair, "set": of_set, "method": method, "unit": "mm", "error": None} | dict.fromkeys(names) | columns


def dice(method: str, pair: str, value: float, before: float, of_set: str = "brain/a") -> dict[str, Any]:
    return row(method, pair, of_set, dice_mean=value, dice_mean_before=before)


def tre(
    method: str, pair: str, value: float, before: float, of_set: str = "liver/b", unit: str = "mm"
) -> dict[str, Any]:
    return row(method, pair, of_set, tre_mean=value, tre_mean_before=before, unit=unit)


ROWS = [
    dice("a", "1", 0.9, 0.5),
    dice("a", "2", 0.5, 0.6),
    dice("a", "3", 0.7, 0.4),
    dice("b", "1", 0.8, 0.5),
    dice("b", "2", 0.9, 0.6),
    row("b", "3", error="out of memory"),  # the state before is told by method a
    tre("a", "1", 4.0, 6.0),
    tre("a", "2", 9.0, 8.0),
    tre("b", "1", 3.0, 6.0),
    tre("b", "2", 5.0, 8.0),
]


def test_statistics_of_completed_pairs() -> None:
    found = summarise(ROWS)["sets"]["brain/a"]["methods"]
    assert found["a"]["columns"]["dice_mean"] == pytest.approx({"n": 3, "mean": 0.7, "sd": 0.2, "median": 0.7})
    assert found["b"]["columns"]["dice_mean"] == pytest.approx(
        {"n": 2, "mean": 0.85, "sd": 0.1 / 2**0.5, "median": 0.85}
    )
    assert found["a"]["worst_change"] == pytest.approx(-0.1) and found["a"]["worst_pair"] == "2"
    assert found["a"]["share_better"] == pytest.approx(2 / 3)


def test_failed_pair_counts_as_before() -> None:
    found = summarise(ROWS)["sets"]["brain/a"]["methods"]["b"]
    assert (found["n"], found["n_failed"], found["failures"]) == (3, 1, [{"id": "3", "reason": "out of memory"}])
    assert found["headline_with_failures"]["n"] == 3
    assert found["headline_with_failures"]["mean"] == pytest.approx((0.8 + 0.9 + 0.4) / 3)
    assert found["share_better"] == pytest.approx(2 / 3)
    assert found["worst_change"] == pytest.approx(0.3)  # of what it completed, the smallest gain


def test_failed_pair_that_nobody_measured_is_counted_only_as_failed() -> None:
    found = summarise([row("a", "1", error="x"), dice("a", "2", 0.8, 0.5)])["sets"]["brain/a"]["methods"]["a"]
    assert found["n_failed"] == 1 and found["headline_with_failures"]["n"] == 1
    assert found["headline_with_failures"]["sd"] is None


def test_error_is_better_when_lower() -> None:
    found = summarise(ROWS)["sets"]["liver/b"]["methods"]
    assert found["a"]["worst_change"] == pytest.approx(1.0) and found["a"]["worst_pair"] == "2"
    assert found["b"]["worst_change"] == pytest.approx(-3.0)
    assert found["a"]["share_better"] == 0.5


def test_missing_and_infinite_values_are_no_numbers() -> None:
    rows = [dice("a", "1", math.nan, 0.5), dice("a", "2", 0.7, math.nan), row("a", "3", seconds=math.inf)]
    summary = summarise(rows)
    found = summary["sets"]["brain/a"]["methods"]["a"]
    assert found["columns"]["dice_mean"]["n"] == 1 and "seconds" not in found["columns"]
    assert found["headline_with_failures"]["mean"] == pytest.approx(0.6)  # the first pair as before
    assert found["worst_change"] is None  # before is unknown where after is known
    json.dumps(summary, allow_nan=False)


def test_pairs_that_were_not_run_are_no_failures() -> None:
    summary = summarise([*ROWS, dice("c", "1", 0.99, 0.5)])
    found = summary["sets"]["brain/a"]["methods"]["c"]
    assert found["n_failed"] == 0 and found["n_missing"] == 2
    (line,) = [cells for cells in overview_table(summary).rows if cells[0].text == "c"]
    assert line[1].text == "0.990 (2 missing)" and not line[1].bold  # the best mean, but of one pair


def test_headline_is_the_best_truth_there_is() -> None:
    assert headline([row("a", "1", tre_mean=3.0), dice("a", "2", 0.5, 0.4)]) == "dice_mean"
    assert headline([row("a", "1", tre_mean=3.0, fold_pct=0.1)]) == "tre_mean"
    assert headline([row("a", "1", fold_pct=0.1)]) == "fold_pct"


def test_sets_weigh_alike_and_units_stay_apart() -> None:
    rows = [*ROWS, dice("a", "9", 0.3, 0.2, "heart/c"), dice("b", "9", 0.1, 0.2, "heart/c")]
    rows += [tre("a", "1", 100.0, 200.0, "air/d", "px")]
    macro = summarise(rows)["all_sets"]
    assert macro["methods"]["a"]["headlines_with_failures"]["dice_mean"] == pytest.approx(
        {"n_sets": 2, "mean": 0.5, "sd": 0.4 / 2**0.5}
    )
    assert macro["methods"]["b"]["headlines_with_failures"]["dice_mean"]["mean"] == pytest.approx(0.4)
    assert macro["methods"]["a"]["headlines_with_failures"]["tre_mean [mm]"]["mean"] == pytest.approx(6.5)
    assert macro["methods"]["a"]["headlines_with_failures"]["tre_mean [px]"]["mean"] == 100.0
    assert macro["before"]["headlines"]["dice_mean"]["mean"] == pytest.approx((0.5 + 0.2) / 2)


def test_bold_is_best_in_the_direction_of_the_column() -> None:
    table = overview_table(summarise(ROWS))
    assert [cell.text for cell in table.header] == ["method", "brain/a, Dice, n = 3", "liver/b, TRE [mm], n = 2"]
    bold = {(cells[0].text, k) for cells in table.rows for k, cell in enumerate(cells) if cell.bold}
    # a and b tie in Dice once the failed pair is counted (0.700); 4.00 is a better error than 6.50.
    assert bold == {("a", 1), ("b", 1), ("b", 2)}
    assert table.rows[0][1].text == "0.500 ± 0.100" and table.rows[2][1].text == "0.700 ± 0.265 (1 failed)"


def test_nothing_is_ranked_without_truth() -> None:
    summary = summarise([row("a", "1", fold_pct=0.0), row("b", "1", fold_pct=2.0), row("c", "1", error="x")])
    cells = [cell for line in overview_table(summary).rows for cell in line]
    assert not any(cell.bold for cell in cells)
    assert [cell.text for cell in overview_table(summary).turned("set").rows[0]][1:] == [
        "–",
        "0.00",
        "2.00",
        "– (1 failed)",
    ]


def test_table_with_many_sets_has_them_as_rows() -> None:
    rows = [dice(method, "1", 0.5, 0.4, f"brain/{k}") for k in range(9) for method in "ab"]
    table = overview_table(summarise(rows))
    assert [cell.text for cell in table.header] == ["set", "before registration", "a", "b"]
    assert table.rows[-1][0].text == "mean of 9 sets, Dice" and all(len(line) == 4 for line in table.rows)


def test_details_tell_means_with_and_without_failures_apart() -> None:
    summary = summarise(ROWS)
    table = detail_table(summary, "brain/a")
    assert [cell.text for cell in table.header][2:4] == ["Dice, failures counted", "Dice"]
    assert [cell.text for cell in table.rows[2]][:6] == [
        "b", "3 (1 failed)", "0.700 ± 0.265", "0.850 ± 0.071", "+0.300", "67 %",
    ]  # fmt: skip
    table = detail_table(summary, "liver/b")  # nothing failed there
    assert [cell.text for cell in table.header][2:4] == ["TRE [mm]", "worst change"]
    assert [line[2].bold for line in table.rows] == [False, False, True]
    assert table.rows[1][3].text == "+1.00" and table.rows[2][3].text == "−3.00"


def test_latex_prints_what_was_meant() -> None:
    assert escape_latex("a_b & 5% #1 {x} ~^\\ $") == (
        r"a\_b \& 5\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$"
    )
    assert escape_latex("−0.1 ± ∞") == r"$-$0.1 $\pm$ $\infty$"
    rows = [{**found, "method": f"syn_{found['method']}&"} for found in ROWS]
    text = to_latex(overview_table(summarise(rows)))
    assert r"\begin{tabular}{lrr}" in text and r"\toprule" in text and text.count(r"\\") == 4
    assert r"syn\_b\& & \textbf{0.700 $\pm$ 0.265 (1 failed)} & \textbf{4.00 $\pm$ 1.41} \\" in text


def test_markdown_prints_what_was_meant() -> None:
    rows = [{**found, "method": f"_{found['method']}|<b>\n"} for found in ROWS]
    lines = to_markdown(overview_table(summarise(rows))).splitlines()
    assert lines[6] == r"| \_b\|\<b\> | **0.700 ± 0.265 (1 failed)** | **4.00 ± 1.41** |"
    assert lines[3] == "|---|---:|---:|"


def test_tables_are_written_for_every_set(tmp_path: Path) -> None:
    write_tables(summarise(ROWS), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tables.md", "tables.tex"]
    assert (tmp_path / "tables.tex").read_text(encoding="utf-8").count(r"\begin{table}") == 3


def test_boxes_show_a_panel_per_set_and_failed_pairs_as_before(tmp_path: Path) -> None:
    write_plot(ROWS, Experiment("t"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.png", "plot.svg"]
    panels = [panel for panel in plot(ROWS, Experiment("t")).axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == ["brain/a  (n = 3)", "liver/b  (n = 2)"]
    dots = sorted(x for some in panels[0].collections for x, _ in some.get_offsets().tolist())
    assert dots == pytest.approx([0.4, 0.5, 0.7, 0.8, 0.9, 0.9])
    assert [line.get_xdata()[0] for line in panels[0].lines if line.get_linestyle() == "--"] == [0.5]


def test_lines_end_at_infinity_and_words_give_bars() -> None:
    rows = [dice(method, "1", value, 0.2) for method, value in (("none", 0.3), ("ten", 0.6), ("five", 0.5))]
    figure = plot(rows, Experiment("t", None, "sigma", {"none": math.inf, "ten": 10, "five": 5.0}))
    (panel,) = figure.axes
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["5", "10", "∞"]
    line = panel.containers[0].lines[0]
    assert line.get_xdata().tolist() == pytest.approx([5, 10, 15]) and line.get_ydata() == pytest.approx(
        [0.5, 0.6, 0.3]
    )
    assert [one.get_ydata()[0] for one in panel.lines if one.get_linestyle() == ":"] == [0.2]
    figure = plot(rows, Experiment("t", "dice_mean", "prompt", {"none": "no", "ten": "box", "five": "click"}))
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx([0.3, 0.6, 0.5])


def test_plot_refuses_what_it_cannot_place() -> None:
    with pytest.raises(InputError, match="values has no entry for b"):
        plot(ROWS, Experiment("t", None, "sigma", {"a": 1.0}))
    with pytest.raises(InputError, match="measure 'dice', expected one of dice_mean"):
        plot(ROWS, Experiment("t", "dice"))
