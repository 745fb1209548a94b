# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A file is there whole or not at all: write beside it, then rename."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def written_atomically(path: str | Path) -> Iterator[Path]:
    """A name to write to, in the same folder (made if missing) and with the same ending, by which writers go;
    the file becomes `path` if nothing goes wrong.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`, whose files only their owner may read.
    unfinished = path.with_name(f".unfinished-{uuid4().hex}{''.join(path.suffixes)}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write `text` in UTF-8."""
    with written_atomically(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
