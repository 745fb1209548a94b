# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Tables of a summary (see `summary.summarise`), for the page, for Markdown and for LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .atomic import write_text_atomically
from .summary import higher_is_better, label_of, scale_of

BEFORE = "before registration"
NOTHING = "–"
DECIMALS = {"rtre_median": 4, "seconds": 1, "peak_mb": 0}  # Dice has 3, everything else 2
DETAILS = ("dice_mean", "dice_groups", "tre_mean", "tre_median", "centroid_tre", "hd95", "fold_pct")
CAPTION = (
    "Mean ± standard deviation over pairs; over sets, of the sets' means. A failed pair counts as the state before "
    "registration. Bold: best of the methods that were run on every pair; without truth nothing is ranked."
)
CAPTION_DETAILS = (
    "Mean ± standard deviation over the completed pairs; bold: best, with failed pairs counted as the state before "
    "registration. Worst change: largest loss (or smallest gain) of one pair; better: share of all pairs that improved."
)
ESCAPES = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\n": " ",
    "–": "--",
    **{
        sign: f"${name}$"
        for sign, name in {"±": r"\pm", "−": "-", "×": r"\times", "∞": r"\infty", "σ": r"\sigma"}.items()
    },
}


@dataclass(frozen=True)
class Cell:
    """A text, and whether it stands out."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """Cells in rows; the first of each row, like the header, is a name."""

    title: str
    header: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""

    def turned(self, corner: str) -> Table:
        """Rows as columns, under another name for what the first column holds."""
        header, *rows = zip(self.header, *self.rows, strict=True)
        return replace(self, header=(Cell(corner), *header[1:]), rows=tuple(rows))


def number(value: float | None, column: str, *, signed: bool = False) -> str:
    """A value of a column as it is printed everywhere."""
    if value is None:
        return NOTHING
    decimals = 3 if column.startswith("dice") else DECIMALS.get(column.removesuffix("_before"), 2)
    smallest = 10**-decimals
    if column == "fold_pct" and 0 < value < smallest:
        return f"<{smallest}"
    return f"{value:{'+' if signed and round(value, decimals) else ''}.{decimals}f}".replace("-", "−")


def mean_and_sd(statistics: dict[str, Any] | None, column: str) -> str:
    """`mean ± sd`, or the mean alone where there is no deviation."""
    if statistics is None or statistics["mean"] is None:
        return NOTHING
    text = number(statistics["mean"], column)
    return text if statistics["sd"] is None or text.startswith("<") else f"{text} ± {number(statistics['sd'], column)}"


def _cells(texts: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(Cell(text) for text in texts)


def best_of(means: dict[str, float | None], column: str) -> set[str]:
    """Methods with the best mean as far as it is printed; none without truth or without anything to compare with."""
    known = {method: mean for method, mean in means.items() if mean is not None}
    if column == "fold_pct" or len(known) < 2:
        return set()
    best = number((max if higher_is_better(column) else min)(known.values()), column)
    return {method for method, mean in known.items() if number(mean, column) == best}


def _remark(method: dict[str, Any]) -> str:
    """What to know about a mean: failed pairs, pairs that were not run."""
    remarks = [f"{method[f'n_{what}']} {what}" for what in ("failed", "missing") if method[f"n_{what}"]]
    return f" ({', '.join(remarks)})" if remarks else ""


def overview_table(summary: dict[str, Any]) -> Table:
    """Methods x sets, and averages over the sets that have a headline in common; turned where it would be too wide."""
    table = [_cells(["method", BEFORE, *summary["methods"]])]
    for name, of_set in summary["sets"].items():
        column, methods = of_set["headline"], of_set["methods"]
        complete = {m: v["headline_with_failures"]["mean"] for m, v in methods.items() if not v["n_missing"]}
        best, cells = best_of(complete, column), [Cell(mean_and_sd(of_set["before"].get(column), column))]
        for method in summary["methods"]:
            found = methods.get(method)
            text = mean_and_sd(found["headline_with_failures"], column) + _remark(found) if found else NOTHING
            cells.append(Cell(text, method in best))
        table.append((Cell(f"{name}, {label_of(column, of_set['unit'])}, n = {of_set['n']}"), *cells))
    table += _macro_columns(summary)
    header, *rows = zip(*table, strict=True)
    whole = Table("All sets", header, tuple(rows), CAPTION)
    return whole.turned("set") if len(header) > max(len(rows), 4) else whole


def _macro_columns(summary: dict[str, Any]) -> list[tuple[Cell, ...]]:
    macro = summary["all_sets"]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for of_set in summary["sets"].values():
        if of_set["headline"] != "fold_pct":
            kinds.setdefault(scale_of(of_set["headline"], of_set["unit"]), []).append(of_set)
    table = []
    for scale, sets in kinds.items():
        if len(sets) < 2:
            continue
        column = sets[0]["headline"]
        found = {m: v["headlines_with_failures"].get(scale) for m, v in macro["methods"].items()}
        whole = {m for m in found if all(m in s["methods"] and not s["methods"][m]["n_missing"] for s in sets)}
        best = best_of({m: v["mean"] for m, v in found.items() if v and m in whole}, column)
        cells = [Cell(mean_and_sd(macro["before"]["headlines"].get(scale), column))]
        for method, value in found.items():
            short = f" ({value['n_sets']} sets)" if value and value["n_sets"] < len(sets) else ""
            cells.append(Cell(mean_and_sd(value, column) + short, method in best))
        table.append((Cell(f"mean of {len(sets)} sets, {label_of(column, sets[0]['unit'])}"), *cells))
    return table


def detail_table(summary: dict[str, Any], name: str) -> Table:
    """Everything about one set, a method per row; columns without a value are left out."""
    of_set = summary["sets"][name]
    column, unit, methods = of_set["headline"], of_set["unit"], of_set["methods"]
    present = {key for method in methods.values() for key in method["columns"]} | set(of_set["before"])
    shown = [key for key in DETAILS if key in present]
    ranked = column != "fold_pct"
    # Means with and without the pairs that have no result are only told apart where there are such pairs.
    counted = ranked and any(
        found["headline_with_failures"]["n"] != found["columns"].get(column, {"n": 0})["n"]
        for found in methods.values()
    )
    first = 2 if counted or column not in shown else 2 + shown.index(column)
    complete = {m: v["headline_with_failures"]["mean"] for m, v in methods.items() if not v["n_missing"]}
    best = best_of(complete, column)
    header = ["method", "pairs", *([f"{label_of(column, unit)}, failures counted"] if counted else [])]
    header += [label_of(key, unit) for key in shown] + (["worst change", "better"] if ranked else [])
    means = [number(of_set["before"].get(key, {}).get("mean"), key) for key in shown]
    whole = [mean_and_sd(of_set["before"].get(column), column)] if counted else []
    empty = [NOTHING] * (2 * ranked + 1)
    rows = [_cells([BEFORE, str(of_set["n"]), *whole, *means, *empty])]
    for method in (method for method in summary["methods"] if method in methods):
        found = methods[method]
        cells = [method, f"{found['n']}{_remark(found)}"]
        cells += [mean_and_sd(found["headline_with_failures"], column)] if counted else []
        cells += [mean_and_sd(found["columns"].get(key), key) for key in shown]
        if ranked:
            share = found["share_better"]
            cells += [number(found["worst_change"], column, signed=True)]
            cells += [NOTHING if share is None else f"{100 * share:.0f} %"]
        cells.append(number(found["columns"].get("seconds", {}).get("median"), "seconds"))
        rows.append(tuple(Cell(text, method in best and k == first) for k, text in enumerate(cells)))
    title = f"{name}, n = {of_set['n']}"
    return Table(title, _cells([*header, "median time [s]"]), tuple(rows), CAPTION_DETAILS if ranked else "")


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(ESCAPES.get(sign, sign) for sign in text)


def escape_markdown(text: str) -> str:
    """Text that Markdown prints as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", " ".join(text.split()))


