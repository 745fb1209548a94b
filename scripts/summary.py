# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What the rows of an evaluation say together.

A row is one method on one pair: `id`, `set`, `method`, `unit`, `error` (None unless the method failed) and numbers;
a number that is missing is None or NaN. `<column>_before` is the state before registration.

A pair that a method could not register still counts. Leaving it out would flatter a tool that gives up on the hard
pairs, so wherever methods are compared, such a pair counts as the state before registration (its user is left with
that), taken from another method's row if need be. Plain column means are over the completed pairs, as they are
usually given.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import InputError

Row = Mapping[str, Any]
LABELS = {
    "dice_mean": "Dice",
    "dice_groups": "Dice of groups",
    "tre_mean": "TRE",
    "tre_median": "median TRE",
    "rtre_median": "median rTRE",
    "centroid_tre": "centroid TRE",
    "hd95": "HD95",
    "fold_pct": "folding",
    "tre_mean_voxel": "TRE",
    "tre_median_voxel": "median TRE",
    "seconds": "time",
    "peak_mb": "peak memory",
}
UNITS = {"fold_pct": "%", "seconds": "s", "peak_mb": "MB", "tre_mean_voxel": "voxels", "tre_median_voxel": "voxels"}
LENGTHS = ("tre_mean", "tre_median", "centroid_tre", "hd95")  # in the unit of the set
WORDS = ("id", "set", "method", "unit", "error")


@dataclass(frozen=True)
class Experiment:
    """How an evaluation is presented.

    Attributes:
        title: heading of the page and the plot.
        measure: column to plot; None for the headline of each set.
        axis: name of the quantity that the methods vary in; None for a plain comparison of methods (box plots).
        values: method -> its value on that axis. Numbers (infinity too) give lines, words give bars.
    """

    title: str = "Evaluation"
    measure: str | None = None
    axis: str | None = None
    values: Mapping[str, float | str] = field(default_factory=dict)

    def check(self, methods: Iterable[str]) -> None:
        """Raise `InputError` unless every method that is evaluated has a place on the axis."""
        missing = [method for method in methods if method not in self.values]
        if self.axis is not None and missing:
            raise InputError(f"experiment: values has no entry for {', '.join(missing)}; '{self.axis}' needs one each")


@dataclass(frozen=True)
class Outcome:
    """One column of one method on one pair; `replaced` when `value` is that before registration for want of one."""

    id: str
    value: float
    before: float | None
    replaced: bool


def finite(value: Any) -> float | None:
    """A number, or None for everything else (None, NaN, infinity, words, truth values)."""
    if isinstance(value, (str, bytes, bool)) or not hasattr(value, "__float__"):
        return None
    return float(value) if math.isfinite(value) else None


def higher_is_better(column: str) -> bool:
    """Whether more of it is better: overlaps."""
    return column.startswith("dice")


def unit_of(column: str, unit: str | None) -> str:
    """Unit of a column in a set whose lengths are in `unit`; "" for none."""
    column = column.removesuffix("_before")
    return (unit or "") if column in LENGTHS else UNITS.get(column, "")


def label_of(column: str, unit: str | None) -> str:
    """Name of a column for readers, with its unit."""
    name, unit = column.removesuffix("_before"), unit_of(column, unit)
    text = LABELS.get(name, name.replace("_", " ")) + (f" [{unit}]" if unit else "")
    return text if name == column else f"{text} before"


