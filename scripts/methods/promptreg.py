# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""PromptReg itself, as configured or with single settings changed: what ablations compare."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar

from ..errors import InputError
from ..geometry import identity_points, transform_points
from ..inferer import PromptRegInferer
from ..request import PairRequest
from ..segmenters.protocol import Segmenter
from .protocol import Mapped

T = TypeVar("T")


class PromptReg:
    """Our method.

    Args:
        inferer: as configured.
        network: the segmenter.
        change: settings that differ, by path from the inferer on, e.g. `{"method.auxiliary.sigma": 10}`.

    Raises:
        InputError: there is no such setting.
    """

    def __init__(self, inferer: PromptRegInferer, network: Segmenter, change: Mapping[str, Any] | None = None) -> None:
        for path, value in (change or {}).items():
            inferer = changed(inferer, path.split("."), value, path)
        self.inferer, self.network = inferer, network
        self.asks_label = inferer.sampling.how in ("inside", "outside")

    def missing(self) -> str | None:
        return None

    def settings(self) -> dict[str, Any]:
        return self.inferer.settings(self.network)

    def __call__(self, request: PairRequest) -> Mapped:
        registration = self.inferer.register(request, self.network)
        identity = identity_points(request.fixed.shape[1:], device=registration.ddf.device)
        return Mapped(transform_points(registration.to_moving, identity + registration.ddf), registration=registration)


def variants(
    inferer: PromptRegInferer,
    network: Segmenter,
    changes: Mapping[str, Mapping[str, Any] | None],
    base: Mapping[str, Any] | None = None,
) -> dict[str, PromptReg]:
    """PromptReg in several settings, by name: those of `base`, and for each its own `changes` on top."""
    return {name: PromptReg(inferer, network, {**(base or {}), **(change or {})}) for name, change in changes.items()}


def changed(of: T, path: list[str], value: Any, name: str) -> T:
    """A copy of an object with one setting, found by attribute names, replaced; the original stays as it is."""
    attribute, *rest = path
    if not hasattr(of, attribute):
        raise InputError(f"change: '{name}' names no setting of PromptReg; see configs/inference.yaml")
    new = changed(getattr(of, attribute), rest, value, name) if rest else value
    if is_dataclass(of) and not isinstance(of, type):
        return replace(of, **{attribute: new})  # type: ignore[return-value]  # checks the value as the constructor does
    other = copy(of)
    setattr(other, attribute, new)
    return other
