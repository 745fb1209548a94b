# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""One image as the page in the browser shows it: a plane with stars, boxes and outlines; which voxel was clicked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from skimage.measure import find_contours
from torch import Tensor

from .drawing import GREY, colour_of, in_colour
from .planes import Plane, planes_of
from .prompts import Prompts
from .registration import ImageInfo

LONGEST = 600  # pixels of the longest side on the page
FONT = ImageFont.load_default(17)
Path2D = list[tuple[float, float]]


@dataclass(frozen=True)
class Mark:
    """What is drawn for one prompt on one image.

    Attributes:
        number: index of its colour; found: whether it has a counterpart (else grey).
        prompt: one prompt in voxels of this image, None where only the region is known; region: `[*S]` probability.
        text: written beside it.
    """

    number: int
    found: bool
    prompt: Prompts | None
    region: Tensor | None
    text: str = ""

    @property
    def colour(self) -> str:
        """As everywhere in the report: by number, grey without a counterpart."""
        return colour_of(self.number) if self.found else GREY


@dataclass(frozen=True)
class View:
    """A plane of an image on the page; pixels are (x, y) of the picture shown, `scale` of them a millimetre."""

    plane: Plane
    scale: float

    @classmethod
    def all(cls, info: ImageInfo, shape: Sequence[int], through: Sequence[float]) -> list[View]:
        """Axial, coronal and sagittal plane through a voxel; a 2-D image itself; each in its greatest scale."""
        planes = planes_of(info, shape, torch.tensor(through))
        return [cls(plane, LONGEST / max(plane.sides)) for plane in planes]

    def scaled(self, scale: float) -> View:
        """The same plane in another scale."""
        return replace(self, scale=scale)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on the page."""
        return max(1, round(self.scale * self.plane.sides[0])), max(1, round(self.scale * self.plane.sides[1]))

    def voxel(self, pixel: Sequence[float]) -> list[float]:
        """Voxel `(i, j(, k))` under a pixel."""
        place = [float(at) for at in self.plane.index]
        for at, size, axis in zip(pixel, self.size, self.plane.in_plane, strict=True):
            share = (at + 0.5) / size
            share = 1 - share if self._flipped(axis) else share
            place[axis] = share * self.plane.shape[axis] - 0.5
        return place

    def pixel(self, voxel: Sequence[float]) -> tuple[float, float]:
        """Where a voxel lies on the page, whichever slice it is in."""
        shares = [(voxel[axis] + 0.5) / self.plane.shape[axis] for axis in self.plane.in_plane]
        shares = [1 - s if self._flipped(axis) else s for s, axis in zip(shares, self.plane.in_plane, strict=True)]
        return shares[0] * self.size[0] - 0.5, shares[1] * self.size[1] - 0.5

    def _flipped(self, axis: int) -> bool:
        return self.plane.flipped[0] if axis == self.plane.rows else self.plane.flipped[1]

    def shown(self, voxel: Sequence[float]) -> bool:
        """Whether a voxel lies in this slice."""
        axes = set(range(len(voxel))) - set(self.plane.in_plane)
        return all(abs(voxel[axis] - self.plane.index[axis]) <= 0.5 for axis in axes)

    def grey(self, image: Tensor, window: tuple[float, float]) -> Image.Image:
        """The plane of `[C, *S]` alone."""
        picture = in_colour(self.plane.take(image), window)
        for axis, flipped in enumerate(self.plane.flipped):
            picture = np.flip(picture, axis) if flipped else picture
        return Image.fromarray((255 * picture).round().astype(np.uint8)).resize(self.size, Image.Resampling.BICUBIC)

    def draw(
        self, image: Tensor, window: tuple[float, float], marks: Sequence[Mark], lines: str | None = None
    ) -> Image.Image:
        """The plane with every mark that lies in it, and with lines of a colour where the other planes cut it."""
        picture = self.grey(image, window)
        pen = ImageDraw.Draw(picture)
        if lines:
            (x, y), (width, height) = self.pixel(self.plane.index), self.size
            pen.line([(x, 0), (x, height)], fill=lines)
            pen.line([(0, y), (width, y)], fill=lines)
        for mark in marks:
            for line in self._outlines(mark.region):
                pen.line(line, fill="black", width=4, joint="curve")
                pen.line(line, fill=mark.colour, width=2, joint="curve")
        for mark in marks:
            if mark.prompt is not None:
                self._draw_prompt(pen, mark.prompt, mark.colour, mark.text)
        return picture

    def _outlines(self, region: Tensor | None) -> list[Path2D]:
        if region is None:
            return []
        shown = self.plane.take(region[None].float())
        across, down = self.plane.centres(shown)
        lines = []
        for contour in find_contours(np.pad(shown[0], 1), 0.5):
            rows = np.interp(contour[:, 0] - 1, np.arange(len(down)), down)
            columns = np.interp(contour[:, 1] - 1, np.arange(len(across)), across)
            voxels = np.tile(np.asarray(self.plane.index, dtype=float), (len(contour), 1))
            voxels[:, self.plane.rows], voxels[:, self.plane.columns] = rows, columns
            lines.append([self.pixel(voxel) for voxel in voxels.tolist()])
        return lines

    def _draw_prompt(self, pen: ImageDraw.ImageDraw, prompt: Prompts, colour: str, text: str) -> None:
        points = prompt.coordinates[0].tolist()
        if prompt.labels is None:
            ends = [self.pixel(point) for point in points]
            (left, right), (top, bottom) = (sorted(values) for values in zip(*ends, strict=True))
            in_slice = all(
                min(p[axis] for p in points) - 0.5 <= self.plane.index[axis] <= max(p[axis] for p in points) + 0.5
                for axis in set(range(len(points[0]))) - set(self.plane.in_plane)
            )
            if in_slice and right - left > 4 and bottom - top > 4:
                pen.rectangle((left, top, right, bottom), outline="black", width=4)
                pen.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=colour, width=2)
                pen.text((left + 6, top + 4), text, colour, font=FONT, stroke_width=2, stroke_fill="black")
            return
        for point, label in zip(points, prompt.labels[0].tolist(), strict=True):
            if label >= 0 and self.shown(point):
                across, down = self.pixel(point)
                star(pen, (across, down), colour if label else "white")
                long = pen.textlength(text, FONT)  # to the left where there is no room to the right
                place = across + 16 if across + 16 + long < self.size[0] else max(across - 16 - long, 0)
                pen.text((place, down - 9), text, colour, font=FONT, stroke_width=2, stroke_fill="black")


def star(pen: ImageDraw.ImageDraw, at: tuple[float, float], colour: str, radius: float = 13) -> None:
    """A five-pointed star with a dark rim."""
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    for size, fill in ((radius + 3, "black"), (radius, colour)):
        radii = np.where(np.arange(10) % 2 == 0, size, 0.45 * size)
        corners = np.stack([at[0] + radii * np.cos(angles), at[1] + radii * np.sin(angles)], axis=1)
        pen.polygon([tuple(corner) for corner in corners.tolist()], fill=fill)