def rows_by_set(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of each set, sets in order of appearance."""
    sets: dict[str, list[Row]] = {}
    for row in rows:
        sets.setdefault(row["set"], []).append(row)
    return sets


def methods_of(rows: Iterable[Row]) -> list[str]:
    """Methods in order of appearance."""
    return list(dict.fromkeys(row["method"] for row in rows))


def set_unit(rows: Iterable[Row]) -> str | None:
    """Unit of the lengths of a set's rows; a failed row may lack it."""
    return next((row["unit"] for row in rows if row.get("unit")), None)


def headline(rows: Sequence[Row]) -> str:
    """The column by which the methods of a set are compared: `dice_mean`, `tre_mean`, or without truth `fold_pct`."""
    for column in ("dice_mean", "tre_mean"):
        if any(finite(row.get(key)) is not None for row in rows for key in (column, f"{column}_before")):
            return column
    return "fold_pct"


def outcomes(rows: Sequence[Row], column: str) -> dict[str, list[Outcome]]:
    """One column of one set's rows, by method; a pair without a value counts as before registration.

    Pairs for which neither is known (no truth; or a column without a state before, such as seconds) are left out. So
    are failed pairs where folding is asked for, since not to move at all is no merit there.
    """
    before: dict[str, float] = {}
    for row in rows:
        value = finite(row.get(f"{column}_before"))
        if value is not None:
            before.setdefault(row["id"], value)
    found: dict[str, list[Outcome]] = {method: [] for method in methods_of(rows)}
    for row in rows:
        value, start = finite(row.get(column)), before.get(row["id"])
        chosen = start if value is None and column != "fold_pct" else value
        if chosen is not None:
            found[row["method"]].append(Outcome(row["id"], chosen, start, value is None))
    return found


def gain_of(outcome: Outcome, column: str) -> float | None:
    """How much better than before registration, > 0 for better whichever way the column points; None if unknown."""
    if outcome.before is None:
        return None
    change = outcome.value - outcome.before
    return change if higher_is_better(column) else -change


def statistics_of(values: Sequence[float]) -> dict[str, Any]:
    """`n`, `mean`, `sd` (divided by n - 1; None for one value) and `median`; None where there is no value."""
    return {
        "n": len(values),
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "median": statistics.median(values) if values else None,
    }


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Summary of an evaluation, JSON-able.

    Failed pairs (see the top of this module): they are counted and their reasons kept; `columns` are over the completed
    pairs; `headline_with_failures` and `share_better` count a failed pair as the state before registration.

    Returns:
        methods: names in order.
        sets: name -> `headline` (column), `unit`, `n` (pairs), `before` (column -> statistics over the pairs) and
            `methods`: name -> `n`, `n_failed`, `failures` (`id`, `reason`), `n_missing` (pairs of the set without a row
            of this method), `columns` (column -> statistics), `headline_with_failures` (statistics), `worst_change`
            (largest loss of the headline among the completed pairs, in its own sign: lowest change of Dice, highest of
            TRE; None for a set without truth), `worst_pair`, `share_better` (of all pairs with truth, in [0, 1]).
        all_sets: `n_sets` and macro averages that weigh every set alike: `before` (`headlines`, `columns`) and
            `methods`: name -> `n`, `n_failed`, `n_missing`, `headlines_with_failures`, `columns`, each column with
            `n_sets`, `mean` and `sd` over the sets. Lengths in different units are averaged apart (`tre_mean [mm]`),
            single labels not at all.
        Statistics are those of `statistics_of`.
    """
    methods = methods_of(rows)
    sets = {name: _summarise_set(of_set) for name, of_set in rows_by_set(rows).items()}
    macro = {method: _across_sets(sets.values(), method) for method in methods}
    return {
        "methods": methods,
        "sets": sets,
        "all_sets": {"n_sets": len(sets), "before": _before_across_sets(list(sets.values())), "methods": macro},
    }


def _summarise_set(rows: Sequence[Row]) -> dict[str, Any]:
    column, ids = headline(rows), list(dict.fromkeys(row["id"] for row in rows))
    compared = outcomes(rows, column)
    keys = dict.fromkeys(key for row in rows for key in row if key not in WORDS and finite(row[key]) is not None)
    before: dict[str, dict[str, float]] = {}
    for row in rows:
        for key in keys:
            if key.endswith("_before") and (value := finite(row.get(key))) is not None:
                before.setdefault(key.removesuffix("_before"), {}).setdefault(row["id"], value)
    return {
        "headline": column,
        "unit": set_unit(rows),
        "n": len(ids),
        "before": {key: statistics_of(list(values.values())) for key, values in before.items()},
        "methods": {
            method: _summarise_method([row for row in rows if row["method"] == method], column, keys, found, len(ids))
            for method, found in compared.items()
        },
    }


def _summarise_method(
    rows: Sequence[Row], column: str, keys: Iterable[str], found: Sequence[Outcome], pairs: int
) -> dict[str, Any]:
    failed = [row for row in rows if row.get("error")]
    numbers = {key: [v for row in rows if (v := finite(row.get(key))) is not None] for key in keys}
    gains = [(gain, outcome) for outcome in found if (gain := gain_of(outcome, column)) is not None]
    completed = [(gain, outcome.id) for gain, outcome in gains if not outcome.replaced]
    worst, pair = min(completed) if completed and column != "fold_pct" else (None, None)
    if worst is not None and not higher_is_better(column):
        worst = -worst + 0.0  # no minus zero
    return {
        "n": len(rows),
        "n_failed": len(failed),
        "failures": [{"id": row["id"], "reason": str(row["error"])} for row in failed],
        "n_missing": pairs - len({row["id"] for row in rows}),
        "columns": {key: statistics_of(values) for key, values in numbers.items() if values},
        "headline_with_failures": statistics_of([outcome.value for outcome in found]),
        "worst_change": worst,
        "worst_pair": pair,
        "share_better": statistics.fmean(gain > 1e-9 for gain, _ in gains) if gains and column != "fold_pct" else None,
    }


def _average(values: Iterable[tuple[str, float | None]]) -> dict[str, Any]:
    """Mean and deviation over sets of what has one name."""
    collected: dict[str, list[float]] = {}
    for key, value in values:
        if value is not None:
            collected.setdefault(key, []).append(value)
    found = {key: statistics_of(numbers) for key, numbers in collected.items()}
    return {key: {"n_sets": s["n"], "mean": s["mean"], "sd": s["sd"]} for key, s in found.items()}


def scale_of(column: str, unit: str | None) -> str:
    """Name under which a column is averaged over sets: lengths in different units stay apart."""
    return f"{column} [{unit}]" if column.removesuffix("_before") in LENGTHS else column


def _across_sets(sets: Iterable[dict[str, Any]], method: str) -> dict[str, Any]:
    present = [(s, s["methods"][method]) for s in sets if method in s["methods"]]
    return {
        **{key: sum(m[key] for _, m in present) for key in ("n", "n_failed", "n_missing")},
        "headlines_with_failures": _average(
            (scale_of(s["headline"], s["unit"]), m["headline_with_failures"]["mean"]) for s, m in present
        ),
        "columns": _average(
            (scale_of(column, s["unit"]), values["mean"])
            for s, m in present
            for column, values in m["columns"].items()
            if column.removesuffix("_before") in LABELS
        ),
    }


def _before_across_sets(sets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    means = [(s, column, v["mean"]) for s in sets for column, v in s["before"].items() if column in LABELS]
    return {
        "headlines": _average((scale_of(c, s["unit"]), mean) for s, c, mean in means if c == s["headline"]),
        "columns": _average((scale_of(column, s["unit"]), mean) for s, column, mean in means),
    }
