# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A folder of results is there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from .errors import InputError


def check_writable(folder: str | Path, *, name: str = "output_dir") -> None:
    """Make sure, before the work, that results can be written; leaves nothing behind.

    Raises:
        InputError: `folder` is a file, or cannot be made or written to.
    """
    if not folder:
        raise InputError(f"{name}: none given; expected the path of a folder")
    folder = Path(folder)
    try:
        missing = _missing(folder)
        with staging_folder(folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{name}: {folder}: cannot be written ({reason}); give a folder you may write to") from error
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):  # others may need it already
        _remove_folders(missing)


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, whose files move to `folder` in the end; without it, on an error, nothing remains.

    It lies inside `folder`, so that a move is a renaming and no other folder has to be writable.
    """
    missing = _missing(folder)
    staging = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
        yield staging
        files = sorted(staging.iterdir())
        for file in files:
            if (folder / file.name).is_dir():
                raise IsADirectoryError(f"{folder / file.name} is a folder; a result of that name cannot be written")
        for file in files:
            os.replace(file, folder / file.name)
        staging.rmdir()
    except BaseException:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        _remove_folders(missing)
        raise


def _missing(folder: Path) -> list[Path]:
    """Folders that would have to be made for `folder` to exist, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_folders(folders: list[Path]) -> None:
    for path in folders:
        with suppress(OSError):  # it was never made, or somebody else has put something there
            path.rmdir()
