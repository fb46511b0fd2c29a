"""The comparison of two checkpoints, against the same sums by torch and against what is known of small ones."""

import json
import math
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from camox.checkpoints.difference import Difference, compare
from camox.checkpoints.folders import set_pointer
from camox.checkpoints.progress import Progress
from camox.errors import CheckpointError
from tests.checkpoints.conftest import DECODED

NAN, INF = math.nan, math.inf


def written(path: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, path)
    return path


def differing(tmp_path: Path, first: torch.Tensor, second: torch.Tensor) -> Difference:
    """The comparison of two files of one tensor each."""
    paths = written(tmp_path / "a.safetensors", x=first), written(tmp_path / "b.safetensors", x=second)
    return compare(*paths, Progress())


def as_reals(tensor: torch.Tensor) -> torch.Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double().flatten()


@pytest.mark.filterwarnings("error")
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), dtype=st.sampled_from(DECODED), length=st.integers(1, 9))
def test_sums_equal_torchs_for_any_bits(tmp_path, data, dtype, length):
    first, second = (
        torch.tensor(list(data.draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8).view(dtype)
        for size in [length * dtype.itemsize] * 2
    )
    found = differing(tmp_path, first, second)
    a, b = as_reals(first), as_reals(second)
    changed = (a != b) & ~(a.isnan() & b.isnan())
    assert found.is_identical == (not changed.any())
    assert [(tensor.side, tensor.nan, tensor.inf) for tensor in found.not_finite] == [
        (side, int(of.isnan().sum()), int(of.isinf().sum())) for side, of in ((0, a), (1, b)) if not of.isfinite().all()
    ]
    if not changed.any():
        return
    (tensor,) = found.changed
    finite = a.isfinite() & b.isfinite()
    difference = (a - b)[finite]
    assert (tensor.changed, tensor.numbers) == (int(changed.sum()), len(a))
    if not len(difference):
        assert (tensor.max_abs, tensor.relative) == (None, None)
        return
    assert tensor.max_abs == difference.abs().max().item()
    if dtype != torch.float64:  # squares of arbitrary doubles overflow
        assert tensor.norm == pytest.approx(difference.norm().item())
        assert tensor.first_norm == pytest.approx(a[finite].norm().item())


def test_large_tensors_are_summed_over_all_their_pieces(tmp_path):
    torch.manual_seed(0)
    first = torch.randn(300_001)
    second = first + 0.1 * torch.randn(300_001) * (torch.rand(300_001) < 0.3)
    (tensor,) = differing(tmp_path, first, second).changed
    assert tensor.relative == pytest.approx(((first - second).double().norm() / first.double().norm()).item())
    assert tensor.max_abs == pytest.approx((first.double() - second.double()).abs().max().item())
    assert tensor.changed == int((first != second).sum())


@pytest.mark.parametrize(
    ("first", "second", "relative"),
    [([0.0, 0.0], [0.0, 1.0], INF), ([3.0, 4.0], [0.0, 0.0], 1.0), ([1e300, 0.0], [-1e300, 0.0], None)],
    ids=["from zeros", "to zeros", "beyond double precision"],
)
def test_relative_difference_at_its_limits(tmp_path, first, second, relative):
    (tensor,) = differing(tmp_path, *(torch.tensor(x, dtype=torch.float64) for x in (first, second))).changed
    assert tensor.relative == relative


def test_nan_equals_nan_and_zero_equals_minus_zero(tmp_path):
    found = differing(tmp_path, torch.tensor([NAN, 0.0, INF]), torch.tensor([-NAN, -0.0, INF]))
    assert found.is_identical
    assert found.exit_code == 1


def test_nan_on_one_side_is_a_change_and_left_out_of_the_norms(tmp_path):
    (tensor,) = differing(tmp_path, torch.tensor([3.0, 4.0, 1.0]), torch.tensor([3.0, NAN, 2.0])).changed
    assert (tensor.changed, tensor.max_abs, tensor.norm) == (2, 1.0, 1.0)
    assert tensor.first_norm == pytest.approx(10**0.5)


def test_what_is_all_nan_has_no_relative_difference_and_comes_first(tmp_path):
    first = {"all": torch.ones(2), "far": torch.ones(2)}
    second = {"all": torch.full((2,), NAN), "far": torch.full((2,), 9.0)}
    found = compare(
        written(tmp_path / "a.safetensors", **first), written(tmp_path / "b.safetensors", **second), Progress()
    )
    assert [(tensor.name, tensor.relative) for tensor in found.changed] == [("all", None), ("far", 8.0)]
    assert found.relative == {"": 8.0}


def test_the_largest_relative_difference_comes_first_and_integers_last(tmp_path):
    first = {"count": torch.tensor([1]), "little": torch.ones(4), "much": torch.ones(2), "same": torch.ones(2)}
    second = {
        "count": torch.tensor([9]),
        "little": first["little"] + 0.1,
        "much": first["much"] + 1,
        "same": torch.ones(2),
    }
    found = compare(
        written(tmp_path / "a.safetensors", **first), written(tmp_path / "b.safetensors", **second), Progress()
    )
    assert [tensor.name for tensor in found.changed] == ["much", "little", "count"]
    assert found.changed[2].relative is None
    assert found.changed[2].changed_share == 1
    assert found.equal == 1


def test_numbers_that_share_bytes_are_compared_as_bytes(tmp_path):
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path, content in zip(paths, (b"\0" * 16, b"\0" * 12 + b"\1" * 4), strict=True):
        text = json.dumps({"x": {"dtype": "F4", "shape": [32], "data_offsets": [0, 16]}}).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    (tensor,) = compare(*paths, Progress()).changed
    assert (tensor.changed_share, tensor.relative) == (0.25, None)


@pytest.mark.parametrize("second", [torch.ones(2, 2), torch.ones(4).half()], ids=["shape", "dtype"])
def test_another_form_is_not_compared_number_by_number(tmp_path, second):
    found = differing(tmp_path, torch.ones(4), second)
    assert [tensor.first for tensor in found.other_form] == ["F32 4"]
    assert not found.is_identical
    assert found.exit_code == 0


def test_nan_counts_in_tensors_of_one_side_and_of_another_form(tmp_path):
    first = written(tmp_path / "a.safetensors", lone=torch.tensor([NAN]), x=torch.tensor([INF, INF]))
    second = written(tmp_path / "b.safetensors", x=torch.tensor([INF]))
    found = compare(first, second, Progress())
    assert sorted((tensor.side, tensor.name, tensor.nan, tensor.inf) for tensor in found.not_finite) == [
        (0, "lone", 1, 0),
        (0, "x", 0, 2),
        (1, "x", 0, 1),
    ]
    assert found.exit_code == 1


def test_checkpoints_are_compared_file_by_file(save):
    first, second = save(1), save(2, model={"weight": torch.full((4, 3), 1.0), "bias": torch.ones(4)})
    found = compare(first, second, Progress())
    assert found.paths == (first, second)
    assert found.changed[0].name == "model/bias"
    assert found.relative == {"model": pytest.approx(2 / 12**0.5)}


def test_a_file_that_one_checkpoint_lacks_is_only_in_the_other(save):
    first = save(1)
    second = save(2, model={"weight": torch.ones(4, 3), "bias": torch.zeros(4)})
    (second / "rng_0.safetensors").rename(second / "rng_1.safetensors")
    found = compare(first, second, Progress())
    assert found.only_in == (("rng_0/cpu",), ("rng_1/cpu",))


def test_of_a_run_the_best_checkpoint_is_taken_else_the_latest(save, run):
    best, latest = save(1), save(2)
    assert compare(run, latest, Progress()).paths == (latest, latest)
    set_pointer(run, "best", best.name)
    assert compare(run, latest, Progress()).paths == (best, latest)


def test_a_lone_file_is_compared_with_the_one_of_its_name_else_with_the_model(save, tmp_path):
    checkpoint = save(1)
    ema = written(tmp_path / "rng_0.safetensors", cpu=torch.get_rng_state())
    exported = written(tmp_path / "exported.safetensors", weight=torch.ones(4, 3), bias=torch.zeros(4))
    assert compare(ema, checkpoint, Progress()).paths == (ema, checkpoint / "rng_0.safetensors")
    found = compare(checkpoint, exported, Progress())
    assert found.paths == (checkpoint / "model.safetensors", exported)
    assert found.is_identical


def test_shards_are_one_model(tmp_path):
    written(tmp_path / "part-1.safetensors", a=torch.ones(2))
    written(tmp_path / "part-2.safetensors", b=torch.ones(2))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}))
    (tmp_path / "whole").mkdir()
    whole = written(tmp_path / "whole" / "x.safetensors", a=torch.ones(2), b=torch.ones(2))
    assert compare(index, whole, Progress()).is_identical


