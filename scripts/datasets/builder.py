# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What every data set's builder needs: its card, checks of what is found, seeded pairing, and writing the datalist.

A datalist refers to the files of the official folder where `images.read_image` and `read_label` can read them as they
are, and to converted copies in the output folder where they cannot. Nothing is ever written into the official folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import write_text_atomically
from ..errors import InputError
from .files import grid

Entry = dict[str, Any]  # one pair of a datalist, its paths still absolute


@dataclass(frozen=True)
class Card:
    """What a data set is and where it comes from.

    Attributes:
        name, application, dim, kind, origin, licence, citation, unit, note, label_names: as in a datalist; `kind` is
            "intra", "inter", "multimodal" or "semi-synthetic".
        access: how to get it; every set is fetched by hand.
        layout: the files expected below the folder, for error messages.
        splits: names that `--split` takes, the first is the default.
        paper: whether the paper's experiments use it.
    """

    name: str
    application: str
    dim: int
    kind: str
    origin: str
    licence: str
    citation: str
    unit: str
    note: str
    access: str
    layout: str
    label_names: dict[str, str] = field(default_factory=dict)
    splits: tuple[str, ...] = ("all",)
    paper: bool = False


@dataclass(frozen=True)
class Request:
    """What to build: official folder, output folder, split, number of pairs (None: all there are) and seed."""

    folder: Path
    output_dir: Path
    split: str
    pairs: int | None
    seed: int


@dataclass(frozen=True)
class DataSet:
    """A card and the function that finds the pairs; it may add a sentence to the note."""

    card: Card
    build: Callable[[Card, Request], tuple[list[Entry], str]]


def first_folder(card: Card, folder: Path, *inside: str) -> Path:
    """The first of `folder` / `inside` ("" is `folder` itself) that exists, because archives unpack to various depths.

    Raises:
        InputError: none of them exists.
    """
    if not folder.is_dir():
        raise InputError(f"{card.name}: {folder}: no such folder; expected {card.layout}")
    for name in inside:
        if (folder / name).is_dir():
            return folder / name
    raise InputError(f"{card.name}: {folder}: holds none of {', '.join(inside)}; expected {card.layout}")


def existing(card: Card, path: Path) -> Path:
    """`path`, or `InputError` naming it and the layout expected."""
    if not path.exists():
        raise InputError(f"{card.name}: {path}: no such file; expected {card.layout}")
    return path


def some(card: Card, folder: Path, items: Sequence[Any], least: int = 1) -> None:
    """Raise `InputError` unless there are at least `least` items in `folder`."""
    if len(items) < least:
        raise InputError(f"{card.name}: {folder}: {len(items)} usable cases, {least} needed; expected {card.layout}")


def entry(
    card: Card, name: str, fixed: Path, moving: Path, labels: Sequence[Path] = (), landmarks: Sequence[Path] = ()
) -> Entry:
    """One pair, checked by the files' headers: they exist, and a label map has its image's shape.

    Args:
        name: the pair's id.
        labels, landmarks: of the fixed and of the moving image; empty where there are none.

    Raises:
        InputError: a file is missing or damaged, or shapes differ.
    """
    made: Entry = {"id": name, "fixed": existing(card, fixed), "moving": existing(card, moving)}
    for side, label in zip(("fixed", "moving"), labels, strict=False):
        shape, own = grid(existing(card, label))[0], grid(made[side])[0]
        if shape != own:
            raise InputError(f"{card.name}: {label}: has shape {shape}; its image {made[side]} has {own}")
        made[f"{side}_label"] = label
    for side, points in zip(("fixed", "moving"), landmarks, strict=False):
        made[f"{side}_landmarks"] = existing(card, points)
    if not labels and not landmarks:
        made["no_truth"] = True
    return {**made, "spacing": list(grid(fixed)[1]), "moving_spacing": list(grid(moving)[1])}


def cycle(card: Card, folder: Path, names: Sequence[str], request: Request) -> list[tuple[str, str]]:
    """Seeded (fixed, moving) pairs of different subjects: at first a cycle, each once fixed and once moving.

    Raises:
        InputError: fewer than two subjects, or more pairs asked for than there are.
    """
    some(card, folder, names, least=2)
    order = [names[k] for k in np.random.default_rng(request.seed).permutation(len(names))]
    all_pairs = [(order[k], order[k - step]) for step in range(1, len(order)) for k in range(len(order))]
    return all_pairs[: _count(card, request.pairs or len(order), len(all_pairs))]


def chosen(card: Card, folder: Path, items: Sequence[Any], request: Request) -> list[Any]:
    """All items, or as many as asked for, drawn with the seed and in their own order.

    Raises:
        InputError: no items, or more asked for than there are.
    """
    some(card, folder, items)
    count = _count(card, request.pairs or len(items), len(items))
    return [items[k] for k in sorted(np.random.default_rng(request.seed).permutation(len(items))[:count])]


def within(names: Sequence[str]) -> list[tuple[str, str]]:
    """Every unordered pair, in order."""
    return list(combinations(sorted(names), 2))


def write_datalist(data_set: DataSet, request: Request) -> tuple[Path, int]:
    """Build and write `datalist.json`; its path and the number of pairs.

    Raises:
        InputError: the folder is not as documented; nothing is listed then.
    """
    card = data_set.card
    if request.split not in card.splits:
        raise InputError(f"split: {card.name} has no '{request.split}'; give one of {', '.join(card.splits)}")
    entries, remark = data_set.build(card, request)
    some(card, request.folder, entries)
    home = request.output_dir.resolve()
    listed = [{k: _relative(v, home) if isinstance(v, Path) else v for k, v in made.items()} for made in entries]
    keys = ("name", "application", "dim", "kind", "origin", "licence", "citation", "unit")
    content: dict[str, Any] = {key: getattr(card, key) for key in keys}
    content["note"] = " ".join(part for part in (card.note, remark) if part)
    content |= {"split": request.split, "seed": request.seed, "label_names": card.label_names, "pairs": listed}
    path = request.output_dir / "datalist.json"
    write_text_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path, len(listed)


def _relative(path: Path, home: Path) -> str:
    return Path(os.path.relpath(path.resolve(), home)).as_posix()


def _count(card: Card, asked: int, there: int) -> int:
    if asked > there:
        raise InputError(f"pairs: {asked} asked for but {card.name} has {there} here; ask for at most {there}")
    return asked
