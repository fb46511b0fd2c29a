import errno
import json
import os
import pickletools
import re
import resource
from pathlib import Path

import pytest
import torch

import camox.checkpoints
from camox.checkpoints import store
from camox.checkpoints.manifest import MANIFEST, Manifest, record_file
from camox.checkpoints.store import NotFinite, list_checkpoints, read_checkpoint, resolve, write_checkpoint
from camox.errors import CheckpointError


def awkward_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "scalar": torch.tensor(3.5),
        "transposed": base.t(),
        "base": base,
        "same memory": base,
        "overlapping": base[1:3],
        "strided": base[:, ::2],
        "expanded": torch.ones(1).expand(5),
        "empty": torch.empty(0, 3),
        "channels_last": torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "bfloat16": torch.randn(5, generator=generator).bfloat16(),
        "float8": torch.randn(5, generator=generator).to(torch.float8_e4m3fn),
        "complex": torch.randn(3, dtype=torch.complex64, generator=generator).conj(),
        "bytes": torch.get_rng_state(),
        "boolean": torch.tensor([True, False]),
        "integer": torch.tensor(-7),
    }


def raw_bytes(tensor: torch.Tensor) -> list[int]:
    return tensor.detach().contiguous().resolve_conj().reshape(-1).view(torch.uint8).tolist()


@pytest.mark.parametrize("name", awkward_tensors())
def test_tensor_comes_back_bit_for_bit(save, name):
    tensors = awkward_tensors()
    loaded = read_checkpoint(save(1, model=tensors)).tensors("model")
    assert loaded[name].dtype == tensors[name].dtype
    assert loaded[name].shape == tensors[name].shape
    assert raw_bytes(loaded[name]) == raw_bytes(tensors[name])


def test_tables_and_manifest_come_back(save):
    state = {"schedule": [1, 2.5, None], "guards": {"seen": True}}
    checkpoint = read_checkpoint(save(3, state=state, config={"experts": ["edge"]}, s_measure=0.75))
    assert (checkpoint.state, checkpoint.config) == (state, {"experts": ["edge"]})
    assert (checkpoint.manifest.epoch, checkpoint.manifest.step) == (3, 30)
    assert checkpoint.manifest.measures["s_measure"] == 0.75
    assert checkpoint.manifest.finite
    assert checkpoint.stems == ("model", "rng_0")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_tensor_that_is_not_finite_is_refused_by_name(save, run, dtype, bad):
    poisoned = torch.ones(3, 3, dtype=dtype)
    poisoned[1, 2] = bad
    with pytest.raises(NotFinite, match="model/head") as caught:
        save(1, model={"stem": torch.ones(2), "head": poisoned})
    assert caught.value.names == ["model/head"]
    assert not run.exists()


def test_number_in_the_state_that_is_not_finite_is_refused_by_key(save):
    with pytest.raises(NotFinite) as caught:
        save(1, state={"guards": [{"median": float("nan")}]})
    assert caught.value.names == ["state.json: guards[0].median"]


def test_state_with_keys_that_json_would_change_is_refused(save):
    with pytest.raises(TypeError, match="string keys"):
        save(1, state={"groups": {0: 1.0}})


def test_measure_that_is_nan_is_kept_as_nan(save):
    manifest = read_checkpoint(save(1, s_measure=float("nan"))).manifest
    assert manifest.measures["s_measure"] != manifest.measures["s_measure"]


def test_saving_again_replaces(save, run):
    save(1)
    path = save(1, model={"weight": torch.full((2,), 9.0)})
    assert read_checkpoint(path).tensors("model")["weight"].tolist() == [9.0, 9.0]
    assert [child.name for child in path.parent.iterdir()] == [path.name]


def test_missing_group_names_those_present(save):
    with pytest.raises(CheckpointError, match="only model, rng_0"):
        read_checkpoint(save(1)).tensors("ema")


