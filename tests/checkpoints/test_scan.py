import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from camox.checkpoints.folders import set_pointer
from camox.checkpoints.manifest import MANIFEST
from camox.checkpoints.progress import Progress
from camox.checkpoints.scan import last_clean, scan, scan_file
from camox.checkpoints.stored import PIECE_BYTES
from camox.errors import CheckpointError
from tests.checkpoints.conftest import FLOATS

NAN, INF = math.nan, math.inf

fuzz = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def as_reals(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor).double() if tensor.is_complex() else tensor.double()


def zero_count(tensor: torch.Tensor) -> int:
    return int((as_reals(tensor) == 0).sum())


def expected_counts(tensor: torch.Tensor) -> tuple[int, int, float | None]:
    reals = as_reals(tensor)
    finite = reals[reals.isfinite()].abs()
    return int(reals.isnan().sum()), int(reals.isinf().sum()), finite.max().item() if len(finite) else None


@fuzz
@given(data=st.data(), dtype=st.sampled_from(FLOATS), shape=st.lists(st.integers(0, 7), max_size=3))
def test_counts_equal_torchs_for_any_bits(tmp_path, data, dtype, shape):
    # Any bits at all: every NaN payload, both signs, subnormal numbers.
    size = math.prod(shape) * dtype.itemsize
    raw = data.draw(st.binary(min_size=size, max_size=size))
    tensor = torch.tensor(list(raw), dtype=torch.uint8).view(dtype).reshape(shape)
    save_file({"a": tensor}, tmp_path / "a.safetensors")
    (report,) = scan_file(tmp_path / "a.safetensors").tensors
    nan, inf, absmax = expected_counts(tensor)
    assert (report.nan, report.inf) == (nan, inf)
    assert report.shape == tuple(shape)
    assert (report.zeros, report.numbers) == (zero_count(tensor), as_reals(tensor).numel())
    if not str(dtype).endswith(("fnuz", "fnu")):
        assert report.absmax == absmax


@fuzz
@given(places=st.lists(st.tuples(st.integers(0, 2**19 + 4), st.sampled_from([NAN, -NAN, INF, -INF])), max_size=6))
def test_nan_and_inf_are_found_wherever_they_stand(tmp_path, places):
    tensor = torch.zeros(2**19 + 5)  # 32 pieces and a little
    assert tensor.nbytes > 32 * PIECE_BYTES
    for position, value in places:
        tensor[position] = value
    save_file({"before": torch.ones(3), "a": tensor}, tmp_path / "a.safetensors")
    reports = {report.name: report for report in scan_file(tmp_path / "a.safetensors").tensors}
    assert (reports["a"].nan, reports["a"].inf) == expected_counts(tensor)[:2]
    assert reports["a"].zeros == zero_count(tensor)
    assert reports["before"].is_finite


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_bit_pattern_of_two_bytes(tmp_path, dtype):
    tensor = torch.arange(2**16, dtype=torch.int32).to(torch.int16).repeat(4).view(dtype)
    save_file({"a": tensor}, tmp_path / "a.safetensors")
    (report,) = scan_file(tmp_path / "a.safetensors").tensors
    assert (report.nan, report.inf, report.zeros) == (*expected_counts(tensor)[:2], zero_count(tensor))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_integers_are_always_finite(tmp_path, dtype):
    save_file(
        {"a": torch.tensor([127, 0, -1, 0]).to(dtype), "empty": torch.zeros(0, dtype=dtype)}, tmp_path / "a.safetensors"
    )
    reports = {report.name: report for report in scan_file(tmp_path / "a.safetensors").tensors}
    assert all(report.is_finite and report.absmax is None for report in reports.values())
    assert (reports["a"].zeros, reports["a"].zero_share, reports["empty"].zero_share) == (2, 0.5, None)


def test_numbers_that_share_bytes_are_finite_and_their_zeros_unknown(tmp_path):
    text = json.dumps({"a": entry(0, 16, shape=[32], dtype="F4")}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)
    (report,) = scan_file(tmp_path / "a.safetensors").tensors
    assert report.is_finite
    assert report.zeros is None


class Watch(Progress):
    def __init__(self):
        self.expected = self.read = 0

    def expect(self, size):
        self.expected += size

    def advance(self, size):
        self.read += size


def test_progress_is_of_all_bytes(save, run):
    save(1)
    save(2)
    watch = Watch()
    scan(run, watch)
    tables = sum(
        (path / name).stat().st_size
        for path in (run / "checkpoints").iterdir()
        for name in ("state.json", "config.json")
    )
    assert watch.read == watch.expected + tables  # of the files that the manifest hashes, two hold no weights
    watch = Watch()
    scan_file(run / "checkpoints" / "epoch_0001" / "model.safetensors", watch)
    assert watch.read == (12 + 4) * 4


