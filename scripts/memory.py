# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Whether a pair can fit into memory at all, told before the work instead of by the system's killer in its middle.

A rough estimate on the safe side of refusing: a registration holds about `COPIES` float32 copies of each volume at its
peak (raw and scaled images, fields, their inverses, gradients, probability maps), and about 2 MB of embeddings a slice.
It is compared with ALL memory of the machine (or of the container), not with what happens to be free.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .errors import InputError

COPIES = 40  # float32 copies of each volume while a pair is registered
READING = 4  # while a file is read: as stored, as float32, and one between
SLICE_BYTES = 2 * 2**20  # embeddings of one slice
CGROUP = Path("/sys/fs/cgroup/memory.max")  # a container's limit, "max" without one


def memory_bytes() -> float:
    """Memory of this machine or container in bytes; infinite where the system does not say."""
    try:
        limits = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits = [math.inf]
    with suppress(OSError, ValueError):  # no container, or no limit
        limits.append(float(CGROUP.read_text(encoding="ascii")))
    return min(limits)


def needed_bytes(*shapes: Sequence[int], copies: int = COPIES) -> int:
    """Rough estimate for images of these shapes `(C, *S)` together, in bytes.

    Args:
        shapes: channels first, as arrays have them.
        copies: float32 copies of each; the embeddings count only when a pair is registered.
    """
    voxels = sum(math.prod(shape) for shape in shapes)
    slices = sum(shape[3] if len(shape) > 3 else 1 for shape in shapes)
    return 4 * copies * voxels + (SLICE_BYTES * slices if copies == COPIES else 0)


def check_memory(*shapes: Sequence[int], copies: int = COPIES, limit: float | None = None) -> None:
    """Raise unless images of these shapes `(C, *S)` can be worked on.

    Args:
        shapes, copies: as `needed_bytes` takes them.
        limit: bytes that may be used; None: those of the machine.

    Raises:
        InputError: with the estimate, the memory there is and what helps.
    """
    needed, limit = needed_bytes(*shapes, copies=copies), memory_bytes() if limit is None else limit
    if needed > limit:
        sizes = " and ".join("x".join(map(str, shape[1:])) for shape in shapes)
        raise InputError(
            f"of {sizes} voxels about {needed / 2**30:.1f} GB of memory are needed and there are {limit / 2**30:.1f}; "
            "crop or resample to fewer voxels"
        )
