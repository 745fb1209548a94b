# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The command of `configs/apply.yaml`: carry one image, label map or list of points over with a field on disk.

Where things lie is said by headers: the field's own grid is the fixed one, and a volume that is carried lies where its
own header puts it, so it may have other voxels than the image that was registered. Pictures have no place of their own
and must have the size of theirs.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .atomic import write_text_atomically, written_atomically
from .carry import FORWARD, INVERSE, PairMap, carry_image, inside
from .datalist import read_landmarks
from .errors import InputError
from .fields import between, read_field
from .geometry import identity_points, transform_points
from .image_files import output_suffix, write_image
from .images import read_labels, read_values
from .readers import PICTURES, VOLUMES
from .registration import ImageInfo
from .sides import Grid, check_same, needed, placed, read_grid
from .staging import check_writable

logger = logging.getLogger(__name__)
NAMED = 8  # rows of points named in a message
LOST = 0.5  # voxels by which an inverse may miss


def apply(
    field: str,
    output_file: str,
    *,
    fixed_image: str = "",
    moving_image: str = "",
    image: str = "",
    label: str = "",
    points: str = "",
    direction: str = FORWARD,
    point_space: str = "voxel",
    frames: dict[str, int | None] | None = None,
) -> None:
    """Carry `image`, `label` or `points` (exactly one) over and write `output_file`, whole or not at all.

    Args:
        field: a `ddf.nii.gz`.
        output_file: made with its folder; its ending says the format.
        fixed_image: only checked against the field, which has the fixed grid itself.
        moving_image: the moving grid; needed by "inverse" for images and label maps, and for points in voxels.
        image, label: on the moving side ("forward") or on the fixed side ("inverse").
        points: CSV on the fixed side ("forward": the field itself) or on the moving side ("inverse").
        direction: "forward" or "inverse", see `carry`.
        point_space: "voxel" (header i,j,k) or "world" (header x,y,z, RAS mm).
        frames: which frame of "fixed_image", "moving_image" and "image", where these hold several.

    Raises:
        InputError: whatever is wrong with these, before anything is written.
    """
    given = {name: path for name, path in (("image", image), ("label", label), ("points", points)) if path}
    if len(given) != 1:
        raise InputError(f"apply: {' and '.join(given) or 'nothing'} given; give one of --image, --label and --points")
    if direction not in (FORWARD, INVERSE):
        raise InputError(f"direction: unknown '{direction}', expected '{FORWARD}' or '{INVERSE}'")
    if not field:
        raise InputError("field: none given; expected the path of a ddf.nii.gz")
    frames = frames or {}
    output = _output(output_file, [field, fixed_image, moving_image, *given.values()])
    fixed_known = read_grid(fixed_image, "fixed_image", frames)
    moving = read_grid(moving_image, "moving_image", frames)
    ddf, fixed_info = read_field(field, picture=None if fixed_known is None else fixed_known.info.kind == "picture")
    fixed = Grid(fixed_info, tuple(ddf.shape[1:]), "fixed_image")
    check_same(fixed_known, fixed, field)
    if moving and len(moving.shape) != len(ddf):
        raise InputError(
            f"moving_image: has {len(moving.shape)} axes but the field {field} has {len(ddf)}; give its pair"
        )
    if points:
        _apply_to_points(Path(points), output, ddf, fixed, moving, inverse=direction == INVERSE, space=point_space)
    else:
        _apply_to_image(given, output, ddf, fixed, moving, inverse=direction == INVERSE, frame=frames.get("image"))
    logger.info("%s carried over (%s); written to %s", *given, direction, output)


def _apply_to_image(
    given: dict[str, str],
    output: Path,
    ddf: Tensor,
    fixed: Grid,
    moving: Grid | None,
    *,
    inverse: bool,
    frame: int | None,
) -> None:
    ((name, path),) = given.items()
    labels = name == "label"
    if labels:
        stored, info = read_labels(path, name=name)
        values = stored[None]
    else:
        values, info = read_values(path, name=name, frame=frame)
    carried = Grid(info, tuple(values.shape[1:]), name)
    if len(carried.shape) != len(ddf):
        raise InputError(f"{name}: {path} has {len(carried.shape)} axes but the field has {len(ddf)}; give its pair's")
    if inverse:
        target, source = needed(moving, "the grid of the result"), placed(carried, fixed)
        wanted = identity_points(target.shape)
        pair = PairMap(ddf, between(fixed.info, target.info))
        on_fixed = pair.to_fixed_points(wanted)
        _tell_lost((pair.to_moving_points(on_fixed) - wanted)[:, inside(on_fixed, fixed.shape)])
        places = transform_points(between(fixed.info, source), on_fixed)
    else:
        target, source = fixed, placed(carried, moving)
        places = PairMap(ddf, between(fixed.info, source)).to_moving_points(identity_points(fixed.shape))
    if not inside(places, carried.shape).any():
        raise InputError(
            f"{name}: the field {fixed.info.path} leads nowhere into {path}; give the field of this pair and the "
            "direction that leads from the side of the image to the other"
        )
    info = replace(target.info, suffix=_ending(output))
    _check_holds(values, info, labels=labels)
    with written_atomically(output) as unfinished:
        write_image(carry_image(values, places, labels=labels), info, unfinished, source=None if labels else values)


