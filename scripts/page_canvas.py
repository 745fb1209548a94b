# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""The picture of an image that the page in the browser shows: of a volume three planes, of which any can be clicked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from .page_view import FONT, LONGEST, Mark, View
from .registration import ImageInfo

LINE, NAME = "#8894A0", "#D7DEE5"
NAMES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Canvas:
    """Planes of one image side by side; pixels are (x, y) of the whole picture.

    Attributes:
        views: the planes, of a volume axial, coronal and sagittal; corners: upper left pixel of each.
        size: width and height.
    """

    views: tuple[View, ...]
    corners: tuple[tuple[int, int], ...]
    size: tuple[int, int]

    @classmethod
    def of(cls, info: ImageInfo, shape: Sequence[int], through: Sequence[float]) -> Canvas:
        """The planes through a voxel `(i, j(, k))` in one scale, two of them below or beside the axial one."""
        views = View.all(info, shape, through)
        if len(views) == 1:
            return cls(tuple(views), ((0, 0),), views[0].size)
        (w0, h0), (w1, h1), (w2, h2) = (view.plane.sides for view in views)
        below = min(LONGEST / max(w0, w1 + w2), LONGEST / (h0 + max(h1, h2)))
        beside = min(LONGEST / (w0 + max(w1, w2)), LONGEST / max(h0, h1 + h2))
        views = [view.scaled(max(below, beside)) for view in views]
        (w0, h0), (w1, h1), (w2, h2) = (view.size for view in views)
        if below > beside:
            return cls(tuple(views), ((0, 0), (0, h0), (w1, h0)), (max(w0, w1 + w2), h0 + max(h1, h2)))
        return cls(tuple(views), ((0, 0), (w0, 0), (w0, h1)), (w0 + max(w1, w2), max(h0, h1 + h2)))

    def at(self, pixel: Sequence[float]) -> tuple[View, list[float]] | None:
        """The plane that was clicked and the voxel there; None between planes."""
        for view, (left, top) in zip(self.views, self.corners, strict=True):
            x, y = pixel[0] - left, pixel[1] - top
            if 0 <= x < view.size[0] and 0 <= y < view.size[1]:
                return view, view.voxel((x, y))
        return None

    def pixel(self, voxel: Sequence[float], name: str = "") -> tuple[float, float]:
        """Where a voxel lies in the plane of this name ("": in the first)."""
        number = NAMES.index(name) if name else 0
        x, y = self.views[number].pixel(voxel)
        return x + self.corners[number][0], y + self.corners[number][1]

    def grey(self, image: Tensor, window: tuple[float, float]) -> Image.Image:
        """The planes of `[C, *S]` alone."""
        return self._joined(lambda view: view.grey(image, window))

    def draw(self, image: Tensor, window: tuple[float, float], marks: Sequence[Mark]) -> Image.Image:
        """The planes with every mark that lies in them, and where each is cut by the others."""

        def drawn(view: View) -> Image.Image:
            return view.draw(image, window, marks, lines=LINE if len(self.views) > 1 else None)

        picture = self._joined(drawn)
        if len(self.views) > 1:
            pen = ImageDraw.Draw(picture)
            for name, view, (left, top) in zip(NAMES, self.views, self.corners, strict=True):
                below = top + view.size[1] - 24  # above, the page has a label
                pen.text((left + 6, below), name, NAME, font=FONT, stroke_width=2, stroke_fill="black")
        return picture

    def _joined(self, drawn: Callable[[View], Image.Image]) -> Image.Image:
        picture = Image.new("RGB", self.size, "black")
        for view, corner in zip(self.views, self.corners, strict=True):
            picture.paste(drawn(view), corner)
        return picture