def test_pickles_are_compared_with_safetensors(tmp_path):
    tensors = {"weight": torch.randn(3, 2), "half": torch.ones(2).half(), "count": torch.tensor(3)}
    torch.save(tensors, tmp_path / "a.pth")
    assert compare(tmp_path / "a.pth", written(tmp_path / "b.safetensors", **tensors), Progress()).is_identical
    tensors["count"] += 1
    found = compare(tmp_path / "a.pth", written(tmp_path / "b.safetensors", **tensors), Progress())
    assert [tensor.name for tensor in found.changed] == ["count"]


def test_a_sparse_tensor_cannot_be_compared_with_a_dense_one(tmp_path):
    torch.save({"a": torch.tensor([0.0, 1.0]).to_sparse()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="sparsely"):
        compare(tmp_path / "a.pth", written(tmp_path / "b.safetensors", a=torch.ones(2)), Progress())


def test_folder_of_several_models_asks_for_one(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "model.safetensors", a=torch.ones(1))
    with pytest.raises(CheckpointError, match="holds 2 checkpoints"):
        compare(tmp_path, tmp_path / "one", Progress())


def test_lone_file_that_could_belong_to_several_asks_for_one(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("one", "two"):
        written(tmp_path / "folder" / f"{name}.safetensors", a=torch.ones(1))
    with pytest.raises(CheckpointError, match="name the one file"):
        compare(written(tmp_path / "a.safetensors", a=torch.ones(1)), tmp_path / "folder", Progress())


@pytest.mark.parametrize("size", [2**22, 2**24])
def test_memory_does_not_grow_with_the_tensors(tmp_path, size):
    paths = [written(tmp_path / f"{name}.safetensors", x=torch.zeros(size // 4)) for name in "ab"]
    tracemalloc.start()
    compare(*paths, Progress())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


def test_progress_is_of_all_bytes_of_both(tmp_path):
    class Watch(Progress):
        expected = read = 0

        def expect(self, size):
            self.expected += size

        def advance(self, size):
            self.read += size

    first = written(tmp_path / "a.safetensors", x=torch.zeros(100_000), y=torch.ones(3))
    second = written(tmp_path / "b.safetensors", x=torch.zeros(100_000), z=torch.ones(5), y=torch.ones(4))
    watch = Watch()
    compare(first, second, watch)
    assert watch.read == watch.expected == 2 * 400_000 + (3 + 5 + 4) * 4
