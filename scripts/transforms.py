# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""MONAI dictionary transforms at the two ends of the inferer.

`ReadPaird` turns a request (paths and prompts) into the fixed image that carries everything else in its `meta`, because
MONAI Label hands an inferer the image tensor and nothing more. `ResultToDictd` turns the answer into JSON-able values.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from .confine import image_in
from .errors import InputError
from .images import frame_option, read_image, read_label
from .memory import check_memory
from .prompts import GivenPrompt, given_prompts, read_given
from .records import plain, prompts_record
from .registration import ImageInfo
from .request import PairRequest


class ReadPaird(MapTransform):
    """Read and check a pair of images and the prompts on the moving one.

    Reads from the dictionary, beside the two image keys (fixed first): "prompts" (see `prompts.read_given`),
    "prompt_space" ("voxel" or "world"), "moving_label" (path), "fixed_frame" and "moving_frame" (0-based, for files
    with several frames) and, as MONAI Label's clients send them, "foreground" and "background" (lists of voxels that
    form one prompt; on pictures these clients count columns first).

    A dictionary with the key "image_path" comes from a client of MONAI Label, which must not choose files of the
    server: the moving image is then one that lies beside the fixed one, by its name or id, and prompts come inline.

    Args:
        keys: keys of the fixed and of the moving image's path.
        names: what the user calls these two inputs, for error messages.
        memory: bytes that a registration may take; None: what the machine has.
        most: voxels that a file may have by its header, before they are read; None: as many as fit into memory.

    Raises:
        InputError: whatever is wrong with the images or prompts, before any heavy work.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "moving"),
        names: Sequence[str] = ("fixed_image", "moving_image"),
        memory: float | None = None,
        most: int | None = None,
    ) -> None:
        super().__init__(keys)
        self.memory, self.most = memory, most
        self.fixed_key, self.moving_key = self.keys
        self.names = tuple(names)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key, name in zip(self.keys, self.names, strict=True):
            if not data.get(key):
                raise InputError(f"{name}: none given; expected the path of an image")
        if "image_path" in data:
            data = {**data, self.moving_key: self._confined(data)}
        (fixed, fixed_info), (moving, moving_info) = (
            read_image(data[key], name=name, frame=data.get(frame_option(name)), most=self.most)
            for key, name in zip(self.keys, self.names, strict=True)
        )
        if fixed.ndim != moving.ndim:
            raise InputError(
                f"{self.names[1]}: {moving_info.path} has {moving.ndim - 1} axes but {self.names[0]} has "
                f"{fixed.ndim - 1}; both must be 2-D or both 3-D"
            )
        try:
            check_memory(fixed.shape, moving.shape, limit=self.memory)
        except InputError as error:
            raise InputError(f"{self.names[0]} and {self.names[1]}: to register images {error}") from error
        shape = tuple(moving.shape[1:])
        label = data.get("moving_label")
        request = PairRequest(
            fixed=fixed,
            moving=moving,
            fixed_info=fixed_info,
            moving_info=moving_info,
            prompts=self._prompts(data, shape, moving_info),
            moving_label=read_label(label, name="moving_label", shape=shape) if label else None,
        )
        image = MetaTensor(
            fixed, affine=fixed_info.affine, meta={"request": request, "filename_or_obj": fixed_info.path}
        )
        return {**data, self.fixed_key: image, self.moving_key: MetaTensor(moving, affine=moving_info.affine)}

    def _confined(self, data: Mapping[Hashable, Any]) -> Path:
        for option in ("moving_label", "prompts"):
            if isinstance(data.get(option), str) and data[option]:
                raise InputError(f"{option}: a client cannot name files of the server; give prompts as inline lists")
        return image_in(Path(str(data["image_path"])).parent, data[self.moving_key], what=self.names[1])

    @staticmethod
    def _prompts(data: Mapping[Hashable, Any], shape: tuple[int, ...], info: ImageInfo) -> list[GivenPrompt] | None:
        space = data.get("prompt_space") or "voxel"
        if space not in ("voxel", "world"):
            raise InputError(f"prompt_space: unknown '{space}', expected 'voxel' or 'world'")
        entries = read_given(data.get("prompts"))
        if entries is None:
            entry = clicked(data.get("foreground"), data.get("background"), info)
            entries = None if entry is None else [{"id": "1", **entry}]
        if entries is None:
            return None
        if "image_path" in data and any("mask" in e for e in entries):
            raise InputError("prompts: a client cannot name masks on the server; give points or boxes")
        masks = {e["mask"]: read_label(e["mask"], name="prompts", shape=shape) for e in entries if "mask" in e}
        return given_prompts(entries, shape, torch.linalg.inv(info.affine) if space == "world" else None, masks)


def clicked(foreground: Any, background: Any, info: ImageInfo) -> dict[str, Any] | None:
    """Clicks of MONAI Label's clients as an entry of `prompts.read_given`; None when there are none.

    They count three axes even on pictures, and there the column first; what lies beyond the image's own axes carries
    no position.

    Raises:
        InputError: for anything but lists of points.
    """
    clicks = [(point, label) for points, label in ((foreground, 1), (background, 0)) for point in _listed(points)]
    if not clicks:
        return None
    dims = len(info.spacing)
    points = [list(point)[:dims] for point, _ in clicks]
    if info.kind == "picture":
        points = [point[::-1] for point in points]
    return {"points": points, "labels": [label for _, label in clicks]}


def _listed(points: Any) -> list[Any]:
    if points is None:
        return []
    if not isinstance(points, list) or not all(isinstance(point, list | tuple) for point in points):
        raise InputError(f"foreground, background: {str(points)[:80]!r} is no list of points, e.g. [[120, 84, 7]]")
    return points


class LabelFiled(MapTransform):
    """Give the regions the form in which MONAI Label's writer makes a file that lies on the image.

    It turns axes round, and puts a picture with a channel into a volume; so of a picture it gets the transposed plane.
    Small integers, because files of pictures hold nothing else.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.keys:
            regions = d[key].to(torch.uint8)
            d[key] = regions[0].T if regions.ndim == 3 else regions
        return d


class ResultToDictd(MapTransform):
    """Put the counterparts, confidences and cost of a registration into `data["result"]`, as MONAI Label returns them.

    Args:
        keys: key of the inferer's output, whose `meta["registration"]` holds everything.
    """

    def __init__(self, keys: KeysCollection = "pred") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        registration = data[self.keys[0]].meta["registration"]
        result = {
            "prompts": prompts_record(registration.pairs, registration.moving_info, registration.fixed_info),
            "folding_percent": registration.folding_percent,
            "seconds": registration.seconds,
        }
        return {**data, "result": plain(result)}


def collate_pair(batch: list[dict[Hashable, Any]]) -> dict[Hashable, Any]:
    """A batch of one pair, as MONAI Label makes it: tensors get a leading axis, everything else stays.

    Raises:
        InputError: for more than one pair, whose sizes would differ.
    """
    if len(batch) != 1:
        raise InputError(f"dataloader: batch_size is {len(batch)}; pairs are registered one at a time, so it must be 1")
    return {key: value[None] if isinstance(value, Tensor) else value for key, value in batch[0].items()}