def test_nan_written_behind_the_manifests_back_is_refused_when_read(save):
    good, bad = save(1), save(2)
    store.save_file({"weight": torch.tensor([1.0, float("nan")])}, bad / "model.safetensors")
    manifest = read_checkpoint(bad, verify=False).manifest
    files = {**manifest.files, "model.safetensors": record_file(bad / "model.safetensors")}
    forged = Manifest(manifest.experiment, manifest.step, manifest.epoch, files, manifest.measures)
    (bad / MANIFEST).write_text(forged.to_json())
    with pytest.raises(NotFinite, match=rf"model/weight.*{re.escape(str(good))}"):
        read_checkpoint(bad)


def test_flipped_byte_is_refused_and_the_last_intact_one_named(save):
    good, bad = save(1), save(2)
    content = bytearray((bad / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (bad / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model.safetensors has another sha256.*{re.escape(str(good))}"):
        read_checkpoint(bad)


@pytest.mark.parametrize("limit", [0, 500, 40_000, 150_000])
def test_full_disk_leaves_the_old_checkpoint_and_nothing_else(save, run, limit):
    # The kernel refuses to let a file grow past the limit, as it does on a full disk.
    old = save(1)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CheckpointError, match=r"could not be saved.*Free space"):
            save(1, model={"weight": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert resolve(run) == old


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
@pytest.mark.parametrize("step", ["save_file", "record_file", "sync_folder", "_put_in_place"])
def test_failure_at_any_step_leaves_nothing_behind(save, run, monkeypatch, step, error):
    save(1)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(store, step, fail)
    with pytest.raises((CheckpointError, KeyboardInterrupt, ValueError)):
        save(2)
    assert [child.name for child in (run / "checkpoints").iterdir()] == ["epoch_0001"]


def test_failure_between_the_two_renames_keeps_the_old_checkpoint(save, run, monkeypatch):
    save(1)
    rename = Path.rename

    def fail_to_arrive(self: Path, target: Path) -> Path:
        if target.name == "epoch_0001":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_to_arrive)
    with pytest.raises(CheckpointError):
        save(1, model={"weight": torch.zeros(1)})
    assert read_checkpoint(resolve(run)).tensors("model")["weight"].unique().tolist() == [1.0]
    assert len(list_checkpoints(run)) == 1


def test_no_file_of_a_checkpoint_is_a_pickle(save):
    for path in save(1).iterdir():
        with pytest.raises((ValueError, UnicodeDecodeError)):
            list(pickletools.genops(path.read_bytes()))


def test_only_legacy_reads_pickles():
    package = Path(camox.checkpoints.__file__).parent
    suspects = re.compile(r"import pickle|from pickle|torch\.(load|save)\(")
    found = {path.name for path in package.glob("*.py") if suspects.search(path.read_text())}
    assert found == {"legacy.py"}


def test_every_rank_can_bring_its_generators(run):
    states = {f"rng_{rank}": {"cpu": torch.Generator().manual_seed(rank).get_state()} for rank in range(3)}
    path = write_checkpoint(
        run, "a", states, state={}, config={}, measures={}, experiment_fingerprint="", step=0, epoch=0
    )
    for stem, group in states.items():
        assert torch.equal(read_checkpoint(path).tensors(stem)["cpu"], group["cpu"])


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", "3", '{"step": NaN}', '{"step": 1e1, "a": Infinity}', "\ufeff{}"]
)
@pytest.mark.parametrize("table", ["state", "config"])
def test_a_table_that_is_none_is_an_error_though_its_hash_fits(save, table, text):
    path = save(1)
    (path / f"{table}.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"{table}\.json.*no other intact"):
        getattr(read_checkpoint(path, verify=False), table)


@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(save, name):
    path = save(1)
    (path / name).unlink()
    os.mkfifo(path / name)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][name]["size"] = 0
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="regular file"):
        read_checkpoint(path)
    checkpoint = read_checkpoint(path, verify=False)
    with pytest.raises(CheckpointError, match="regular file"):
        assert not (checkpoint.state, checkpoint.tensors("model"))


@pytest.mark.parametrize(
    "wrong", [KeyError("step"), TypeError(), ValueError(), AttributeError(), RuntimeError(), OverflowError()]
)
def test_a_state_of_another_form_is_an_error_of_the_checkpoint(save, wrong):
    with (
        pytest.raises(CheckpointError, match=rf"epoch_0001: .*{type(wrong).__name__}"),
        read_checkpoint(save(1)).restoring(),
    ):
        raise wrong
