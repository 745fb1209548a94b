# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What one visitor of the page has before them: a pair, its session, a corner waiting for its box, the result."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .asked import SIDES
from .drawing import window_of
from .inferer import PromptRegInferer
from .interactive import Session
from .outputs import write_outputs
from .page_canvas import NAMES, Canvas
from .page_view import Mark, View
from .prompts import Prompts, given_prompts
from .registration import Registration
from .report import write_report
from .request import PairRequest
from .segmenters.promptable import PromptableSegmenter
from .transforms import ReadPaird

LARGEST = 40_000_000  # voxels of an image, by its header


class Desk:
    """One visitor's pair.

    Args:
        files: paths of the fixed and the moving image, by side.
        inferer, network: the method and the model, shared by all visitors.

    Raises:
        InputError: for files that cannot be registered.
    """

    def __init__(self, files: dict[str, str | Path], inferer: PromptRegInferer, network: PromptableSegmenter) -> None:
        paths: dict[Hashable, Any] = {"image": str(files["fixed"]), "moving": str(files["moving"])}
        self.request: PairRequest = ReadPaird(most=LARGEST)(paths)["image"].meta["request"]
        self._method, request = (inferer, network), self.request
        self.images = {"fixed": request.fixed, "moving": request.moving}
        self.infos = {"fixed": request.fixed_info, "moving": request.moving_info}
        self.windows = {side: window_of(image) for side, image in self.images.items()}
        self.at = {side: [(n - 1) / 2 for n in image.shape[1:]] for side, image in self.images.items()}
        self.waiting: tuple[str, View, list[float]] | None = None
        self.result: Registration | None = None
        self._written: tempfile.TemporaryDirectory[str] | None = None
        self._numbers: dict[str, int] = {}

    @cached_property
    def session(self) -> Session:
        """The slow part, done when it is first asked for; `InputError` for a pair that the model cannot take."""
        inferer, network = self._method
        return Session(inferer, self.request, network)

    @property
    def ready(self) -> bool:
        """Whether the session is there."""
        return "session" in self.__dict__

    @property
    def _sides(self) -> dict[str, str]:
        """Side of each prompt; none before the session is there, which this does not wait for."""
        return self.session.sides() if self.ready else {}

    @property
    def volume(self) -> bool:
        """Whether the images are volumes."""
        return self.images["fixed"].ndim == 4

    def canvas(self, side: str) -> Canvas:
        """The planes shown of one image."""
        return Canvas.of(self.infos[side], self.images[side].shape[1:], self.at[side])

    def slices(self, side: str) -> dict[str, tuple[int, int]]:
        """Of each plane of a volume the slice shown and how many there are."""
        planes = [view.plane for view in self.canvas(side).views] if self.volume else []
        return {plane.name: (plane.index[plane.across], plane.shape[plane.across]) for plane in planes}

    def go_to(self, side: str, name: str, at: int) -> None:
        """Show this slice in the plane of a name."""
        plane = self.canvas(side).views[NAMES.index(name)].plane
        self.at[side][plane.across] = min(max(at, 0), plane.shape[plane.across] - 1)

    def click(self, side: str, pixel: list[float], *, box: bool) -> str:
        """A click on an image: asks for a counterpart, or sets a box's corner. Returns what to say about it."""
        clicked = self.canvas(side).at(pixel)
        if clicked is None:
            return "Click inside one of the planes."
        view, voxel = clicked
        self.at[side] = [min(max(v, 0.0), n - 1.0) for v, n in zip(voxel, self.images[side].shape[1:], strict=True)]
        if box and (self.waiting is None or self.waiting[0] != side):
            self.waiting = side, view, voxel
            return f"First corner on the {side} image is set; click the opposite corner."
        name = str(max(self._numbers.values(), default=0) + 1)
        entry: dict[str, Any] = {"id": name, "point": voxel}
        if box and self.waiting is not None:
            first, self.waiting = self.waiting[1:], None
            entry = {"id": name, "box": self._corners(side, first, (view, voxel))}
        given = given_prompts([entry], tuple(self.images[side].shape[1:]), None, {}, side=side)
        pair = self.session.counterpart(given, side)
        self._numbers[name], self.result = int(name), None
        other = SIDES[1 - SIDES.index(side)]
        if not pair.found[0]:
            return f"Prompt {name} on the {side} image: **no correspondence** on the {other} image."
        prompts = pair.fixed_prompts if other == "fixed" else pair.moving_prompts
        self.at[other] = prompts.coordinates[0].mean(0).tolist()
        return f"Prompt {name}: found on the {other} image with confidence **{pair.confidence[0]:.2f}**."

    def _corners(self, side: str, *clicks: tuple[View, list[float]]) -> list[list[float]]:
        """Corners of a box; of one drawn in a plane of a volume as deep as it is wide, in millimetres."""
        corners = torch.tensor([voxel for _, voxel in clicks])
        planes = [view.plane for view, _ in clicks]
        if self.volume and planes[0].name == planes[1].name:
            across, spacing = planes[0].across, torch.tensor(self.infos[side].spacing)
            sides = (corners[0] - corners[1]).abs() * spacing
            deep = sides[planes[0].in_plane].mean() / spacing[across] / 2
            middle, last = corners[:, across].mean(), planes[0].shape[across] - 1
            corners[:, across] = torch.stack([middle - deep, middle + deep]).clamp(0, last)
        return corners.tolist()

    def remove(self, names: list[str]) -> None:
        """Forget prompts."""
        self.session.remove(*names)
        self.result, self.waiting = None, None

    @property
    def names(self) -> list[str]:
        """Prompts on the desk."""
        return list(self._sides)

    def picture(self, side: str) -> Image.Image:
        """One image with all marks."""
        marks, sides = [], self._sides
        if sides:
            pairs = self.session.pairs()
            own = {"fixed": (pairs.fixed_prompts, pairs.fixed_regions)}
            prompts, regions = own.get(side, (pairs.moving_prompts, pairs.moving_regions))
            for k, name in enumerate(pairs.ids):
                found = bool(pairs.found[k])
                if found or sides[name] == side:
                    text = f"{name}: {pairs.confidence[k]:.2f}" if found else f"{name}: none"
                    marks.append(Mark(self._numbers[name] - 1, found, prompts[[k]], regions[k], text))
        if self.waiting is not None and self.waiting[0] == side:
            corner = Prompts(torch.tensor([[self.waiting[2]]]), torch.ones(1, 1, dtype=torch.long))
            marks.append(Mark(max(self._numbers.values(), default=0), True, corner, None))
        return self.canvas(side).draw(self.images[side], self.windows[side], marks)

    def table(self) -> str:
        """The prompts as HTML: colour, number, where it was given, confidence."""
        sides = self._sides
        if not sides:
            return "<p>No prompts yet. Click something in either image.</p>"
        pairs, rows = self.session.pairs(), []
        for k, name in enumerate(pairs.ids):
            found = bool(pairs.found[k])
            colour = Mark(self._numbers[name] - 1, found, None, None).colour
            verdict = f"{pairs.confidence[k]:.2f}" if found else "no correspondence"
            chip = f'<span style="color:{colour};text-shadow:0 0 2px #000">&#9733;</span>'
            rows.append(f"<tr><td>{chip} {escape(name)}</td><td>{sides[name]}</td><td>{verdict}</td></tr>")
        head = "<tr><th>prompt</th><th>given on</th><th>confidence</th></tr>"
        return f'<table class="prompts">{head}{"".join(rows)}</table>'

    def register(self) -> list[str]:
        """Fit the map; returns the files to download, which stay until the next ones or the desk's end."""
        self.result = self.session.register()
        written = tempfile.TemporaryDirectory(prefix="promptreg-")
        write_outputs(self.result, Path(written.name), report=write_report)
        if self._written is not None:
            self._written.cleanup()
        self._written = written
        return sorted(str(file) for file in Path(written.name).iterdir())

    def blend(self, share: float) -> Image.Image | None:
        """Fixed (0) and moved (1) image faded into each other; None before registering."""
        if self.result is None:
            return None
        canvas = self.canvas("fixed")
        fixed = canvas.grey(self.images["fixed"], self.windows["fixed"])
        return Image.blend(fixed, canvas.grey(self.result.moved, self.windows["moving"]), min(max(share, 0.0), 1.0))
