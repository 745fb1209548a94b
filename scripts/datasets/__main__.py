# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""`python -m scripts.datasets NAME FOLDER --output_dir DIR [--split S] [--pairs N] [--seed 0]`.

Without arguments it lists the data sets. Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

import fire

from ..errors import InputError, one_line_errors
from .builder import DataSet, Request, write_datalist
from .chaos import CHAOS
from .learn2reg import LUNG
from .patches import TMA, TMA_PATCHES, ZURICH_PATCHES
from .pictures import ANHIR, CIMA, FIRE
from .volumes import ACDC, HIPPOCAMPUS, PROSTATE
from .zurich import ZURICH

DATASETS: dict[str, DataSet] = {
    data_set.card.name: data_set
    for data_set in (
        *(PROSTATE, CHAOS, LUNG, TMA_PATCHES, TMA, ZURICH_PATCHES, ZURICH),
        *(ACDC, HIPPOCAMPUS, FIRE, CIMA, ANHIR),
    )
}


def build(
    name: str | None = None,
    folder: str | None = None,
    output_dir: str | None = None,
    split: str | None = None,
    pairs: int | None = None,
    seed: int = 0,
) -> None:
    """Turn an official folder on disk into a datalist; without a name, list the data sets.

    Args:
        name: which data set.
        folder: where its official files lie; nothing is written there.
        output_dir: gets datalist.json and what has to be converted; keep it beside the official folder, to which it
            refers by relative paths.
        split: part of the data set; each has its own names and default.
        pairs: how many; default all (of different subjects: as many as subjects).
        seed: of the choice and of the pairing, where no official one exists.

    Raises:
        InputError: unknown name, or a folder that is not as documented.
    """
    if name is None:
        print("\n".join(_described(data_set) for data_set in DATASETS.values()))
        return
    if name not in DATASETS:
        raise InputError(f"name: no data set '{name}'; give one of {', '.join(DATASETS)}")
    if folder is None or output_dir is None:
        raise InputError(f"{'folder' if folder is None else 'output_dir'}: none given; see python -m scripts.datasets")
    for option, value, least in (("pairs", pairs, 1), ("seed", seed, 0)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise InputError(f"{option}: {value!r}; give a whole number from {least}")
    chosen = DATASETS[name].card.splits[0] if split is None else str(split)
    request = Request(Path(str(folder)), Path(str(output_dir)), chosen, pairs, seed)
    path, count = write_datalist(DATASETS[name], request)
    print(f"{count} pairs of {name} ({chosen}) in {path}")


def _described(data_set: DataSet) -> str:
    card = data_set.card
    return (
        f"{card.name} ({'in the paper' if card.paper else 'beyond the paper'}; {card.application}, {card.dim}-D)\n"
        f"    source:   {card.origin}\n    licence:  {card.licence}\n    download: {card.access}\n"
        f"    folder:   {card.layout}\n    splits:   {', '.join(card.splits)} (the first is the default)\n"
    )


if __name__ == "__main__":
    one_line_errors()
    fire.Fire(build)
