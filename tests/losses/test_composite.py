"""The objective: a weighted mean of named terms, each against the mask at its head's own size."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from camox.losses.boundary import boundary_band
from camox.losses.composite import FINAL_TERMS, TERMS, SegmentationObjective
from camox.losses.segmentation import balanced_bce, difficulty_weight, structure_loss

WEIGHTS = {"structure": 1.0, "boundary": 0.5, "uncertainty": 0.1, "search": 0.3, "deep": 0.5, "refinement": 0.5}
ALL = {name: 1 + 0.1 * number for number, name in enumerate(TERMS)}


@dataclass
class Maps:
    """What a model gives: all heads see the image padded to a multiple of 32."""

    logits: torch.Tensor
    search: torch.Tensor
    deep: list[torch.Tensor]
    boundary: torch.Tensor
    boundary_log_variance: torch.Tensor
    refinements: list[torch.Tensor]

    def leaves(self):
        return [self.logits, self.search, *self.deep, self.boundary, self.boundary_log_variance, *self.refinements]


def maps(height=64, width=64, count=2, fill=None, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    padded = height + -height % 32, width + -width % 32

    def one(stride):
        size = (height, width) if stride == 1 else (padded[0] // stride, padded[1] // stride)
        shape = (count, 1, *size)
        values = torch.randn(shape, generator=generator) * scale if fill is None else torch.full(shape, fill)
        return values.to(dtype).requires_grad_()

    log_variance = one(4).detach().float().clamp(-7, 7).requires_grad_()
    return Maps(one(1), one(32), [one(16), one(8), one(4)], one(4), log_variance, [one(4), one(4)])


def blob(height=64, width=64, count=2):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = (y - 0.45 * height) ** 2 + (x - 0.55 * width) ** 2 < (0.3 * min(height, width)) ** 2
    return inside.float().expand(count, 1, height, width).clone()


def certain(mask):
    """Heads that are as right as their size permits."""
    padded = F.pad(mask, (0, -mask.shape[-1] % 32, 0, -mask.shape[-2] % 32), mode="replicate")

    def at(stride):
        return ((F.avg_pool2d(padded, stride) > 0.5).float() * 2 - 1) * 30

    band = F.pad(boundary_band(mask), (0, -mask.shape[-1] % 32, 0, -mask.shape[-2] % 32))
    boundary = (F.max_pool2d(band, 4) * 2 - 1) * 30
    return Maps(
        (mask * 2 - 1) * 30,
        at(32),
        [at(16), at(8), at(4)],
        boundary,
        torch.full_like(boundary, -7),
        [at(4), at(4)],
    )


@pytest.mark.parametrize("weights", [WEIGHTS, ALL])
def test_the_total_is_the_weighted_mean_of_the_terms(weights):
    objective = SegmentationObjective(weights)(maps(), blob())
    assert set(objective.terms) == set(weights)
    weighted = torch.stack([weights[name] * value for name, value in objective.terms.items()])
    assert torch.allclose(objective.total, weighted.sum() / sum(weights.values()))
    assert all(value.shape == () and value.dtype == torch.float32 for value in objective.terms.values())


def test_scaling_all_weights_changes_nothing():
    tenfold = {name: 10 * weight for name, weight in WEIGHTS.items()}
    plain, scaled = (SegmentationObjective(weights)(maps(), blob()).total for weights in (WEIGHTS, tenfold))
    assert torch.allclose(plain, scaled)


@pytest.mark.parametrize("name", TERMS)
def test_each_term_can_stand_alone_and_a_weight_of_zero_leaves_it_out(name):
    objective = SegmentationObjective(dict.fromkeys(TERMS, 0.0) | {name: 3.0})(maps(), blob())
    assert list(objective.terms) == [name]
    assert torch.equal(objective.total, objective.terms[name])


def test_every_map_gets_a_gradient():
    output = maps()
    SegmentationObjective(WEIGHTS)(output, blob()).total.backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in output.leaves())


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (101, 77), (17, 33), (1, 1)])
def test_any_size_has_finite_terms(size):
    objective = SegmentationObjective(ALL)(maps(*size), blob(*size))
    assert all(value.isfinite() for value in objective.terms.values())


@pytest.mark.parametrize("size", [(256, 256), (250, 230)])
def test_right_heads_cost_little_and_turned_heads_much(size):
    mask = blob(*size)
    right = SegmentationObjective(WEIGHTS)(certain(mask), mask)
    turned = SegmentationObjective(WEIGHTS)(certain(1 - mask), mask)
    assert right.terms["structure"] < 1e-3
    assert right.terms["boundary"] < 1e-3
    assert right.terms["uncertainty"] < 1e-3
    for name in ("structure", "search", "deep", "refinement"):
        assert right.terms[name] < turned.terms[name] / 5, name


def test_a_head_is_compared_with_the_mask_averaged_to_its_size():
    mask, output = blob(), maps()
    soft = F.avg_pool2d(mask, 32)
    assert ((soft > 0) & (soft < 1)).any()
    expected = structure_loss(output.search, soft, difficulty_weight(soft, 32)).mean()
    assert torch.allclose(SegmentationObjective({"search": 1.0})(output, mask).total, expected)


def test_deep_is_the_mean_over_its_heads():
    mask, output = blob(), maps()
    alone = []
    for head in output.deep:
        one = maps()
        one.deep = [head]
        alone.append(SegmentationObjective({"deep": 1.0})(one, mask).total)
    together = SegmentationObjective({"deep": 1.0})(output, mask).total
    assert torch.allclose(together, torch.stack(alone).mean())


def test_the_foreground_is_read_from_the_map_that_reverse_attention_reads():
    mask, output = blob(), maps()
    expected = balanced_bce(output.deep[-1], F.avg_pool2d(mask, 4)).mean()
    assert torch.allclose(SegmentationObjective({"foreground": 1.0})(output, mask).total, expected)
    SegmentationObjective({"foreground": 1.0})(output, mask).total.backward()
    assert [leaf is output.deep[-1] for leaf in output.leaves() if leaf.grad is not None] == [True]


@pytest.mark.parametrize("name", FINAL_TERMS)
def test_terms_for_the_final_logits_read_nothing_else(name):
    output = maps()
    SegmentationObjective({name: 1.0})(output, blob()).total.backward()
    assert [leaf is output.logits for leaf in output.leaves() if leaf.grad is not None] == [True]


def test_without_refinement_steps_the_last_head_stands_for_them():
    output = maps()
    output.refinements = []
    got = SegmentationObjective({"refinement": 1.0})(output, blob()).total
    output.deep = output.deep[-1:]
    assert torch.equal(got, SegmentationObjective({"deep": 1.0})(output, blob()).total)


def test_an_object_at_the_padded_edge_is_none_of_the_boundary():
    """The padding repeats the edge: a mask that fills the image has no boundary there."""
    mask = torch.ones(1, 1, 50, 50)
    output = maps(50, 50, count=1, fill=-30.0)
    assert SegmentationObjective({"boundary": 1.0})(output, mask).total < 1e-3


def test_images_without_an_object_teach_to_predict_less():
    mask = torch.zeros(2, 1, 64, 64)
    objective = SegmentationObjective(WEIGHTS | {"uncertainty": 0.0})
    output = maps(fill=-1.0)
    objective(output, mask).total.backward()
    for leaf in (output.logits, output.search, *output.deep, output.boundary, *output.refinements):
        assert (leaf.grad > 0).all()
    assert objective(maps(fill=-2.0), mask).total < objective(maps(fill=-1.0), mask).total


def test_the_objective_is_the_mean_over_images():
    output, mask = maps(), blob()
    mask[1] = 0
    whole = SegmentationObjective(WEIGHTS)(output, mask).total
    halves = []
    for image in range(2):
        one = slice(image, image + 1)
        part = Maps(
            output.logits[one],
            output.search[one],
            [head[one] for head in output.deep],
            output.boundary[one],
            output.boundary_log_variance[one],
            [head[one] for head in output.refinements],
        )
        halves.append(SegmentationObjective(WEIGHTS)(part, mask[one]).total)
    assert torch.allclose(whole, torch.stack(halves).mean(), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("empty", [True, False])
def test_half_precision_of_large_magnitude_has_finite_values_and_gradients(dtype, empty):
    output = maps(dtype=dtype, scale=1e4)
    mask = torch.zeros(2, 1, 64, 64, dtype=torch.uint8) if empty else blob().to(torch.uint8)
    with torch.autocast("cpu", dtype=dtype):
        objective = SegmentationObjective(ALL)(output, mask)
    assert objective.total.dtype == torch.float32
    assert objective.total.isfinite()
    objective.total.backward()
    assert all(leaf.grad.isfinite().all() for leaf in output.leaves())


def test_deep_supervision_that_gives_nan_can_be_left_out():
    objective = SegmentationObjective(WEIGHTS)
    output, mask = maps(), blob()
    without = SegmentationObjective({name: weight for name, weight in WEIGHTS.items() if name != "deep"})
    expected = without(output, mask).total
    with torch.no_grad():
        for head in output.deep:
            head.fill_(float("nan"))
    assert objective(output, mask).total.isnan()
    objective.leave_out_deep()
    found = objective(output, mask)
    torch.testing.assert_close(found.total, expected)
    found.total.backward()
    for head in output.deep:
        assert torch.equal(head.grad, torch.zeros_like(head))


def test_autocast_changes_nothing():
    plain = SegmentationObjective(ALL)(maps(), blob()).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(SegmentationObjective(ALL)(maps(), blob()).total, plain)


def test_a_part_too_thin_for_the_head_still_has_a_boundary():
    """Shrunk before the boundary is sought, a line of one pixel would have none."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 30, 8:56] = 1
    nothing = maps()
    nothing.boundary = torch.full((1, 1, 16, 16), -30.0)
    assert SegmentationObjective({"boundary": 1.0})(nothing, mask).total > 1


def test_an_image_of_weight_zero_counts_for_nothing_and_the_others_as_before():
    objective, mask, three = SegmentationObjective(ALL), blob(count=3), maps(count=3)

    def alone(row: int) -> Maps:
        parts = {name: getattr(three, name) for name in vars(three)}
        return Maps(**{
            name: [head[row : row + 1] for head in value] if isinstance(value, list) else value[row : row + 1]
            for name, value in parts.items()
        })  # fmt: skip

    weighted = objective(three, mask, torch.tensor([1.0, 0.0, 1.0]))
    singles = [objective(alone(row), mask[row : row + 1]) for row in (0, 2)]
    for name, value in weighted.terms.items():
        torch.testing.assert_close(value, sum(single.terms[name] for single in singles) / 3)
    torch.testing.assert_close(objective(three, mask, torch.ones(3)).total, objective(three, mask).total)
    weighted.total.backward()
    assert all(leaf.grad[1].abs().max() == 0 < leaf.grad[0].abs().max() for leaf in three.leaves())
