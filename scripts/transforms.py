# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""MONAI dictionary transforms at the two ends of the inferer.

`ReadPaird` turns a request (paths and prompts) into the fixed image that carries everything else in its `meta`, because
MONAI Label hands an inferer the image tensor and nothing more. `ResultToDictd` turns the answer into JSON-able values.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from .errors import InputError
from .images import frame_option, read_image, read_label
from .memory import check_memory
from .outputs import plain, prompts_record
from .prompts import GivenPrompt, given_prompts, read_given
from .request import PairRequest


class ReadPaird(MapTransform):
    """Read and check a pair of images and the prompts on the moving one.

    Reads from the dictionary, beside the two image keys (fixed first): "prompts" (see `prompts.read_given`),
    "prompt_space" ("voxel" or "world"), "moving_label" (path), "fixed_frame" and "moving_frame" (0-based, for files
    with several frames) and, as MONAI Label's clients send them, "foreground" and "background" (lists of voxels; they
    form one prompt).

    Args:
        keys: keys of the fixed and of the moving image's path.
        names: what the user calls these two inputs, for error messages.
        memory: bytes that a registration may take; None: what the machine has.

    Raises:
        InputError: whatever is wrong with the images or prompts, before any heavy work.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "moving"),
        names: Sequence[str] = ("fixed_image", "moving_image"),
        memory: float | None = None,
    ) -> None:
        super().__init__(keys)
        self.memory = memory
        self.fixed_key, self.moving_key = self.keys
        self.names = tuple(names)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key, name in zip(self.keys, self.names, strict=True):
            if not data.get(key):
                raise InputError(f"{name}: none given; expected the path of an image")
        (fixed, fixed_info), (moving, moving_info) = (
            read_image(data[key], name=name, frame=data.get(frame_option(name)))
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
            prompts=self._prompts(data, shape, moving_info.affine),
            moving_label=read_label(label, name="moving_label", shape=shape) if label else None,
        )
        image = MetaTensor(
            fixed, affine=fixed_info.affine, meta={"request": request, "filename_or_obj": fixed_info.path}
        )
        return {**data, self.fixed_key: image, self.moving_key: MetaTensor(moving, affine=moving_info.affine)}

    @staticmethod
    def _prompts(data: Mapping[Hashable, Any], shape: tuple[int, ...], affine: Tensor) -> list[GivenPrompt] | None:
        space = data.get("prompt_space") or "voxel"
        if space not in ("voxel", "world"):
            raise InputError(f"prompt_space: unknown '{space}', expected 'voxel' or 'world'")
        entries = read_given(data.get("prompts"))
        clicks = [(p, 1) for p in data.get("foreground") or []] + [(p, 0) for p in data.get("background") or []]
        if entries is None and clicks:
            # Clients count three axes even on pictures; what lies beyond the image's own axes carries no position.
            points = [list(point)[: len(shape)] for point, _ in clicks]
            entries = [{"id": "1", "points": points, "labels": [label for _, label in clicks]}]
        if entries is None:
            return None
        masks = {e["mask"]: read_label(e["mask"], name="prompts", shape=shape) for e in entries if "mask" in e}
        return given_prompts(entries, shape, torch.linalg.inv(affine) if space == "world" else None, masks)


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
