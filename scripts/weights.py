# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Weights of other models, fetched only when asked for. The registry is `configs/weights.yaml`.

python -m monai.bundle run get_weights --config_file configs/weights.yaml --name sam_vit_b --output_dir models
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .download import download, sha256_of
from .errors import InputError

BEGINNINGS = (b"PK\x03\x04", b"\x80\x02")  # of PyTorch's files, today's and those of before 2020


@dataclass(frozen=True)
class WeightFile:
    """One entry of the registry.

    Attributes:
        url: where its authors offer it, "" if nowhere; file: its name.
        segmenter: overlay that reads it, below `configs/segmenters`.
        licence, citation: of the weights.
        size: in bytes; sha256: both None where no source could be found that tells; md5: where only that sum is known.
        note: what a user should know.
    """

    url: str
    file: str
    segmenter: str
    licence: str
    citation: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    note: str = ""


def entry(registry: Mapping[str, Any], name: str) -> WeightFile:
    """An entry by name.

    Raises:
        InputError: unknown name.
    """
    if name not in registry:
        raise InputError(f"name: unknown '{name}', expected one of {sorted(registry)}")
    return WeightFile(**registry[name])


def get_weights(registry: Mapping[str, Any], name: str, output_dir: str | Path, *, progress: bool = True) -> Path:
    """Fetch a file of weights, or find it there, and say what it is.

    Args:
        registry: entries by name, see `WeightFile`.
        name: of the entry; output_dir: folder to write to.
        progress: show a bar on standard error.

    Raises:
        InputError: unknown name, no connection, or a file that is not the expected one.
    """
    wanted = entry(registry, name)
    target = Path(output_dir) / wanted.file
    if target.exists():
        found = sha256_of(target)
        if wanted.sha256 and found != wanted.sha256.lower():
            raise InputError(
                f"output_dir: {target} has SHA-256 {found}, expected {wanted.sha256}; remove it and call again"
            )
    elif not wanted.url:
        raise InputError(f"name: no file of {name} is offered for download; {wanted.note}")
    else:
        found = download(wanted.url, target, size=wanted.size, sha256=wanted.sha256, progress=progress)
        _check_kind(target, wanted)
    _check_md5(target, wanted)
    sys.stdout.write(summary(wanted, target, found))
    return target


def _check_kind(file: Path, wanted: WeightFile) -> None:
    """Some hosts answer with a page that asks a question instead of the file."""
    with file.open("rb") as handle:
        beginning = handle.read(4)
    if not beginning.startswith(BEGINNINGS):
        file.unlink()
        raise InputError(
            f"url: {wanted.url} did not send a PyTorch file (it was removed); open the address in a browser and give "
            "the file with --checkpoint"
        )


def _check_md5(file: Path, wanted: WeightFile) -> None:
    if wanted.md5 is None:
        return
    with file.open("rb") as handle:
        found = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != wanted.md5.lower():
        raise InputError(f"output_dir: {file} has MD5 {found}, expected {wanted.md5}; remove it and call again")


def summary(wanted: WeightFile, file: Path, found: str) -> str:
    """What was fetched, how far it is verified and how to use it."""
    partly = "MD5 verified: that alone is known" if wanted.md5 else "UNVERIFIED: no published hash is known"
    verified = "verified" if wanted.sha256 else partly
    return (
        f"{file}\n  SHA-256 {found} ({verified})\n  licence {wanted.licence}\n  cite {wanted.citation}\n"
        + (f"  note {wanted.note}\n" if wanted.note else "")
        + "  use  --config_file \"['configs/inference.yaml','configs/segmenters/"
        + f"{wanted.segmenter}.yaml']\" --checkpoint {file}\n"
    )
