# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""What one visitor of the page has before them: a pair, its session, a corner waiting for its box, the result."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
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
from .page_view import Mark, View
from .prompts import Prompts, given_prompts
from .registration import Registration
from .report import write_report
from .request import PairRequest
from .segmenters.protocol import PromptableSegmenter
from .transforms import ReadPaird

LARGEST = 40_000_000  # voxels of an image, by its header
PLANES = ("axial", "coronal", "sagittal")


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
        request: PairRequest = ReadPaird(most=LARGEST)(paths)["image"].meta["request"]
        self.session = Session(inferer, request.on(network.device), network)
        self.images = {"fixed": request.fixed, "moving": request.moving}
        self.infos = {"fixed": request.fixed_info, "moving": request.moving_info}
        self.windows = {side: window_of(image) for side, image in self.images.items()}
        self.plane = "axial" if self.volume else ""
        self.at: dict[str, int] = {}
        self.choose_plane(self.plane)
        self.waiting: tuple[str, list[float]] | None = None
        self.result: Registration | None = None
        self._numbers: dict[str, int] = {}

    @property
    def volume(self) -> bool:
        """Whether the images are volumes."""
        return self.images["fixed"].ndim == 4

    def choose_plane(self, name: str) -> None:
        """Show this plane of volumes, through the middle."""
        self.plane, self.waiting = name, None
        for side in SIDES:
            plane = self._view(side, None).plane
            self.at[side] = plane.index[plane.across] if self.volume else 0

    def slices(self, side: str) -> int:
        """How many slices there are in the plane shown."""
        plane = self.view(side).plane
        return plane.shape[plane.across] if self.volume else 1

    def view(self, side: str) -> View:
        """The plane shown of one image."""
        return self._view(side, self.at[side])

    def _view(self, side: str, at: int | None) -> View:
        return View.of(self.infos[side], self.images[side].shape[1:], self.plane, at)

    def click(self, side: str, pixel: list[float], *, box: bool) -> str:
        """A click on an image: asks for a counterpart, or sets a box's corner. Returns what to say about it."""
        voxel = self.view(side).voxel(pixel)
        if box and (self.waiting is None or self.waiting[0] != side):
            self.waiting = side, voxel
            return f"First corner on the {side} image is set; click the opposite corner."
        name = str(max(self._numbers.values(), default=0) + 1)
        entry: dict[str, Any] = {"id": name, "point": voxel}
        if box and self.waiting is not None:
            first, self.waiting = self.waiting[1], None
            corners = torch.tensor([first, voxel])
            if self.volume:  # as deep as it is wide, in millimetres
                plane, spacing = self.view(side).plane, torch.tensor(self.infos[side].spacing)
                sides = (corners[0] - corners[1]).abs() * spacing
                deep = sides[plane.in_plane].mean() / spacing[plane.across] / 2
                last = plane.shape[plane.across] - 1
                corners[0, plane.across] = (corners[0, plane.across] - deep).clamp(min=0)
                corners[1, plane.across] = (corners[1, plane.across] + deep).clamp(max=last)
            entry = {"id": name, "box": corners.tolist()}
        given = given_prompts([entry], tuple(self.images[side].shape[1:]), None, {}, side=side)
        pair = self.session.counterpart(given, side)
        self._numbers[name], self.result = int(name), None
        other = SIDES[1 - SIDES.index(side)]
        if not pair.found[0]:
            return f"Prompt {name} on the {side} image: **no correspondence** on the {other} image."
        if self.volume:
            prompts = pair.fixed_prompts if other == "fixed" else pair.moving_prompts
            across = self.view(other).plane.across
            self.at[other] = round(prompts.coordinates[0, :, across].mean().item())
        return f"Prompt {name}: found on the {other} image with confidence **{pair.confidence[0]:.2f}**."

    def remove(self, names: list[str]) -> None:
        """Forget prompts."""
        self.session.remove(*names)
        self.result, self.waiting = None, None

    @property
    def names(self) -> list[str]:
        """Prompts on the desk."""
        return list(self.session.sides())

    def picture(self, side: str) -> Image.Image:
        """One image with all marks."""
        marks, sides = [], self.session.sides()
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
            corner = Prompts(torch.tensor([[self.waiting[1]]]), torch.ones(1, 1, dtype=torch.long))
            marks.append(Mark(max(self._numbers.values(), default=0), True, corner, None))
        return self.view(side).draw(self.images[side], self.windows[side], marks)

    def table(self) -> str:
        """The prompts as HTML: colour, number, where it was given, confidence."""
        sides = self.session.sides()
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
        """Fit the map; returns the files to download."""
        self.result = self.session.register()
        folder = Path(tempfile.mkdtemp(prefix="promptreg-"))
        write_outputs(self.result, folder, report=write_report)
        return sorted(str(file) for file in folder.iterdir())

    def blend(self, share: float) -> Image.Image | None:
        """Fixed (0) and moved (1) image faded into each other; None before registering."""
        if self.result is None:
            return None
        view = self.view("fixed")
        fixed = view.grey(self.images["fixed"], self.windows["fixed"])
        return Image.blend(fixed, view.grey(self.result.moved, self.windows["moving"]), min(max(share, 0.0), 1.0))