def to_markdown(table: Table) -> str:
    """A pipe table under its title."""

    def line(cells: Sequence[Cell]) -> str:
        texts = (escape_markdown(cell.text) for cell in cells)
        return f"| {' | '.join(f'**{t}**' if c.bold else t for t, c in zip(texts, cells, strict=True))} |"

    rule = f"|{'|'.join(['---', *['---:'] * (len(table.header) - 1)])}|"
    lines = [f"### {escape_markdown(table.title)}", "", line(table.header), rule, *map(line, table.rows)]
    return "\n".join(lines + (["", escape_markdown(table.caption)] if table.caption else [])) + "\n"


def to_latex(table: Table) -> str:
    """A floating table in the style of booktabs (load that package, and graphicx, which keeps it within the line)."""

    def line(cells: Sequence[Cell]) -> str:
        texts = (escape_latex(cell.text) for cell in cells)
        return " & ".join(f"\\textbf{{{t}}}" if c.bold else t for t, c in zip(texts, cells, strict=True)) + r" \\"

    caption = escape_latex(f"{table.title}. {table.caption}".strip())
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{caption}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            f"\\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            line(table.header),
            r"\midrule",
            *map(line, table.rows),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def write_tables(summary: dict[str, Any], folder: str | Path) -> None:
    """Write `tables.md` and `tables.tex`: the overview and a table per set."""
    tables = [overview_table(summary), *(detail_table(summary, name) for name in summary["sets"])]
    write_text_atomically(Path(folder) / "tables.md", "\n".join(map(to_markdown, tables)))
    head = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n"
    write_text_atomically(Path(folder) / "tables.tex", head + "\n".join(map(to_latex, tables)))
