# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Requests of MONAI Label's clients answered from sessions; knows the form of requests, not the server.

A pair is prepared once for everyone. Who names a session has prompts there that vouch for each other; who names none
asks alone. The image that was clicked first is the moving one of its pair, whichever is clicked later.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from threading import RLock
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..confine import PLAIN, image_in
from ..errors import InputError, as_bool
from ..fields import write_field
from ..inferer import PromptRegInferer
from ..interactive import Session
from ..outputs import output_suffix, plain, prompts_record, region_map, write_image
from ..prompts import given_prompts, read_given
from ..readers import lps_flip
from ..registration import ImageInfo, Registration
from ..request import PairRequest
from ..segmenters.promptable import PromptableSegmenter
from ..transforms import ReadPaird, clicked

PAIRS, SESSIONS = 4, 64  # kept at most, those used last
ENDINGS = (".nrrd", ".nii.gz", ".nii", ".mha", ".png")


class Rooms:
    """Prepared pairs and named sessions.

    Args:
        studies: folder of the images; inferer, network: method and model.
    """

    def __init__(self, studies: str | Path, inferer: PromptRegInferer, network: PromptableSegmenter) -> None:
        self.studies, self.inferer, self.network = Path(studies), inferer, network
        self._pairs: OrderedDict[tuple[str, str], Session] = OrderedDict()
        self._sessions: OrderedDict[tuple[str, str, str], Session] = OrderedDict()
        self._lock = RLock()

    def answer(self, request: dict[str, Any]) -> tuple[Path | None, dict[str, Any]]:
        """Answer one request.

        Args:
            request: "image" (id of the clicked image), "other_image" (id of the other), "foreground" and "background"
                as the clients send them, or "prompts" (see `prompts.read_given`, inline); optional "session",
                "prompt_id", "register", "remove", "result_extension".

        Returns:
            a temporary file (the region on the other image's grid; when registering, the moved image), None if there
            is no region to show; and what is told beside it, JSON-able.

        Raises:
            InputError: whatever is wrong with the request, in one sentence that names no place on this machine.
        """
        began = perf_counter()
        ending = request.get("result_extension") or ".nrrd"
        if ending not in ENDINGS:
            raise InputError(f"result_extension: unknown {str(ending)[:20]!r}, expected one of {list(ENDINGS)}")
        image = image_in(self.studies, request.get("image"), what="image")
        other = image_in(self.studies, request.get("other_image"), what="other_image")
        if image.resolve() == other.resolve():
            raise InputError("other_image: is the image that was clicked; choose the one to find the counterpart in")
        session, side = self._session(image, other, request.get("session"))
        told: dict[str, Any] = {"fixed_image": (image if side == "fixed" else other).name}
        told |= {"moving_image": (other if side == "fixed" else image).name, "clicked": side}
        remove = request.get("remove")
        if remove:
            session.remove(*(remove if isinstance(remove, list) else [str(remove)]))
        asked = self._asked(session, side, request)
        file: Path | None = None
        if asked:
            with self._lock:
                session.remove(*(name for name in asked if name in session.sides()))
                file, told["counterparts"] = self._counterparts(session, side, asked, ending)
        elif not remove and not as_bool(request.get("register", False), "register"):
            raise InputError("foreground: no clicks given; click in the image, or give prompts")
        if as_bool(request.get("register", False), "register"):
            registration = session.register()
            file, told["folding_percent"] = _written(registration), registration.folding_percent
            told["registration"] = {"field": str(file.parent / "ddf.nii.gz"), "moved": str(file)}
        if len(session):
            pairs = session.pairs()
            told["prompts"] = prompts_record(pairs, session.request.moving_info, session.request.fixed_info)
        return file, plain(told | {"seconds": perf_counter() - began})

    def _session(self, image: Path, other: Path, name: Any) -> tuple[Session, str]:
        if name and (not isinstance(name, str) or len(name) > 100 or not PLAIN.fullmatch(name)):
            raise InputError(f"session: {str(name)[:40]!r} is no name; use letters and digits")
        with self._lock:
            key = (str(other), str(image))  # fixed, moving
            if key[::-1] in self._pairs:
                key = key[::-1]
            if key not in self._pairs:
                paths: dict[Hashable, Any] = {"image": key[0], "moving": key[1]}
                try:
                    request: PairRequest = ReadPaird()(paths)["image"].meta["request"]
                except InputError as wrong:
                    raise InputError(str(wrong).replace(f"{self.studies.resolve()}/", "")) from wrong
                self._pairs[key] = Session(self.inferer, request.on(self.network.device), self.network)
            prepared = _kept(self._pairs, key, self._pairs[key], PAIRS)
            side = "fixed" if str(image) == key[0] else "moving"
            if not name:
                return prepared.fresh(), side
            own = self._sessions.get((*key, name)) or prepared.fresh()
            return _kept(self._sessions, (*key, name), own, SESSIONS), side

    @staticmethod
    def _asked(session: Session, side: str, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
        info = session.request.fixed_info if side == "fixed" else session.request.moving_info
        given = request.get("prompts")
        if isinstance(given, str):
            raise InputError("prompts: a client cannot name files of the server; give prompts as inline lists")
        entries = read_given(given) or []
        if any("mask" in entry for entry in entries):
            raise InputError("prompts: a client cannot name masks on the server; give points or boxes")
        entry = clicked(request.get("foreground"), request.get("background"), info)
        if entry is not None:
            entries = [*entries, {"id": str(request.get("prompt_id") or f"clicks on {side}"), **entry}]
        return {str(entry["id"]): entry for entry in entries}

    @staticmethod
    def _counterparts(
        session: Session, side: str, asked: dict[str, dict[str, Any]], ending: str
    ) -> tuple[Path | None, list[dict[str, Any]]]:
        own = session.request.fixed if side == "fixed" else session.request.moving
        pairs = session.counterpart(
            given_prompts(list(asked.values()), tuple(own.shape[1:]), None, {}, side=side), side
        )
        there = "moving" if side == "fixed" else "fixed"
        regions = pairs.moving_regions if there == "moving" else pairs.fixed_regions
        info = session.request.moving_info if there == "moving" else session.request.fixed_info
        told = []
        for record in prompts_record(pairs, session.request.moving_info, session.request.fixed_info):
            place = record[there] if record["found"] else None
            points = None if place is None else place["voxel"].tolist()
            if points is not None and info.kind == "picture":
                points = [point[::-1] for point in points]  # as the clients count
            told.append({key: record[key] for key in ("id", "found", "status", "confidence")} | {"points": points})
        if not pairs.found.any():
            return None, told
        return write_labels(region_map(regions, pairs.found), info, ending), told


def _kept(kept: OrderedDict[Any, Session], key: Any, value: Session, most: int) -> Session:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
    return value


def write_labels(labels: Tensor, info: ImageInfo, ending: str) -> Path:
    """Labels `[*S]` as a temporary file; a picture's as ITK places its pixels, when the file is that of a volume."""
    if info.kind == "volume" and ending == ".png":
        ending = ".nrrd"
    if info.kind == "picture" and ending != ".png":
        affine = torch.from_numpy(lps_flip(2))
        labels, info = labels.T.contiguous(), ImageInfo(info.path, "volume", ending, affine, (1.0, 1.0))
    file = Path(tempfile.mkdtemp(prefix="promptreg-")) / f"regions{ending}"
    write_image(labels, info, file)
    return file


def _written(registration: Registration) -> Path:
    folder, fixed = Path(tempfile.mkdtemp(prefix="promptreg-")), registration.fixed_info
    file = folder / f"moved{output_suffix(fixed, labels=False, source=registration.moving)}"
    write_image(registration.moved, fixed, file, source=registration.moving)
    write_field(folder / "ddf.nii.gz", registration.ddf, registration.to_moving, fixed, registration.moving_info)
    return file