def safetensors_bytes(tmp_path: Path) -> bytes:
    torch.manual_seed(0)
    tensors = {"a": torch.randn(4, 5), "b": torch.randn(7).half(), "c": torch.arange(3)}
    save_file(tensors, tmp_path / "whole.safetensors", metadata={"format": "pt"})
    return (tmp_path / "whole.safetensors").read_bytes()


@fuzz
@given(data=st.data())
def test_flipped_bytes_give_an_error_or_an_honest_report(tmp_path, data):
    content = bytearray(safetensors_bytes(tmp_path))
    # The header is where harm is done, so half of the flips go there.
    position = st.integers(0, len(content) - 1) | st.integers(0, 200)
    for place, value in data.draw(st.lists(st.tuples(position, st.integers(0, 255)), min_size=1, max_size=4)):
        content[place] = value
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    try:
        report = scan_file(path)
    except CheckpointError:
        return
    assert sum(math.prod(tensor.shape) for tensor in report.tensors) <= 8 * len(content)


@fuzz
@given(length=st.integers(0, 400))
def test_file_cut_short_or_continued_is_an_error(tmp_path, length):
    content = safetensors_bytes(tmp_path)
    changed = content[:length] if length < len(content) else content + b"\0" * (length - len(content) + 1)
    path = tmp_path / "a.safetensors"
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        scan_file(path)


@fuzz
@given(content=st.binary(max_size=300))
def test_random_bytes_are_an_error(tmp_path, content):
    for name in ("a.safetensors", "a.pth", "unknown"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            scan_file(tmp_path / name)


def entry(start: int, end: int, shape: list[int] | None = None, dtype: object = "F32") -> dict:
    return {
        "dtype": dtype,
        "shape": [(end - start) // 4] if shape is None else shape,
        "data_offsets": [start, end],
    }


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(0, 8), "b": entry(4, 16)}, "hole or overlaps"),
        ({"a": entry(0, 4), "b": entry(8, 16)}, "hole or overlaps"),
        ({"a": entry(0, 12)}, "follow the last tensor"),
        ({"a": entry(0, 20)}, "cut short"),
        ({"a": entry(0, 16, shape=[3])}, "needs 12 bytes and has 16"),
        ({"a": entry(0, 16, shape=[-2, -2])}, "impossible shape"),
        ({"a": entry(0, 16, shape=[True, 4])}, "impossible shape"),
        ({"a": entry(0, 16, shape=[2**64, 2**64])}, "impossible shape"),
        ({"a": entry(0, 16, shape=[10**400])}, "impossible shape"),
        ({"a": entry(0, 16, shape=[2**62] * 50)}, "needs"),
        ({"a": entry(0, 16, shape=[2**62] * 200_000)}, "needs"),
        ({"\ud800": entry(0, 16)}, "no text"),
        ({"a": entry(16, 0, shape=[0])}, "needs"),
        ({"a": entry(0, 16, dtype="F31")}, "unknown dtype"),
        ({"a": entry(0, 16, dtype=["F32"])}, "unknown dtype"),
        ({"a": {"dtype": "F32"}}, "lacks"),
        ({"a": None}, "lacks"),
        ([], "not a JSON object"),
    ],
)
def test_header_that_lies_is_an_error(tmp_path, header, message):
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)
    with pytest.raises(CheckpointError, match=message):
        scan_file(path)


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1, 10**8 + 1, 1000])
def test_absurd_header_length_is_an_error(tmp_path, length):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" + b"\0" * 16)
    with pytest.raises(CheckpointError, match="header length"):
        scan_file(path)


def test_name_that_stands_twice_is_an_error(tmp_path):
    first, second = (b'"a":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}' % (n, n + 1) for n in (0, 1))
    text = b"{" + first + b"," + second + b"}"
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0\0")
    with pytest.raises(CheckpointError, match="twice"):
        scan_file(tmp_path / "a.safetensors")


def poison(path: Path) -> None:
    save_file({"weight": torch.tensor([1.0, NAN, INF, INF])}, path / "model.safetensors")


def test_run_is_scanned_checkpoint_by_checkpoint(save, run):
    save(1)
    poison(save(2))
    report = scan(run)
    assert [(subject.path.name, subject.is_finite) for subject in report.subjects] == [
        ("epoch_0001", True),
        ("epoch_0002", False),
    ]
    assert report.exit_code == 1


def test_the_file_of_a_pointer_is_followed(save, run):
    good, bad = save(1), save(2)
    poison(bad)
    for pointed, exit_code in ((good, 0), (bad, 1)):
        (run / "checkpoints" / "best").write_text(pointed.name + "\n")
        report = scan(run / "checkpoints" / "best")
        assert [subject.path.name for subject in report.subjects] == [pointed.name]
        assert report.exit_code == exit_code


