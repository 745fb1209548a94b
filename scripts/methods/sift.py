# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""OpenCV: one affine map from matched SIFT keypoints.

Lowe, Distinctive image features from scale-invariant keypoints, IJCV 2004; https://opencv.org (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry import identity_points, transform_points
from ..request import PairRequest
from .itk_space import grey, missing_package, version_of, workroom
from .protocol import Mapped


@dataclass(frozen=True)
class SiftAffine:
    """Keypoints on locally equalised pictures, matched, and an affine map fitted to those that agree. 2-D only.

    Attributes:
        ratio: a match counts if its distance is at most this share of the second best's.
        threshold: distance at which a match agrees with a map (RANSAC), pixels of the moving image.
        iterations: of RANSAC, at most.
        confidence: at which RANSAC stops earlier.
        clip: contrast limit of the equalisation (CLAHE).
        tiles: its tiles along each axis.
    """

    ratio: float = 0.8
    threshold: float = 3.0
    iterations: int = 5000
    confidence: float = 0.99
    clip: float = 2.0
    tiles: int = 8

    def missing(self) -> str | None:
        return missing_package("opencv-python-headless", "opencv-python-headless==5.0.0.93", "cv2")

    def settings(self) -> dict[str, Any]:
        return {**asdict(self), "version": version_of("opencv-python-headless")}

    def __call__(self, request: PairRequest) -> Mapped:
        if request.fixed.ndim != 3:
            raise InputError("SIFT: the images are volumes; SIFT registers 2-D images only")
        cv2 = import_module("cv2")
        with workroom("SIFT"):
            cv2.setNumThreads(torch.get_num_threads())
            matrix = self._fit(cv2, grey(request.fixed), grey(request.moving))
            height, width = request.fixed.shape[1:]
            warped = cv2.warpAffine(
                grey(request.moving).numpy(), matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            )
        to_moving = torch.eye(3, dtype=torch.float64)
        to_moving[:2] = torch.from_numpy(matrix)[[1, 0]][:, [1, 0, 2]]  # OpenCV counts columns first
        points = transform_points(to_moving, identity_points((height, width)).double()).float()
        return Mapped(points.to(request.fixed.device), torch.from_numpy(warped).to(request.fixed.device))

    def _fit(self, cv2: Any, fixed: Tensor, moving: Tensor) -> np.ndarray:
        """Matrix `[2, 3]` from fixed to moving (column, row)."""
        (fixed_keys, fixed_words), (moving_keys, moving_words) = (self._keypoints(cv2, i) for i in (fixed, moving))
        matches = []
        if len(fixed_keys) and len(moving_keys) > 1:  # the ratio needs a second best
            candidates = cv2.BFMatcher().knnMatch(fixed_words, moving_words, k=2)
            matches = [best for best, second in candidates if best.distance < self.ratio * second.distance]
        matrix = None
        if len(matches) >= 3:
            places = [np.array([fixed_keys[m.queryIdx].pt for m in matches], dtype=np.float32)]
            places.append(np.array([moving_keys[m.trainIdx].pt for m in matches], dtype=np.float32))
            matrix, _ = cv2.estimateAffine2D(
                *places,
                method=cv2.RANSAC,
                ransacReprojThreshold=self.threshold,
                maxIters=self.iterations,
                confidence=self.confidence,
            )
        if matrix is None:
            raise RuntimeError(f"too few matches ({len(matches)}) for an affine map")
        return matrix

    def _keypoints(self, cv2: Any, image: Tensor) -> tuple[Any, Any]:
        low, high = image.amin(), image.amax()
        bytes_ = ((image - low) * (255 / (high - low))).round().byte().numpy()
        equalised = cv2.createCLAHE(clipLimit=self.clip, tileGridSize=(self.tiles, self.tiles)).apply(bytes_)
        return cv2.SIFT_create().detectAndCompute(equalised, None)
