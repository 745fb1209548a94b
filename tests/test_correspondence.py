# Copyright (c) PromptReg contributors. Licensed under the Apache License, Version 2.0.
"""Planted maps are recovered from regions or grey values; distrusted pairs and emptied windows do not count."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from toy import disc

from scripts.correspondence import fit_transformation, start
from scripts.errors import InputError
from scripts.feature_term import Lookup
from scripts.geometry import compose, folding_percent, identity_matrix, identity_points, sample, warp
from scripts.grid import Grid
from scripts.intensity_terms import LnccTerm, MutualInformationTerm
from scripts.objectives import Objective, bending_energy, membrane_energy
from scripts.places import Places
from scripts.scene import Scene, View
from scripts.schedule import Fit, Level
from scripts.segmenters.embedding import Embedding
from scripts.transformations import Transformation

SHAPE = (72, 64)
GRID = Grid(SHAPE, (1.0, 1.0))
CENTRES = [(20.0, 18.0), (22.0, 44.0), (38.0, 30.0), (52.0, 16.0), (50.0, 46.0)]


def embedding(shape: tuple[int, ...], seed: int = 0) -> Embedding:
    """What terms that do not use features ignore."""
    features = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed))
    eye = torch.eye(len(shape) + 1)
    return Embedding((features,), shape, eye, shape, shape, eye)


def texture(shape: tuple[int, ...], cell: int, seed: int = 0) -> Tensor:
    noise = torch.rand(1, 1, *[n // cell for n in shape], generator=torch.Generator().manual_seed(seed))
    mode = {2: "bicubic", 3: "trilinear"}[len(shape)]
    return F.interpolate(noise, shape, mode=mode, align_corners=True)[0].clamp(0, 1)


def discs_scene(field: Tensor, confidence: Tensor) -> Scene:
    moving = torch.stack([disc(SHAPE, centre, 7.0 + n) for n, centre in enumerate(CENTRES)])
    blank = torch.zeros(1, *SHAPE)
    fixed = View(blank, embedding(SHAPE), warp(moving, field))
    return Scene(fixed, View(blank, embedding(SHAPE), moving), confidence)


def planted_affine() -> Tensor:
    linear = torch.tensor([[1.06, 0.08], [-0.1, 0.95]])
    centred = identity_points(SHAPE) - torch.tensor([35.5, 31.5])[:, None, None]
    return torch.tensordot(linear, centred, dims=1) - centred + torch.tensor([2.5, -3.0])[:, None, None]


AFFINE = Fit(kind="affine", levels=[Level(36, 0, 60), Level(72, 0, 60)])
ROI = Objective([{"term": "roi", "weight": 1.0}])


@pytest.mark.parametrize("loss", ["dice", "squared"])
def test_an_affine_is_recovered_from_regions_alone(loss: str) -> None:
    field = planted_affine()
    objective = Objective([{"term": "roi", "loss": loss}])
    fitted = fit_transformation(discs_scene(field, torch.ones(5)), GRID, identity_matrix(2), objective, AFFINE)(GRID)
    inner = (slice(None), slice(12, 60), slice(10, 54))
    assert field[inner].norm(dim=0).max() > 5.0
    assert (fitted - field)[inner].norm(dim=0).max() < 0.5


@pytest.mark.parametrize("kind", ["bspline", "svf"])
def test_a_smooth_warp_is_recovered_from_grey_values(kind: str) -> None:
    shape = (64, 64)
    points = identity_points(shape)
    field = torch.stack([3 * torch.sin(points[1] / 9), 2.5 * torch.cos(points[0] / 11)])
    moving = texture(shape, 4)
    scene = Scene(View(warp(moving, field), embedding(shape), moving), View(moving, embedding(shape), moving))
    fit = Fit(kind=kind, levels=[Level(32, 4, 60), Level(64, 8, 60)], smoothness=1e-3, affine_first=False)
    grid = Grid(shape, (1.0, 1.0))
    fitted = fit_transformation(scene, grid, identity_matrix(2), Objective([{"term": "lncc"}]), fit)(grid)
    inner = (slice(None), slice(6, -6), slice(6, -6))
    assert field[inner].norm(dim=0).mean() > 2.0
    assert (fitted - field)[inner].norm(dim=0).mean() < 0.7
    assert folding_percent(fitted) == 0.0


def test_fitted_both_ways_the_roles_matter_less() -> None:
    shape = (64, 64)
    points, grid, objective = identity_points(shape), Grid((64, 64), (1.0, 1.0)), Objective([{"term": "lncc"}])
    a = texture(shape, 4)
    b = warp(a, torch.stack([3 * torch.sin(points[1] / 9), 2.5 * torch.cos(points[0] / 11)]))
    views = [
        View((0.8 * image + 0.2 * texture(shape, 4, seed=n + 1)), embedding(shape), image)
        for n, image in enumerate((a, b))
    ]

    def disagreement(fit: Fit) -> float:
        there, back = (
            fit_transformation(scene, grid, identity_matrix(2), objective, fit)(grid)
            for scene in (Scene(*views), Scene(*views).swapped())
        )
        return compose(there, back)[:, 8:-8, 8:-8].norm(dim=0).mean().item()

    one_way = Fit(levels=[Level(32, 4, 40), Level(64, 16, 40)], smoothness=1e-3, affine_first=False)
    assert disagreement(replace(one_way, both_ways=4)) < 0.5 * disagreement(one_way)


def test_a_level_finer_than_the_image_is_left_out() -> None:
    scene = discs_scene(torch.zeros(2, *SHAPE) + 2.0, torch.ones(5))
    coarse = Fit(levels=[Level(36, 4, 10)])
    finer = replace(coarse, levels=[*coarse.levels, Level(72, 64, 10)])
    fields = [fit_transformation(scene, GRID, identity_matrix(2), ROI, fit)(GRID) for fit in (coarse, finer)]
    assert torch.equal(*fields) and fields[0].abs().max() > 0.5


def test_a_fine_level_finds_what_the_usual_grid_cannot_show() -> None:
    """A ripple too fine for the usual grid."""
    shape = (40, 36, 32)
    points, grid, start_at = identity_points(shape), Grid(shape, (1.0, 1.0, 1.0)), identity_matrix(3)
    moving = texture(shape, 2)
    field = torch.stack([0.8 * torch.sin(points[1] / 2), torch.zeros(shape), torch.zeros(shape)])
    scene = Scene(View(warp(moving, field), embedding(shape), moving), View(moving, embedding(shape), moving))
    objective = Objective([{"term": "lncc", "kernel": 5}])
    coarse = Fit(levels=[Level(20, 8, 5)], smoothness=1e-4, voxels=20**3, fine=24)
    fine = replace(coarse, levels=[*coarse.levels, Level(40, 24, 40)])
    found = [
        fit_transformation(scene, grid, start_at, objective, fit)(grid)
        for fit in (coarse, replace(fine, fine=None), fine)
    ]
    assert torch.equal(found[0], found[1])
    left = [(f - field)[:, 6:-6, 6:-6, 6:-6].norm(dim=0).mean().item() for f in found[1:]]
    assert left[1] < 0.5 * left[0]


def test_a_finer_sampling_grid_is_not_stiffer() -> None:
    """A velocity of 4 intervals is known on a few samples; kinks that more voxels would see between cost nothing."""
    shape = (33, 33, 33)
    points, grid = identity_points(shape), Grid(shape, (1.0, 1.0, 1.0))
    moving = torch.stack([torch.sigmoid(8 - (points - c).norm(dim=0)) for c in (11.0, 16.0, 21.0)])
    fixed = warp(moving, torch.stack([4 * torch.cos(points[1] / 5), torch.zeros(shape), torch.zeros(shape)]))
    blank = torch.zeros(1, *shape)
    scene = Scene(View(blank, embedding(shape), fixed), View(blank, embedding(shape), moving), torch.ones(3))
    fit = Fit(smoothness=0.3, affine_first=False)
    bends = []
    for size in (17, 33):
        fitted = fit_transformation(scene, grid, identity_matrix(3), ROI, replace(fit, levels=[Level(size, 4, 60)]))
        bends.append(bending_energy(fitted(grid), grid.voxels_per_unit()).item())
    assert bends[1] > 0.95 * bends[0] > 0


def test_correlation_windows_are_cubes_in_millimetres() -> None:
    shape = (32, 32, 10)
    thick = replace(embedding(shape), affine=torch.diag(torch.tensor([1.4, 1.4, 10.0, 1.0])))
    half = identity_points((16, 16, 10)) * torch.tensor([2.0, 2.0, 1.0]).reshape(3, 1, 1, 1)
    view = View(torch.zeros(1, *shape), thick, torch.zeros(0, *shape))
    assert LnccTerm(kernel=9)._window(Scene(view, view), identity_points(shape)) == [9, 9, 1]
    assert LnccTerm(kernel=9)._window(Scene(view, view), half) == [9, 9, 3]


def test_the_header_is_not_fitted_again() -> None:
    moving = torch.stack([disc((36, 32), (c[0] / 2, c[1] / 2), 4.0) for c in CENTRES])
    to_moving = torch.diag(torch.tensor([0.5, 0.5, 1.0]))
    blank = embedding(SHAPE)
    fixed = View(torch.zeros(1, *SHAPE), blank, warp(moving, torch.zeros(2, *SHAPE), to_moving))
    scene = Scene(fixed, View(torch.zeros(1, 36, 32), embedding((36, 32)), moving), torch.ones(5))
    fitted = fit_transformation(scene, GRID, to_moving, ROI, AFFINE)(GRID)
    assert fitted[:, 12:60, 10:54].norm(dim=0).max() < 0.3


def test_a_pair_without_confidence_has_no_influence() -> None:
    field, short = planted_affine(), Fit(kind="affine", levels=[Level(36, 0, 15)])
    right = discs_scene(field, torch.ones(5))
    wrong = disc(SHAPE, (30.0, 30.0), 8.0)[None], disc(SHAPE, (36.0, 36.0), 8.0)[None]
    views = [
        View(view.image, view.embedding, torch.cat([view.regions, extra]))
        for view, extra in zip((right.fixed, right.moving), wrong, strict=True)
    ]

    def fitted(scene: Scene) -> Tensor:
        return fit_transformation(scene, GRID, identity_matrix(2), ROI, short)(GRID)

    expected = fitted(right)
    assert torch.allclose(fitted(Scene(*views, torch.tensor([1.0] * 5 + [0.0]))), expected, atol=1e-4)
    assert (fitted(Scene(*views, torch.ones(6))) - expected).abs().max() > 0.1


def test_lncc_does_not_reward_an_emptied_window() -> None:
    image = texture(SHAPE, 4)
    noisy = (0.5 * image + 0.5 * texture(SHAPE, 4, seed=1)).clamp(0, 1)
    view = View(image, embedding(SHAPE), image)
    points = identity_points(SHAPE)
    loss = LnccTerm(kernel=9).prepare(Scene(view, View(noisy, embedding(SHAPE), noisy)), points)
    assert loss(Places(points)) < 0.8
    assert loss(Places(points + 500.0)) > 0.95
    self_loss = LnccTerm(kernel=9).prepare(Scene(view, view), points)
    assert self_loss(Places(points)) < 0.02


@pytest.mark.parametrize(("shape", "kernel", "step"), [((12, 16), 5, 1), ((13, 9, 10), 9, 2), ((13, 9, 10), 7, 2)])
def test_lncc_is_the_mean_squared_correlation_over_windows_that_the_border_cuts(
    shape: tuple[int, ...], kernel: int, step: int
) -> None:
    """In a volume every second window of seven or nine voxels is looked at, from the first on."""
    both = [texture(shape, 2, seed=n) for n in (1, 2)]
    views = [View(image, embedding(shape), image[:0]) for image in both]
    points = identity_points(shape)
    squared = []
    for middle in itertools.product(*(range(0, n, step) for n in shape)):
        window = tuple(slice(max(0, at - kernel // 2), at + kernel // 2 + 1) for at in middle)
        squared.append(np.corrcoef(*[image[0][window].flatten().numpy() for image in both])[0, 1] ** 2)
    sides = [kernel, 3] if len(shape) == 2 else [3, kernel]  # pictures, volumes
    loss = LnccTerm(kernel=sides, floor=1e-4).prepare(Scene(*views), points)
    assert abs(float(loss(Places(points))) - (1 - np.mean(squared))) < 1e-3


def test_the_fit_starts_at_a_copy_of_the_initial_map() -> None:
    scene = discs_scene(planted_affine(), torch.ones(5))
    first = fit_transformation(scene, GRID, identity_matrix(2), ROI, AFFINE)
    before = first(GRID)
    short = Fit(kind="affine", levels=[Level(36, 0, 1)])
    again = fit_transformation(scene, GRID, identity_matrix(2), ROI, short, initial=first)(GRID)
    assert torch.equal(first(GRID), before)
    assert 0 < (again - before).abs().max() < 1.5


def test_a_fine_level_does_not_leave_the_place_that_coarse_ones_found() -> None:
    """Adam's first step moves every parameter by the full step, however small its gradient."""
    shape = (128, 128)
    image = texture(shape, 4)
    noisy = image + 0.05 * texture(shape, 1, seed=1)
    scene = Scene(View(image, embedding(shape), image), View(noisy, embedding(shape), noisy))
    fit = Fit(levels=[Level(128, 64, 1)])
    moved = fit_transformation(scene, Grid(shape, (1.0, 1.0)), identity_matrix(2), Objective([{"term": "lncc"}]), fit)(
        Grid(shape, (1.0, 1.0))
    )
    assert 0 < moved.norm(dim=0).max() < 0.5


