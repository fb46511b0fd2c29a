"""Two processes on one card train the same weights."""

import re
import subprocess
import sys

import pytest

from tests.conftest import TINY_EXPERIMENT
from tests.distributed.test_two_ranks import ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.distributed]


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_two_ranks_on_one_card_hold_the_same_weights(tmp_path, dtype):
    file = tmp_path / "tiny.toml"
    text = TINY_EXPERIMENT.replace("batch_size = 4", "batch_size = 1").replace("image_size = 32", "image_size = 64")
    file.write_text(text + f'[precision]\ndtype = "{dtype}"\n')
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(ROOT / "tests/gpu/two_ranks.py"), str(file), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    found = re.search(r"device (\w+) weights (\S+) (\S+)", done.stdout)
    assert found is not None, done.stdout[-1500:]
    assert found[1] == "cuda"
    assert found[2] == found[3]