def test_weights_of_another_program_may_be_called_best(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "best")
    assert scan(tmp_path / "best").exit_code == 0


def test_last_clean_is_the_newest_that_is_finite_and_undamaged(save, run):
    save(1)
    good = save(2)
    poison(save(3))
    (save(4) / "state.json").unlink()
    assert last_clean(run) == good
    assert last_clean(run / "checkpoints") == good


def test_last_clean_of_a_run_without_any_is_none(save, run):
    poison(save(1))
    assert last_clean(run) is None


def test_damage_without_nan_is_told_apart_from_nan(save, run):
    path = save(1)
    (path / "config.json").write_text("{}")
    report = scan(path)
    assert report.exit_code == 2
    assert "config.json has 2 bytes" in report.subjects[0].defects[0]


def test_checkpoint_with_a_broken_manifest_is_reported_and_not_skipped(save, run):
    save(1)
    (save(2) / MANIFEST).write_text("{")
    report = scan(run)
    assert len(report.subjects) == 2
    assert report.exit_code == 2


def test_pointers_of_the_run_are_told(save, run):
    set_pointer(run, "best", save(1).name)
    set_pointer(run, "latest", save(2).name)
    assert [subject.pointers for subject in scan(run).subjects] == [("best",), ("latest",)]
    assert scan(run / "checkpoints" / "epoch_0001").subjects[0].pointers == ("best",)


def test_unfinished_checkpoint_is_a_note(save, run):
    save(1)
    (save(2) / MANIFEST).unlink()
    report = scan(run)
    assert report.exit_code == 0
    assert "epoch_0002 has no manifest.json" in report.notes[0]


@pytest.fixture
def sharded(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.tensor([NAN])}, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    return index


def test_all_shards_of_an_index_are_scanned(sharded):
    (subject,) = scan(sharded).subjects
    assert [tensor.nan for file in subject.files for tensor in file.tensors] == [0, 1]


@pytest.mark.parametrize("of", ["index", "folder"])
def test_missing_shard_and_missing_tensor_are_defects(sharded, of):
    (sharded.parent / "model-2.safetensors").unlink()
    save_file({"other": torch.ones(2)}, sharded.parent / "model-1.safetensors")
    report = scan(sharded if of == "index" else sharded.parent)
    assert report.exit_code == 2
    assert "model-2.safetensors: no such file" in report.subjects[0].defects[0]
    assert "model-1.safetensors lacks 1 tensors" in report.subjects[0].defects[1]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}', '{"weight_map": {"a": 3}}']
)
def test_index_that_is_none_is_an_error(sharded, content):
    sharded.write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        scan(sharded)


def test_folder_of_another_program_is_searched(tmp_path):
    for folder, value in (("checkpoint-500", 1.0), ("checkpoint-1000", NAN)):
        (tmp_path / folder).mkdir()
        save_file({"a": torch.tensor([value])}, tmp_path / folder / "model.safetensors")
    report = scan(tmp_path)
    assert [(subject.path.name, subject.is_finite) for subject in report.subjects] == [
        ("checkpoint-500", True),
        ("checkpoint-1000", False),
    ]
    assert last_clean(tmp_path) == tmp_path / "checkpoint-500"


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.int64]
)
def test_pickles_of_torch_are_counted_as_safetensors_are(tmp_path, dtype):
    values = (
        torch.tensor([1.0, 2.0, NAN, INF, -INF, NAN]).to(dtype)
        if dtype.is_floating_point
        else torch.ones(6, dtype=dtype)
    )
    torch.save({"model": {"a": values.reshape(2, 3).t()}}, tmp_path / "a.pth")
    (report,) = scan(tmp_path / "a.pth").subjects[0].files[0].tensors
    assert (report.nan, report.inf) == expected_counts(values)[:2]
    assert report.name == "model.a"
    assert report.zeros == (0 if dtype.is_floating_point or dtype == torch.int64 else zero_count(values))


def test_sparse_tensor_of_a_pickle_is_counted(tmp_path):
    torch.save({"a": torch.tensor([0.0, NAN, 0.0]).to_sparse()}, tmp_path / "a.pth")
    assert scan_file(tmp_path / "a.pth").tensors[0].nan == 1


@pytest.mark.parametrize("path", ["absent", "absent.safetensors", "."])
def test_nothing_to_scan_is_an_error(tmp_path, path):
    with pytest.raises(CheckpointError, match=r"no such|holds no checkpoint"):
        scan(tmp_path / path)


def test_scanning_needs_no_torch(save, run):
    save(1)
    program = (
        "import sys; from camox.checkpoints.inspection import main; code = main(sys.argv[1:]);"
        "assert code == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(run)], check=True, capture_output=True)