def test_a_fit_can_be_interrupted() -> None:
    scene = discs_scene(planted_affine(), torch.ones(len(CENTRES)))
    how = scene, GRID, identity_matrix(2), ROI, Fit(levels=[Level(32, 0, 5), Level(32, 4, 5), Level(64, 8, 5)])
    first = fit_transformation(*how, stages=slice(2))
    rest = fit_transformation(*how, initial=first, stages=slice(2, None))(GRID)
    assert torch.equal(rest, fit_transformation(*how)(GRID))
    assert (rest - first(GRID)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([{"term": "ssd"}], "unknown term 'ssd'"),
        ([{"weight": 1.0}], "unknown term 'None'"),
        ([{"term": "lncc", "window": 9}], "term 'lncc' has no such option"),
        ([{"term": "roi", "loss": "focal"}], "no loss 'focal'"),
    ],
)
def test_wrong_objectives(terms: list[dict], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Objective(terms)


def some_prior(kind: str) -> Transformation:
    prior = start(Fit(kind=kind, levels=[Level(32, 4, 1)]), GRID, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return prior.requires_grad_(False)


@pytest.mark.parametrize(
    ("prior", "kind", "near"),
    [
        ("svf", "svf", 0.0),
        ("svf", "bspline", 0.5),
        ("svf", "dense", 1.0),
        ("affine", "affine", 0.0),
        ("affine", "bspline", 0.5),
        ("rigid", "rigid", 0.0),
        ("rigid", "affine", 0.0),
        ("rigid", "svf", 0.0),
    ],
)
def test_a_fit_continues_the_prior(prior: str, kind: str, near: float) -> None:
    before = some_prior(prior)
    after = start(Fit(kind=kind, levels=[Level(32, 8, 1)]), GRID, torch.device("cpu"), before)
    assert before(GRID).norm(dim=0).max() > 1.0
    assert (after(GRID) - before(GRID)).abs().max() <= near + 1e-4


def test_an_affine_continues_the_global_part_of_a_deformable_prior() -> None:
    prior = some_prior("svf")
    after = start(Fit(kind="affine", levels=[Level(32, 0, 1)]), GRID, torch.device("cpu"), prior)
    assert torch.equal(after(GRID), prior.outer(GRID))


def test_a_kind_that_cannot_continue_says_so(caplog: pytest.LogCaptureFixture) -> None:
    after = start(Fit(kind="rigid", levels=[Level(32, 0, 1)]), GRID, torch.device("cpu"), some_prior("svf"))
    assert after(GRID).abs().max() < 1e-4
    assert "starts at the identity" in caplog.text


@pytest.mark.parametrize("shape", [(7, 6), (5, 6, 4), (5, 6, 1)])
def test_lookup_is_interpolation(shape: tuple[int, ...]) -> None:
    """Values and derivatives are those of `grid_sample`, beyond the border and on single slices as well."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(3, *shape, generator=generator)
    size = torch.tensor(shape, dtype=torch.float32)
    points = (torch.rand(len(shape), 50, generator=generator).T * (size + 2) - 1).T.requires_grad_()
    weights = torch.randn(50, 3, generator=generator)
    expected, found = sample(grid, points, padding="border").T, Lookup(grid)(points)
    assert torch.allclose(found, expected, atol=1e-5)
    slopes = [torch.autograd.grad((values * weights).sum(), points)[0] for values in (expected, found)]
    assert torch.allclose(*slopes, atol=1e-4)


def test_mutual_information_prefers_alignment_whatever_the_contrast() -> None:
    image = texture(SHAPE, 8)
    blank = torch.zeros(0, *SHAPE)
    scene = Scene(View(image, embedding(SHAPE), blank), View(1 - image**2, embedding(SHAPE), blank))
    loss = MutualInformationTerm().prepare(scene, identity_points(SHAPE))
    aligned, shifted = (loss(Places(identity_points(SHAPE) + shift)) for shift in (0.0, 4.0))
    assert aligned < shifted


def test_energies_of_a_shift_and_of_a_stretch() -> None:
    """A shift costs nothing, a stretch by a tenth its square, and bending neither, whatever the voxels' shape."""
    shift = torch.tensor([3.0, -2.0])[:, None, None].expand(2, 20, 10)
    stretch = torch.stack([0.1 * identity_points((20, 10))[0], torch.zeros(20, 10)])
    per_unit = Grid((20, 10), (1.0, 2.0)).voxels_per_unit(torch.device("cpu"))
    assert float(membrane_energy(shift, per_unit)) == 0
    assert float(membrane_energy(stretch, per_unit)) == pytest.approx(0.01, rel=1e-4)
    assert float(bending_energy(stretch, per_unit)) == pytest.approx(0, abs=1e-8)


def test_stiffness_holds_back_what_one_region_asks_for() -> None:
    """One disc that has moved and grown: its place is followed either way, its growth less by a stiff map."""
    moving, fixed = disc(SHAPE, (30.0, 28.0), 6.0)[None], disc(SHAPE, (36.0, 34.0), 9.0)[None]
    image = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    scene = Scene(View(image, embedding(SHAPE), fixed), View(image, embedding(SHAPE), moving), torch.ones(1))
    only = Objective([{"term": "roi"}])
    strains, errors = [], []
    for stiffness in (0.0, 10.0):
        fit = Fit(kind="affine", levels=[Level(64, 0, 120)], stiffness=stiffness)
        ddf = fit_transformation(scene, GRID, identity_matrix(2), only, fit)(GRID)
        strains.append(float(membrane_energy(ddf, GRID.voxels_per_unit(ddf.device))))
        errors.append(float((ddf[:, 36, 34] + 6).abs().max()))
    assert strains[1] < 0.25 * strains[0]
    assert max(errors) < 1.5


def test_levels_that_are_left_out_change_nothing() -> None:
    """Bending is measured in the finest intervals that the grid resolves, not in those that were asked for."""
    scene = discs_scene(planted_affine(), torch.ones(len(CENTRES)))
    resolved, beyond = [Level(32, 4, 10), Level(64, 8, 10)], Level(64, 500, 10)
    fields = [
        fit_transformation(scene, GRID, identity_matrix(2), ROI, Fit(levels=levels))(GRID)
        for levels in (resolved, [*resolved, beyond])
    ]
    assert fields[0].abs().max() > 1
    assert torch.equal(*fields)


def test_bending_of_a_slab_of_two_slices_is_finite() -> None:
    field = torch.randn(3, 8, 8, 2, generator=torch.Generator().manual_seed(0))
    assert bending_energy(field, torch.ones(3, 1, 1, 1)).isfinite()


@pytest.mark.parametrize("shape", [(24, 24, 2), (24, 24, 8), (8, 8)])
def test_local_correlation_of_thin_slabs(shape: tuple[int, ...]) -> None:
    """Windows are no larger than the image: the images correlate perfectly with themselves, less with others."""
    generator = torch.Generator().manual_seed(0)
    image, other = (torch.rand(1, *shape, generator=generator) for _ in range(2))
    points = identity_points(shape)
    losses = [
        LnccTerm().prepare(Scene(*[View(v, embedding(shape), v[:0]) for v in (image, x)]), points)
        for x in (image, other)
    ]
    same, different = (float(loss(Places(points))) for loss in losses)
    assert same == pytest.approx(0, abs=1e-3) and different > 0.5


@pytest.mark.parametrize(("dims", "weight", "smoothness"), [(2, 3.0, 0.5), (3, 7.0, 2.0)])
def test_weights_may_differ_between_pictures_and_volumes(dims: int, weight: float, smoothness: float) -> None:
    """The first of two numbers counts for pictures, the second for volumes."""
    grid = Grid((12,) * dims, (1.0,) * dims)
    views = [View(texture(grid.shape, 3, s), embedding(grid.shape), torch.zeros(0, *grid.shape)) for s in (0, 1)]
    fields = []
    for weights, smooth in (([3.0, 7.0], [0.5, 2.0]), (weight, smoothness)):
        objective = Objective([{"term": "lncc", "weight": weights, "kernel": 3}])
        fit = Fit(levels=[Level(12, 2, 5)], smoothness=smooth)
        fields.append(fit_transformation(Scene(*views), grid, identity_matrix(dims), objective, fit)(grid))
    assert fields[0].abs().max() > 0.01
    assert torch.equal(*fields)


@pytest.mark.parametrize("weight", [[1.0], [1.0, -1.0], [1.0, 2.0, 3.0], "abc", None])
def test_a_weight_is_a_number_or_two(weight: object) -> None:
    with pytest.raises(InputError, match=r"expected a number from 0 on, or two: \[pictures, volumes\]"):
        Objective([{"term": "roi", "weight": weight}])
