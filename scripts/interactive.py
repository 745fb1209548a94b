# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""A session on one pair: point at something in either image and be shown the same thing in the other, at once.

Both images are encoded and the coarse prior is fitted once; a prompt then costs its decodes alone. All prompts of a
session vouch for each other in the consensus, so the confidence of earlier ones changes as others come. `register` fits
the dense map to them. This module decides nothing about the method, whose steps are `inferer`'s and `correspond`'s.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from threading import Lock, RLock

import torch
from torch import Tensor

from .asked import SIDES, Asked, box_around, counterpart_of
from .clock import Clock, now
from .correspond import correspond, joined, pair_up
from .errors import InputError
from .inferer import PromptRegInferer, understood
from .prior import Prior
from .prompt_sampling import sample_prompts
from .prompts import GivenPrompt, Prompts, concatenated
from .registration import RegionPairs, Registration
from .request import PairRequest
from .segmenters.protocol import Segmenter

MOST = 100  # prompts in a session; each keeps a map of either image
# The forward-mode derivative of PyTorch keeps its level in a global: sessions ask the model in turn.
_ASKING = Lock()


class Session:
    """One pair of images and the prompts given so far; safe for threads.

    Args:
        inferer: the method; request: the pair, whose own prompts are asked first; network: the model.

    Raises:
        InputError: for a pair that the model cannot take.
    """

    def __init__(self, inferer: PromptRegInferer, request: PairRequest, network: Segmenter) -> None:
        inferer.check(replace(request, prompts=request.prompts or []), network)
        self.inferer = inferer
        self._asked: dict[str, Asked] = {}
        self._told: dict[str, tuple[Tensor, Tensor]] = {}  # their regions on the images' own grids
        self._sampled: list[Asked] | None = None
        self._lock = RLock()
        with Clock(inferer.progress) as clock, _ASKING:
            self._prepared = self.pair = inferer.prepare(request, network, clock)
            self.request, moving = self.pair.working.own, self.pair.request.moving  # on the model's device
            self._priors = {"moving": self.pair.prior, "fixed": self.pair.prior.reversed(moving.shape[1:])}
            for features in self.pair.features(centre=inferer.method.centre).values():
                _ = features.lengths, features.alike  # before the first prompt instead of with it
        self.seconds = clock.seconds | {"corresponding prompts": 0.0}
        if request.prompts:
            self.counterpart(request.prompts)

    def __len__(self) -> int:
        return len(self._asked)

    def fresh(self) -> Session:
        """Another session on the same pair, without prompts; what the pair is prepared for is shared."""
        other = copy(self)
        other._asked, other._told, other._lock = {}, {}, RLock()
        other.seconds = self.seconds | {"corresponding prompts": 0.0}
        return other

    def go_on_with(self, inferer: PromptRegInferer) -> None:
        """From now on ask and register with other settings; what the pair was prepared with stays.

        Settings without `same_scene` leave the final map to the fit, even where both images show one scene.
        """
        with self._lock:
            if inferer is not self.inferer:
                self.inferer, self._sampled = inferer, None
                self.pair = self._prepared if inferer.same_scene else replace(self._prepared, edges=None)

    def counterpart(self, prompts: list[GivenPrompt], side: str = "moving") -> RegionPairs:
        """Ask prompts given on one image for their counterparts on the other; they stay in the session.

        Args:
            prompts: voxels of their image; ids are the caller's and must be new to the session.
            side: "moving" or "fixed", the image they were given on.

        Returns:
            their pairs, in order, as all prompts of the session see them.

        Raises:
            InputError: an unknown side, an id that is taken, too many prompts.
        """
        with self._lock:
            if side not in SIDES:
                raise InputError(f"side: unknown '{side}', expected one of {list(SIDES)}")
            taken = sorted({p.id for p in prompts if p.id in self._asked})
            if taken or len({p.id for p in prompts}) < len(prompts):
                raise InputError(f"prompts: the ids {taken or [p.id for p in prompts]} are taken; ids must differ")
            if not prompts or len(self._asked) + len(prompts) > MOST:
                raise InputError(f"prompts: {len(prompts)} given; a session takes from 1 to {MOST} in all")
            own = self.pair.working.given(prompts, side)
            self._asked |= {asked.given.id: asked for asked in self._ask(own, side)}
            everything = self._everything()
            return self._own(everything[[everything.ids.index(p.id) for p in prompts]])

    def remove(self, *ids: str) -> None:
        """Forget prompts; `InputError` for an id that is not in the session."""
        with self._lock:
            unknown = sorted(set(ids) - self._asked.keys())
            if unknown:
                raise InputError(f"prompts: there are none with the ids {unknown}; there are {sorted(self._asked)}")
            for name in ids:
                del self._asked[name]
                self._told.pop(name, None)

    def pairs(self) -> RegionPairs:
        """The pairs of all prompts so far, in the order they were given; `InputError` when there are none."""
        with self._lock:
            return self._own(self._everything())

    def _everything(self) -> RegionPairs:
        return self._paired(list(self._asked.values()), self._priors, by_regions=self.pair.edges is None)

    def _own(self, pairs: RegionPairs) -> RegionPairs:
        """Pairs of the session in the images' own voxels; of a large volume a region takes longer than a click may."""
        for n, name in enumerate(pairs.ids):
            if name not in self._told:
                self._told[name] = self.pair.working.regions(pairs[[n]])
        moving, fixed = zip(*(self._told[name] for name in pairs.ids), strict=True)
        return self.pair.working.told(pairs, (torch.cat(moving), torch.cat(fixed)))

    def sides(self) -> dict[str, str]:
        """Which image each prompt was given on, by id."""
        with self._lock:
            return {name: asked.side for name, asked in self._asked.items()}

    def register(self, at_least: int | None = None) -> Registration:
        """Fit the dense map, from the prior, to all prompts of the session.

        Args:
            at_least: prompts wanted; so many as are missing are sampled on the moving image. None: as many as a
                consensus needs, the number of axes and three.
        """
        with self._lock:
            asked = list(self._asked.values())
            wanted = self.request.fixed.ndim + 2 if at_least is None else at_least
            asked += self._sample(wanted)[: max(0, wanted - len(asked))] if len(asked) < wanted else []
            pairs = self._paired(asked, self._priors, by_regions=self.pair.edges is None)
            seconds = dict(self.seconds)
        began = now()
        fitted = self.inferer.fitted(self.pair, pairs)
        maps = {"moving": fitted, "fixed": fitted.reversed(self.pair.request.moving.shape[1:])}
        pairs = self._paired(asked, maps, by_regions=False)
        seconds["dense correspondence"] = now() - began
        return self.inferer.registration(self.pair, pairs, fitted, seconds)

    def _sample(self, count: int) -> list[Asked]:
        if self._sampled is None or len(self._sampled) < count:
            pair, how = self.pair, replace(self.inferer.sampling, count=count)
            image, label = pair.request.moving, pair.request.moving_label
            how.check_label(label)
            try:
                with _ASKING:
                    prompts = sample_prompts(
                        pair.segmenter, pair.moving, image, how, self._generator(), label
                    )  # fmt: skip
            except InputError:  # nothing stands out on the moving image
                if not self._asked:
                    raise
                prompts = []
            named = [replace(prompt, id=f"sampled {prompt.id}") for prompt in prompts]
            self._sampled = self._ask(named, "moving") if named else []
        return self._sampled

    @torch.no_grad()
    def _ask(self, given: list[GivenPrompt], side: str) -> list[Asked]:
        began = now()
        pair, inferer = self.pair, self.inferer
        own, other = (pair.moving, pair.fixed) if side == "moving" else (pair.fixed, pair.moving)
        image = pair.request.image(side)
        with _ASKING:
            prompts = understood(pair.segmenter, own, given, inferer.sampling)
            # A new generator each time draws the same transforms, whose views are then in the model's cache.
            prior, generator = self._priors[side], self._generator()
            features = pair.features(centre=inferer.method.centre)
            if side == "fixed":
                features = {"moving": features["fixed"], "fixed": features["moving"]}
            found = correspond(pair.segmenter, image, own, other, prompts, prior, inferer.method, generator, features)
        if side == "fixed":
            there, here = found.moving_regions, found.fixed_regions
            found = replace(found, moving_regions=here, fixed_regions=there, centres=found.centres[::-1])
        self.seconds["corresponding prompts"] += now() - began
        return [Asked(prompt, side, found[[k]]) for k, prompt in enumerate(given)]

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.inferer.seed)

    def _paired(self, asked: list[Asked], maps: dict[str, Prior], *, by_regions: bool) -> RegionPairs:
        """Pairs of prompts as they were given; of two kinds together, boxes around the regions stand for clicks."""
        if not asked:
            raise InputError("prompts: none given yet; click in one of the images")
        sides: dict[str, list[Prompts]] = {side: [] for side in SIDES}
        for one in asked:
            own = Prompts(one.given.points[None], None if one.given.labels is None else one.given.labels[None])
            sides[one.side].append(own.to(self.pair.to_moving.device))
            sides[one.other].append(counterpart_of(sides[one.side][-1], one, maps[one.side], by_regions=by_regions))
        if len({prompts.kind for prompts in sides["moving"]}) > 1:
            sides = {
                side: [p if p.kind == "box" else box_around(a.region(side)) for p, a in zip(s, asked, strict=True)]
                for side, s in sides.items()
            }
        found = joined([replace(one.found, prompts=p) for one, p in zip(asked, sides["fixed"], strict=True)])
        given = [one.given for one in asked]
        trust, spacing = self.inferer.method.trust, self.pair.fixed.spacing
        return pair_up(found, concatenated(sides["moving"]), given, self.pair.to_moving, spacing, trust)
