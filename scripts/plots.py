# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The plot of an evaluation: boxes per set and method, or what one quantity changes.

Failed pairs are drawn where they are counted, at the state before registration (see `summary`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from .atomic import written_atomically
from .errors import InputError
from .summary import (
    Experiment,
    Outcome,
    Row,
    headline,
    higher_is_better,
    label_of,
    methods_of,
    outcomes,
    rows_by_set,
    scale_of,
    set_unit,
)

INK, SOFT, FILL, EDGE, BEFORE = "#1f2933", "#5f6c7b", "#d3e6ec", "#1f6f8b", "#D55E00"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B87F00", "#56B4E9", "#AA4499", "#555555")
MARKERS = "osD^vPX*"
WIDTH = 12.0  # inches
ROUND_TICKS = (1, 2, 5)


def write_plot(rows: Sequence[Row], experiment: Experiment, folder: str | Path) -> None:
    """Write `plot.png` and `plot.svg`.

    Raises:
        InputError: a method without a place on the axis, or a measure that no row has.
    """
    figure = plot(rows, experiment)
    for suffix in ("png", "svg"):
        with (
            written_atomically(Path(folder) / f"plot.{suffix}") as path,
            matplotlib.rc_context({"svg.hashsalt": "promptreg"}),  # the same file for the same rows
        ):
            figure.savefig(path, dpi=130, metadata={"Date": None} if suffix == "svg" else None)


def plot(rows: Sequence[Row], experiment: Experiment) -> Figure:
    """The figure that `write_plot` writes."""
    experiment.check(methods_of(rows))
    sets = rows_by_set(rows)
    columns = {name: experiment.measure or headline(of_set) for name, of_set in sets.items()}
    found = {name: outcomes(of_set, columns[name]) for name, of_set in sets.items()}
    shown = [name for name in sets if any(found[name].values())]
    if experiment.measure and not shown:
        known = sorted({key for row in rows for key, value in row.items() if isinstance(value, (int, float))})
        raise InputError(
            f"experiment: no row has a number for measure '{experiment.measure}', expected one of {', '.join(known)}"
        )
    labels = {name: label_of(columns[name], set_unit(sets[name])) for name in shown}
    if experiment.axis is None:
        figure = _boxes({name: found[name] for name in shown}, columns, labels)
    else:
        groups: dict[str, list[str]] = {}
        for name in shown:
            groups.setdefault(scale_of(columns[name], set_unit(sets[name])), []).append(name)
        figure = _curves(list(groups.values()), found, experiment, columns, labels)
    figure.suptitle(experiment.title, x=0.5, fontsize=14, color=INK)
    return figure


def _style(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color("#9aa5b1")
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.grid(axis=grid, color="#e3e7ec", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _direction(column: str) -> str:
    return "higher is better" if higher_is_better(column) else "lower is better"


def _is_wide(column: str, values: Sequence[float]) -> bool:
    """Whether only a logarithmic axis shows the small ones; shares are never shown on one."""
    share = higher_is_better(column) or column == "fold_pct"
    return not share and bool(values) and min(values) > 0 and max(values) / min(values) > 30


def _boxes(found: dict[str, dict[str, list[Outcome]]], columns: dict[str, str], labels: dict[str, str]) -> Figure:
    """A panel per set with a lying box per method, over a dot per pair."""
    methods = list(dict.fromkeys(method for of_set in found.values() for method in of_set))
    across = 2 if len(found) in (2, 4) else min(3, max(1, len(found)))
    down = max(1, math.ceil(len(found) / across))
    figure = Figure(figsize=(WIDTH, 0.75 + down * (0.95 + 0.3 * len(methods))), layout="constrained", facecolor="white")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    places, failed = {method: k for k, method in enumerate(methods)}, False
    for panel in panels[len(found) :]:
        panel.set_visible(False)
    for panel, (name, of_set) in zip(panels, found.items(), strict=False):
        values = {places[method]: [o.value for o in results] for method, results in of_set.items() if results}
        _style(panel, "x")
        panel.boxplot(
            list(values.values()),
            positions=list(values),
            orientation="horizontal",
            widths=0.62,
            whis=(0, 100),
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": FILL, "edgecolor": EDGE, "linewidth": 1},
            whiskerprops={"color": EDGE},
            capprops={"color": EDGE},
            medianprops={"color": INK, "linewidth": 1.6},
        )
        ids = list(dict.fromkeys(o.id for results in of_set.values() for o in results))
        levels = dict(zip(ids, np.linspace(-0.2, 0.2, len(ids)) if len(ids) > 1 else [0.0], strict=True))
        for method, results in of_set.items():
            # Dots side by side rather than over each other: a pair has the same level in every box.
            dots = [(o.value, places[method] + levels[o.id], o.replaced) for o in results]
            for crossed, marker in ((False, "o"), (True, "x")):
                some = [(x, y) for x, y, replaced in dots if replaced == crossed]
                style: dict[str, Any] = {"color": BEFORE, "linewidths": 1.6} if crossed else {"facecolor": INK}
                if some:
                    panel.scatter(*zip(*some, strict=True), s=26 if crossed else 11, marker=marker, zorder=4, **style)
                    failed |= crossed
        before = {o.id: o.before for results in of_set.values() for o in results if o.before is not None}
        if before:
            panel.axvline(float(np.median(list(before.values()))), color=BEFORE, linestyle="--", linewidth=1.3)
        if _is_wide(columns[name], [value for some in values.values() for value in some]):
            _logarithmic(panel)
        panel.set_title(f"{name}  (n = {len(ids)})", fontsize=11)
        panel.set_xlabel(f"{labels[name]}, {_direction(columns[name])}", fontsize=9, color=SOFT)
        panel.set_yticks(range(len(methods)), methods)
        panel.set_ylim(len(methods) - 0.5, -0.5)
        panel.tick_params(axis="y", length=0, labelleft=panel.get_subplotspec().is_first_col())
    note = "Box: quartiles and median; whiskers: all pairs; dots: pairs; dashed: median before registration"
    figure.supxlabel(note + ("; crosses: failed, as before" if failed else ""), fontsize=9, color=SOFT)
    return figure


def _logarithmic(panel: Axes) -> None:
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    panel.xaxis.set_major_locator(LogLocator(subs=ROUND_TICKS if high < 500 * low else (1,)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())


def _positions(values: Sequence[float | str]) -> tuple[list[float], list[str], bool]:
    """Where the values of an axis go, what is written there, and whether the axis is logarithmic.

    Words go side by side. Infinity goes one step beyond the largest number.
    """
    if any(isinstance(value, str) for value in values):
        return [float(k) for k in range(len(values))], [str(value) for value in values], False
    numbers = [float(value) for value in values]
    known = sorted({value for value in numbers if math.isfinite(value)})
    logarithmic = len(known) > 2 and known[0] > 0 and known[-1] / known[0] >= 16
    if len(known) > 1:
        beyond = known[-1] * known[-1] / known[-2] if logarithmic else 2 * known[-1] - known[-2]
    else:
        beyond = known[0] + 1 if known else 0.0
    texts = [f"{value:g}" if math.isfinite(value) else "∞" for value in numbers]
    return [value if math.isfinite(value) else beyond for value in numbers], texts, logarithmic


def _curves(
    groups: Sequence[Sequence[str]],
    found: dict[str, dict[str, list[Outcome]]],
    experiment: Experiment,
    columns: dict[str, str],
    labels: dict[str, str],
) -> Figure:
    """A panel per measure, in it a line (or bars) per set: mean and deviation over pairs, and before registration."""
    values = experiment.values
    words = any(isinstance(value, str) for value in values.values())
    methods = list(dict.fromkeys(method for of_set in found.values() for method in of_set))
    methods = methods if words else sorted(methods, key=lambda method: float(values[method]))
    at, texts, logarithmic = _positions([values[method] for method in methods])
    places = dict(zip(methods, at, strict=True))
    figure = Figure(figsize=(WIDTH, 0.9 + 3.3 * max(1, len(groups))), layout="constrained", facecolor="white")
    for panel, names in zip(figure.subplots(max(1, len(groups)), 1, squeeze=False).flat, groups, strict=False):
        _style(panel, "y")
        for k, name in enumerate(names):
            colour, middle = COLOURS[k % len(COLOURS)], k - (len(names) - 1) / 2
            some = [(places[m], [o.value for o in results]) for m in methods if (results := found[name].get(m))]
            x, means = np.array([p for p, _ in some]), [float(np.mean(v)) for _, v in some]
            bars = [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for _, v in some]
            style: dict[str, Any] = {"color": colour, "label": name}
            if words:
                width = 0.8 / len(names)
                error = {"ecolor": INK, "elinewidth": 1, "capsize": 3}
                panel.bar(x + width * middle, means, 0.9 * width, yerr=bars, error_kw=error, **style)
            else:
                # Beside each other, so that the error bars of two sets can be told apart.
                beside = 0.006 * middle
                x = x * (max(at) / min(at)) ** beside if logarithmic else x + (max(at) - min(at)) * beside
                style |= {"marker": MARKERS[k % len(MARKERS)], "markersize": 6, "linewidth": 1.6, "capsize": 3}
                panel.errorbar(x, means, bars, elinewidth=0.9, **style)
            before = {o.id: o.before for results in found[name].values() for o in results if o.before is not None}
            if before:
                panel.axhline(float(np.mean(list(before.values()))), color=colour, linestyle=":", linewidth=1.6)
        if logarithmic:
            panel.set_xscale("log")
        ticks = dict(sorted(zip(at, texts, strict=True)))
        panel.xaxis.set_major_locator(FixedLocator(list(ticks)))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xticklabels(list(ticks.values()), fontsize=10)
        panel.set_xlabel(experiment.axis or "", fontsize=10, color=SOFT)
        panel.set_ylabel(f"{labels[names[0]]} ({_direction(columns[names[0]])})", fontsize=10, color=SOFT)
        panel.legend(loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False, fontsize=9)
    note = "Mean over pairs ± standard deviation; failed pairs as before; dotted: mean before registration"
    figure.supxlabel(note, fontsize=9, color=SOFT)
    return figure
