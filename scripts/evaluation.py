# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Many pairs by several methods, in one run that may be interrupted and shared among processes.

Every registration is one item of MONAI's engine. Its results lie in `output_dir/<method>/<set>/<pair>/`, where
`metrics.json` is written last: a registration is done when that file is there, and is not done again. Processes share
the items and nothing else; the tables are made in the end from what lies on disk.
"""

from __future__ import annotations

import csv
import logging
import shutil
from collections.abc import Mapping, Sequence
from json import loads
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from .atomic import written_atomically
from .datalist import PairEntry, read_datalists
from .errors import InputError, as_bool
from .evaluation_page import write_page
from .methods.protocol import RegistrationMethod
from .plots import write_plot
from .records import plain, write_json
from .summary import Experiment, summarise
from .tables import write_tables

logger = logging.getLogger(__name__)
FIRST_COLUMNS = ("id", "set", "method", "unit", "dice_mean", "tre_mean", "tre_median", "rtre_median", "centroid_tre")
LAST_COLUMNS = ("hd95", "fold_pct", "agreement", "seconds", "peak_mb", "error")


class Evaluation:
    """Which pairs by which methods, what is done and what is left.

    Args:
        datalist: path of a datalist, or several (see `datalist`).
        methods: all methods by name.
        selected: names of those to run; those whose tool is not installed are left out with a word.
        output_dir: of everything.
        version: of the bundle; results of another version are not mixed.
        experiment: what the plot and the page show.
        exchanged: exchange the roles of the images, for a second look at pairs that settings were chosen on.

    Raises:
        InputError: wrong datalist, unknown method, none installed.
    """

    def __init__(
        self,
        datalist: str | Sequence[str],
        methods: Mapping[str, RegistrationMethod],
        selected: Sequence[str],
        output_dir: str | Path,
        version: str,
        experiment: Experiment,
        exchanged: bool = False,
    ) -> None:
        entries = read_datalists(datalist)
        self.entries = [entry.exchanged() for entry in entries] if as_bool(exchanged, "exchanged") else entries
        self.output_dir, self.version = Path(output_dir), version
        names = list(methods) if selected == "all" else [selected] if isinstance(selected, str) else list(selected)
        unknown = [name for name in names if name not in methods]
        if unknown or not names:
            raise InputError(f"methods: unknown {unknown}; choose from {sorted(methods)}")
        self.skipped = {name: hint for name in names if (hint := methods[name].missing())}
        self.methods = {name: methods[name] for name in names if name not in self.skipped}
        for name, hint in self.skipped.items():
            logger.warning("%s is skipped: %s", name, hint)
        if not self.methods:
            raise InputError(f"methods: none of {names} is installed; {next(iter(self.skipped.values()))}")
        experiment.check(self.methods)
        self.experiment = experiment
        self.first = idist.get_rank() == 0

    def folder(self, method: str, entry: PairEntry) -> Path:
        """Where the results of one registration lie."""
        return self.output_dir / method / entry.set / entry.id

    def pending(self) -> list[dict[str, Any]]:
        """What is left to do: items for the engine, pair by pair. Every process must call it.

        Raises:
            InputError: the output folder has results of other settings, version or files.
        """
        self._check_settings()
        items = []
        for entry in self.entries:
            digest = entry.digest()
            for name, method in self.methods.items():
                row = self._row(name, entry)
                if row is not None and row["inputs"] != digest:
                    raise InputError(
                        f"output_dir: {self.folder(name, entry)} has results of other files than {entry.set} "
                        f"{entry.id} has now; give another folder or remove it"
                    )
                if row is None or row["error"]:
                    asks_label = getattr(method, "asks_label", False)
                    label = str(entry.files["moving_label"]) if asks_label and "moving_label" in entry.files else ""
                    paths = {"image": str(entry.files["fixed"]), "moving": str(entry.files["moving"])}
                    items.append({**paths, "moving_label": label, "entry": entry, "method": name, "inputs": digest})
        idist.barrier()  # nobody begins, and so makes items disappear, before everybody has the same list
        if self.first:
            for name in self.methods:
                record = {"version": self.version, "settings": plain(self.methods[name].settings())}
                (self.output_dir / name).mkdir(parents=True, exist_ok=True)
                write_json(self.output_dir / name / "settings.json", record)
            for left in self.output_dir.rglob(".unfinished-*"):  # by a run that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        idist.barrier()
        total = len(self.entries) * len(self.methods)
        logger.info("%d of %d registrations are done, %d are left", total - len(items), total, len(items))
        return items

    def finish(self) -> None:
        """Tables, plot and page of all that is on disk, once every process is here.

        Raises:
            InputError: some registrations failed; the others are in the tables.
        """
        idist.barrier()
        if not self.first:
            return
        rows = [row for entry in self.entries for name in self.methods if (row := self._row(name, entry)) is not None]
        rows = [{key: value for key, value in row.items() if key != "inputs"} for row in rows]
        write_csv(rows, self.output_dir / "metrics.csv")
        summary = summarise(rows)
        write_json(self.output_dir / "summary.json", {**summary, "skipped": self.skipped})
        write_tables(summary, self.output_dir)
        write_plot(rows, self.experiment, self.output_dir)
        write_page(rows, summary, self.output_dir, self.experiment)
        logger.info("tables, plot and page: %s", self.output_dir / "index.html")
        failed = [row for row in rows if row["error"]]
        if failed:
            worst = f"{failed[0]['method']} on {failed[0]['set']} {failed[0]['id']}: {failed[0]['error']}"
            raise InputError(
                f"{len(failed)} of {len(rows)} registrations failed (all in {self.output_dir}), e.g. {worst}"
            )

    def _row(self, method: str, entry: PairEntry) -> dict[str, Any] | None:
        try:
            return loads((self.folder(method, entry) / "metrics.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def _check_settings(self) -> None:
        for name, method in self.methods.items():
            path = self.output_dir / name / "settings.json"
            if not path.is_file():
                continue
            now = _flat({"version": self.version, "settings": plain(method.settings())})
            then = _flat(loads(path.read_text(encoding="utf-8")))
            changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
            if changed:
                key = changed[0]
                raise InputError(
                    f"output_dir: {path.parent} has results of other settings ({key.removeprefix('settings.')} was "
                    f"{then.get(key)!r}, is {now.get(key)!r}); give another folder or remove it"
                )


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One line per registration, whole or not at all; every figure is followed by its value before registration."""
    found = list(dict.fromkeys(key for row in rows for key in row))
    middle = [k for k in found if not k.endswith("_before") and k not in (*FIRST_COLUMNS, *LAST_COLUMNS)]
    columns = [
        column
        for key in (*FIRST_COLUMNS, *middle, *LAST_COLUMNS)
        for column in (key, f"{key}_before")
        if column == key or column in found
    ]
    with written_atomically(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _flat(record: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(record, dict):
        return {prefix: record}
    parts = [_flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in record.items()]
    return {key: value for part in parts for key, value in part.items()}
