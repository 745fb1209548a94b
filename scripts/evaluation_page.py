# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The page of an evaluation: what was run, who did best, where it went wrong.

It shows what `summary`, `tables`, `plots` and `overview` have made and computes no figure of its own. Pictures and the
reports of single pairs are linked by relative path, so the folder can be moved or zipped as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined

from .atomic import write_text_atomically
from .summary import (
    Experiment,
    Outcome,
    Row,
    finite,
    gain_of,
    label_of,
    outcomes,
    rows_by_set,
    set_unit,
)
from .tables import detail_table, number, overview_table

TEMPLATE = Path(__file__).with_suffix(".html.j2")
RESULTS = (
    "dice_mean_before",
    "dice_mean",
    "tre_mean_before",
    "tre_mean",
    "tre_median",
    "centroid_tre",
    "hd95",
    "fold_pct",
    "seconds",
    "peak_mb",
)


def write_page(rows: Sequence[Row], summary: dict[str, Any], folder: str | Path, experiment: Experiment) -> None:
    """Write `folder/index.html`.

    Args:
        rows: see `summary`; summary: of these rows.
        folder: of the evaluation, with `plot.svg` and each pair's files in `<method>/<set>/<id>/`. Pictures and links
            whose files are not there are left out.
        experiment: its title heads the page.
    """
    experiment.check(summary["methods"])
    folder = Path(folder)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        experiment=experiment,
        methods={method: _place(experiment, method) for method in summary["methods"]},
        sets={name: _describe_set(of_set) for name, of_set in summary["sets"].items()},
        tiles=_tiles(summary),
        failures=_failures(summary),
        missing=_missing(summary),
        overview=overview_table(summary),
        details=[detail_table(summary, name) for name in summary["sets"]],
        has_plot=(folder / "plot.svg").is_file(),
        cases=_cases(rows, summary, folder),
        pairs=_pairs(rows, folder),
    )
    write_text_atomically(folder / "index.html", page)


def _place(experiment: Experiment, method: str) -> str:
    """Where a method lies on the axis of the experiment, in words; "" without an axis."""
    if experiment.axis is None:
        return ""
    value = experiment.values[method]
    return f"{experiment.axis}: {value if isinstance(value, str) else f'{value:g}'.replace('inf', '∞')}"


def _describe_set(of_set: dict[str, Any]) -> str:
    pairs = f"{of_set['n']} pair{'s' if of_set['n'] != 1 else ''}"
    if of_set["headline"] == "fold_pct":
        return f"{pairs}, no truth: folding is shown, nothing is ranked"
    return f"{pairs}, compared by {label_of(of_set['headline'], of_set['unit'])}"


def _tiles(summary: dict[str, Any]) -> dict[str, str]:
    found = summary["all_sets"]["methods"].values()
    return {
        "methods": str(len(summary["methods"])),
        "sets": str(len(summary["sets"])),
        "pairs": str(sum(of_set["n"] for of_set in summary["sets"].values())),
        "registrations failed": f"{sum(m['n_failed'] for m in found)} of {sum(m['n'] for m in found)}",
    }


def _failures(summary: dict[str, Any]) -> list[str]:
    """What failed and why, in words; pairs of a set that failed for one reason together."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for name, of_set in summary["sets"].items():
        for method, found in of_set["methods"].items():
            for failure in found["failures"]:
                alike.setdefault((method, name, failure["reason"]), []).append(failure["id"])
    return [
        f"{method} on {name}, {_pairs_in_words(ids, summary['sets'][name]['n'])}: {reason}"
        for (method, name, reason), ids in alike.items()
    ]


def _pairs_in_words(ids: Sequence[str], total: int) -> str:
    return f"all {total} pairs" if len(ids) == total > 1 else ", ".join(ids)


def _missing(summary: dict[str, Any]) -> list[str]:
    """What was not run at all, in words."""
    return [
        f"{method} on {name}: {found['n'] if found else 0} of {of_set['n']} pairs"
        for name, of_set in summary["sets"].items()
        for method in summary["methods"]
        if (found := of_set["methods"].get(method)) is None or found["n_missing"]
    ]


def _address(folder: Path, *parts: str) -> str | None:
    """Relative address of a file or folder of the evaluation, if it is there."""
    path = "/".join(parts)
    return quote(path) if (folder / path).exists() else None


def _home(folder: Path, method: str, name: str, identity: str) -> str | None:
    """Where a pair's result is best looked at: its report, else its folder."""
    place = (method, name, identity)
    return _address(folder, *place, "report.html") or _address(folder, *place)


def _cases(rows: Sequence[Row], summary: dict[str, Any], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Best and worst pair of each method in each set, among those that have a picture."""
    cases: dict[str, list[dict[str, Any]]] = {method: [] for method in summary["methods"]}
    for name, of_set in rows_by_set(rows).items():
        column = summary["sets"][name]["headline"]
        for method, found in outcomes(of_set, column).items():
            known = [(_merit(o, column), o) for o in found if not o.replaced]
            ranked = [(merit, o) for merit, o in known if merit is not None]
            ranked = [(merit, o) for merit, o in ranked if _address(folder, method, name, o.id, "overview.png")]
            if not ranked:
                continue
            ranked.sort(key=lambda pair: pair[0])
            chosen = {"best": ranked[-1][1], "worst": ranked[0][1]} if len(ranked) > 1 else {"only": ranked[0][1]}
            pictures = [
                {
                    "word": word,
                    "id": outcome.id,
                    "text": _change(outcome, column, set_unit(of_set)),
                    "picture": _address(folder, method, name, outcome.id, "overview.png"),
                    "link": _home(folder, method, name, outcome.id),
                }
                for word, outcome in chosen.items()
            ]
            cases[method].append({"set": name, "pictures": pictures})
    return {method: found for method, found in cases.items() if found}


def _merit(outcome: Outcome, column: str) -> float | None:
    """What cases are ranked by: the gain; without truth, how little the map folds."""
    return -outcome.value if column == "fold_pct" else gain_of(outcome, column)


def _change(outcome: Outcome, column: str, unit: str | None) -> str:
    value = number(outcome.value, column)
    if column != "fold_pct":
        value = f"{number(outcome.before, column)} → {value}"
    return f"{label_of(column, unit)} {value}"


def _pairs(rows: Sequence[Row], folder: Path) -> dict[str, Any]:
    """The table of everything: header and rows of texts with the values to sort by."""
    present = {key for row in rows for key in row if finite(row[key]) is not None}
    columns = [column for column in RESULTS if column in present]
    units = {row["unit"] for row in rows if row.get("unit")}
    unit = units.pop() if len(units) == 1 else None  # else lengths are in the unit that their row says
    table = []
    for row in rows:
        values = [finite(row.get(column)) for column in columns]
        table.append(
            {
                "words": [row["set"], row["id"], row["method"], row.get("unit") or ""],
                "link": _home(folder, row["method"], row["set"], row["id"]),
                "cells": [(number(v, c), "" if v is None else repr(v)) for v, c in zip(values, columns, strict=True)],
                "error": str(row["error"]) if row.get("error") else "",
            }
        )
    return {"header": [label_of(column, unit) for column in columns], "rows": table}
