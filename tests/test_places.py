# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Places carried on a few samples are those of all voxels: a change of coordinates may come before interpolation."""

from __future__ import annotations

import pytest
import torch

from scripts.free_form import interpolated
from scripts.geometry import identity_points, sample, transform_points
from scripts.places import Places


@pytest.mark.parametrize(("carrier", "shape"), [((5, 7), (17, 20)), ((4, 6, 3), (9, 13, 8)), ((9, 8), (9, 8))])
def test_places_and_values_are_those_of_every_voxel(carrier: tuple[int, ...], shape: tuple[int, ...]) -> None:
    generator, dims = torch.Generator().manual_seed(0), len(shape)
    carried = identity_points(carrier) + torch.rand(dims, *carrier, generator=generator)
    matrix = torch.eye(dims + 1)
    matrix[:-1] += 0.2 * torch.randn(dims, dims + 1, generator=generator)
    maps = torch.rand(2, *(n + 1 for n in carrier), generator=generator)
    everywhere = interpolated(carried, shape)
    places, led = Places(carried, shape), transform_points(matrix, everywhere)
    assert torch.allclose(places.through(), everywhere)
    assert torch.allclose(places.through(matrix), led, atol=1e-5)
    every = [2, 3, 1][:dims]
    some = led[:, *[slice(None, None, stride) for stride in every]]
    assert torch.allclose(places.through(matrix, every), some, atol=1e-5)
    assert torch.allclose(places.sample(maps, matrix), sample(maps, led, padding="border"), atol=1e-5)
