# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Requests of MONAI Label's clients answered from sessions; knows the form of requests, not the server.

A pair is prepared once for everyone. Who names a session has prompts there that vouch for each other; who names none
asks alone. The image that was clicked first is the moving one of its pair, whichever is clicked later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from time import perf_counter
from typing import Any

from ..asked import SIDES
from ..confine import PLAIN
from ..errors import InputError, as_bool
from ..interactive import Session
from ..prompts import given_prompts, read_given
from ..records import plain, prompts_record
from ..registration import Registration
from ..request import PairRequest
from ..transforms import ReadPaird, clicked
from .answers import ENDINGS, counterparts, regions_file
from .options import Methods, Options

PAIRS, SESSIONS = 4, 64  # kept at most, those used last
LARGEST = 64_000_000  # voxels of an image, by its header
AUTO, REGION_ON = "auto", ("other image", "clicked image")


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Attributes:
        regions: temporary file with labels on the grid that was asked for; empty where nothing was found.
        told: JSON-able.
        registration: when it was asked for.
    """

    regions: Path
    told: dict[str, Any]
    registration: Registration | None = None


class Rooms:
    """Prepared pairs and named sessions.

    Args:
        place: where an image lies, by its id and by what the caller calls it; refuses what is no image.
        ids: of the images that can be registered.
        methods: what can be chosen.
    """

    def __init__(self, place: Callable[[Any, str], Path], ids: Callable[[], list[str]], methods: Methods) -> None:
        self.place, self.ids, self.methods = place, ids, methods
        self._pairs: OrderedDict[Hashable, Session] = OrderedDict()
        self._sessions: OrderedDict[Hashable, Session] = OrderedDict()
        self._lock = RLock()

    def answer(self, request: dict[str, Any]) -> Answer:
        """Answer one request.

        Args:
            request: "image" (id of the clicked image), "other_image" (id of the other), "foreground", "background" and
                "roi" as the clients send them, or "prompts" (see `prompts.read_given`, inline); optional "session",
                "prompt_id", "register", "remove", "region_on", "result_extension" and what `Options` has.

        Raises:
            InputError: whatever is wrong with the request, in one sentence that names no place on this machine.
        """
        began = perf_counter()
        ending, region_on = _one_of(request, "result_extension", ENDINGS), _one_of(request, "region_on", REGION_ON)
        options, register = self.methods.chosen(request), as_bool(request.get("register") or False, "register")
        session, side, told = self._session(request, options)
        other = SIDES[1 - SIDES.index(side)]
        asked, remove = _asked(session, side, request), request.get("remove")
        if not (asked or remove or register or len(session)):
            raise InputError("foreground: no clicks given; click in the image, or give prompts")
        if remove:
            session.remove(*map(str, remove if isinstance(remove, list) else [remove]))
        if asked:
            size = tuple(session.request.image(side).shape[1:])
            given = given_prompts(list(asked.values()), size, None, {}, side=side)
            with self._lock:
                session.remove(*(name for name in asked if name in session.sides()))
                pairs = session.counterpart(given, side)
            told["counterparts"] = counterparts(pairs, session.request, other)
        registration = session.register(options.number_of_prompts) if register else None
        if registration:
            told["folding_percent"] = registration.folding_percent
        everything = registration.pairs if registration else session.pairs() if len(session) else None
        if everything is not None:
            told["prompts"] = prompts_record(everything, session.request.moving_info, session.request.fixed_info)
        # Without clicks somebody looks at an image and wants to see what there is; else at what was just asked.
        there = other if asked and region_on == REGION_ON[0] else side
        shown = pairs if asked and not register else everything
        file = regions_file(shown, session.request, there, side, ending)
        return Answer(file, plain(told | {"region_on": there, "seconds": perf_counter() - began}), registration)

    def _session(self, request: dict[str, Any], options: Options) -> tuple[Session, str, dict[str, Any]]:
        """The session that is meant, which side of it "image" is, and what is told about that."""
        image, other = self.place(request.get("image"), "image"), self._other(request)
        if image.resolve() == other.resolve():
            raise InputError("other_image: is the image that was clicked; choose the one to find the counterpart in")
        name = request.get("session")
        if name and (not isinstance(name, str) or len(name) > 100 or not PLAIN.fullmatch(name)):
            raise InputError(f"session: {str(name)[:40]!r} is no name; use letters and digits")
        places = [(str(path), path.stat().st_mtime_ns) for path in (other, image)]  # an image may be uploaded again
        key = (*places, options.preparing)  # fixed, moving
        inferer = self.methods.inferer(options)
        with self._lock:
            if (*places[::-1], options.preparing) in self._pairs:
                key = (*places[::-1], options.preparing)
            if key not in self._pairs:
                self._pairs[key] = self._prepared(key[0][0], key[1][0], options)
            prepared = _kept(self._pairs, key, self._pairs[key], PAIRS)
            own = (self._sessions.get((*key, name)) if name else None) or prepared.fresh()
            if name:
                _kept(self._sessions, (*key, name), own, SESSIONS)
        own.go_on_with(inferer)
        side = "fixed" if str(image) == key[0][0] else "moving"
        roles = {f"{s}_image": (image if s == side else other).name for s in ("fixed", "moving")}
        return own, side, roles | {"clicked": side}

    def _prepared(self, fixed: str, moving: str, options: Options) -> Session:
        paths: dict[Hashable, Any] = {"image": fixed, "moving": moving}
        try:
            request: PairRequest = ReadPaird(most=LARGEST)(paths)["image"].meta["request"]
        except InputError as wrong:
            text = str(wrong)
            for path in map(Path, (fixed, moving)):
                text = text.replace(f"{path.parent}/", "")
            raise InputError(text) from wrong
        network = self.methods.network(options.segmenter)
        plain_method = self.methods.inferer(Options(prealignment=options.prealignment, segmenter=options.segmenter))
        return Session(plain_method, request, network)

    def _other(self, request: dict[str, Any]) -> Path:
        name = request.get("other_image")
        if name in (None, "", AUTO):
            rest = [name for name in self.ids() if name != request.get("image")]
            if len(rest) != 1:
                raise InputError(
                    f"other_image: none chosen and there are {len(rest)} beside the clicked one; choose its id"
                )
            name = rest[0]
        return self.place(name, "other_image")


def _one_of(request: dict[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = request.get(name) or choices[0]
    if value not in choices:
        raise InputError(f"{name}: unknown {str(value)[:20]!r}, expected one of {list(choices)}")
    return value


def _asked(session: Session, side: str, request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Prompts of a request as entries of `prompts.read_given`, by id; points of one request are one prompt."""
    info = session.request.fixed_info if side == "fixed" else session.request.moving_info
    given = request.get("prompts")
    if isinstance(given, str):
        raise InputError("prompts: a client cannot name files of the server; give prompts as inline lists")
    entries = read_given(given) or []
    if any("mask" in entry for entry in entries):
        raise InputError("prompts: a client cannot name masks on the server; give points or boxes")
    name = str(request.get("prompt_id") or f"{request.get('label') or 'clicks'} on {side}")[:100]
    entry = clicked(request.get("foreground"), request.get("background"), info)
    if entry is not None:
        entries = [*entries, {"id": name, **entry}]
    if request.get("roi"):
        entries = [*entries, {"id": f"{name}, box", "box": _corners(request["roi"], info.kind == "picture")}]
    return {str(entry["id"]): entry for entry in entries}


def _corners(roi: Any, picture: bool) -> list[list[float]]:
    """Corners of what 3D Slicer calls a ROI: least and greatest i, j, k in turn; of a picture column and row."""
    if not isinstance(roi, list) or len(roi) != 6 or not all(type(value) in (int, float) for value in roi):
        raise InputError(f"roi: {str(roi)[:80]!r} is no list of 6 numbers: least and greatest i, j and k")
    corners = [roi[::2], roi[1::2]]
    return [corner[1::-1] if picture else corner for corner in corners]


def _kept(kept: OrderedDict[Hashable, Session], key: Hashable, value: Session, most: int) -> Session:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
    return value
