import argparse
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from camox.checkpoints.legacy import read_legacy
from camox.errors import CheckpointError


class WritesAFile:
    """Creates the file `proof` if it is unpickled without protection."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("zipped", [True, False])
def test_nested_tables_are_flattened(tmp_path, zipped):
    content = {
        "epoch": 3,
        "model": {"stem.weight": torch.ones(2), "head": torch.nn.Parameter(torch.zeros(1))},
        "ema": {"stem.weight": torch.full((2,), 2.0)},
        "optimizer": {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 0.1}]},
        "best": np.float64(0.7),
        "history": [torch.ones(1), (torch.ones(3),)],
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    tensors = read_legacy(tmp_path / "a.pth")
    assert set(tensors) == {
        "model.stem.weight", "model.head", "ema.stem.weight",
        "optimizer.state.0.step", "history.0", "history.1.0",
    }  # fmt: skip
    assert tensors["ema.stem.weight"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("kind", ["torch", "torch, old format", "pickle"])
def test_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, kind):
    proof, path = tmp_path / "proof", tmp_path / "evil.pth"
    content = {"model": {"weight": torch.ones(1)}, "extra": WritesAFile(proof)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(WritesAFile(proof), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(CheckpointError, match=r"would run posix\.mkdir.*Nothing was run"):
        read_legacy(path)
    assert not proof.exists()


def test_class_of_the_program_that_wrote_it_is_named(tmp_path):
    torch.save({"args": argparse.Namespace(lr=1.0)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace"):
        read_legacy(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04\x95", b"\x80\x02.", b"hello", b"\x00" * 64])
def test_what_is_no_checkpoint_is_an_error_without_advice_to_lower_protection(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable torch checkpoint") as caught:
        read_legacy(tmp_path / "a.pt")
    assert "weights_only" not in str(caught.value)


def test_file_without_tensors_is_an_error(tmp_path):
    torch.save({"epoch": 1}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_legacy(tmp_path / "a.pt")


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_legacy(tmp_path / "a.pt")
