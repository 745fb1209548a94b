# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Names that come from elsewhere lead to files of one folder and to nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import InputError
from .readers import PICTURES, VOLUMES

PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@=, -]*")


def image_in(folder: str | Path, name: object, *, what: str) -> Path:
    """The image of a folder with this name, whose ending may be left out.

    Args:
        folder: where it must lie, itself and not by a link.
        name: of the file, or the file's name without its ending (a datastore's id).
        what: what the caller calls this input; every error starts with it.

    Raises:
        InputError: no plain name (absolute, with folders, hidden, too long), no such image, several, or a link that
            leads out of the folder. The message tells the name alone, never a place on this machine.
    """
    if isinstance(name, str) and name.startswith("/"):  # not told: an upload has a place on this machine
        raise InputError(f"{what}: a path is no name of an image among the studies; give the id of one that is there")
    if not isinstance(name, str) or not name or len(name) > 200 or not PLAIN.fullmatch(name):
        raise InputError(f"{what}: {str(name)[:80]!r} is no name of an image among the studies; give its id")
    folder = Path(folder).resolve()
    exact = [folder / name] if (folder / name).exists() else []
    named = exact or [folder / f"{name}{ending}" for ending in (*VOLUMES, *PICTURES)]
    found = [path for path in named if path.exists()]
    if len(found) != 1:
        reason = "are several images" if found else "is no image"
        raise InputError(f"{what}: there {reason} named '{name}' among the studies; give the id of one that is there")
    if folder not in found[0].resolve().parents:
        raise InputError(f"{what}: '{name}' leads out of the studies folder; give an image that lies in it")
    return found[0]