def _apply_to_points(
    path: Path, output: Path, ddf: Tensor, fixed: Grid, moving: Grid | None, *, inverse: bool, space: str
) -> None:
    if space not in ("voxel", "world"):
        raise InputError(f"point_space: unknown '{space}', expected 'voxel' or 'world'")
    pictures = fixed.info.kind == "picture"
    if space == "world" and "picture" in (fixed.info.kind, moving and moving.info.kind):
        raise InputError("point_space: pictures have no world; give 'voxel'")
    axes = "xyz" if space == "world" else "ijk"
    try:
        given = read_landmarks(path, len(ddf), axes=axes).double()
    except InputError as error:
        raise InputError(f"points: {error}") from error
    if moving is None:  # a picture's pixels are its world, and points in the world need no grid
        other = fixed.info if space == "world" or pictures else needed(moving, "the voxels of the points").info
    else:
        other = moving.info
    pair = PairMap(ddf, between(fixed.info, other))
    sides = {"fixed": (fixed.info, fixed.shape), "moving": (other, moving.shape if moving else None)}
    start, end = ("moving", "fixed") if inverse else ("fixed", "moving")
    world = space == "world"
    points = transform_points(torch.linalg.inv(sides[start][0].affine), given) if world else given
    reached = pair.to_fixed_points(points) if inverse else pair.to_moving_points(points)
    for side, there in ((start, points), (end, reached)):
        shape = sides[side][1]
        outside = [] if shape is None else (~inside(there, shape)).nonzero()[:, 0].tolist()
        if outside:
            named = ", ".join(str(row + 1) for row in outside[:NAMED]) + (", ..." if len(outside) > NAMED else "")
            logger.warning(
                "%d of %d points lie outside the %s image: rows %s", len(outside), len(given[0]), side, named
            )
    if inverse:
        _tell_lost((pair.to_moving_points(reached) - points)[:, inside(reached, fixed.shape)])
    result = transform_points(sides[end][0].affine, reached.double()) if world else reached
    rows = [",".join(f"{value:.4f}" for value in point) for point in result.T.tolist()]
    write_text_atomically(output, "\n".join([",".join(axes[: len(ddf)]), *rows]) + "\n")


def _tell_lost(misses: Tensor) -> None:
    """Warn about places `[D, N]`, in voxels beside the wanted ones, that the inverse did not find: the field folds."""
    lost = int((misses.norm(dim=0) > LOST).sum())
    if lost:
        logger.warning("the field folds and has no inverse at %d of %d places", lost, misses.shape[1])


def _ending(output: Path) -> str:
    return next((e for e in (*VOLUMES, *PICTURES) if output.name.lower().endswith(e)), output.suffix)


def _output(path: str, inputs: list[str]) -> Path:
    """The output's path, which can be written and is none of the inputs."""
    if not path:
        raise InputError("output_file: none given; expected the path of a file")
    output = Path(path)
    if output.is_dir():
        raise InputError(f"output_file: {path} is a folder; give the path of a file")
    if output.resolve() in [Path(given).resolve() for given in inputs if given]:
        raise InputError(f"output_file: {path} is one of the inputs; give another name")
    check_writable(output.parent, name="output_file")
    return output


def _check_holds(values: Tensor, info: ImageInfo, *, labels: bool) -> None:
    """Raise unless a file with the ending of `info` holds such values on its grid."""
    allowed = PICTURES if info.kind == "picture" else tuple(dict.fromkeys(VOLUMES.values()))
    if info.suffix not in allowed:
        raise InputError(f"output_file: '{info.suffix}' does not fit a {info.kind}; give one of {', '.join(allowed)}")
    if info.kind == "picture" and labels and not 0 <= int(values.min()) <= int(values.max()) <= 65535:
        raise InputError("label: has values that no picture can hold; expected 0 to 65535")
    fitting = output_suffix(info, labels=labels, source=None if labels else values)
    if fitting != info.suffix:
        raise InputError(f"output_file: '{info.suffix}' files cannot hold these values; give {fitting}")
